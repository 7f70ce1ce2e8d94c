"""The box around an outline as COCO files have it under "segmentation".

    polygons: [[x, y, x, y, ...], ...] in pixels from the picture's edge, or one without the outer list
    a mask in runs: {"size": [height, width], "counts": [outside, inside, outside, ...]} down the columns, one
    after another; or the counts as text

The text holds a number in characters of 6 bits from "0" on, low ones first: 5 bits of it, and whether more
come. From the fourth number on it is the difference to the one before the last, and may be negative.
Format: https://cocodataset.org/#format-data
"""

import numpy as np

from hardmine_jax.data.coco_json import numbers, whole_number

_MAX_PIXELS = 2**31


def outline_box(segmentation: object) -> np.ndarray | None:
    """xyxy float64 [4], half open; None where this is no outline, or holds nothing.

    >>> outline_box([[10, 8, 31, 8, 31, 26]]), outline_box({"size": [4, 6], "counts": [5, 2, 17]})
    (array([10.,  8., 31., 26.]), array([1., 1., 2., 3.]))
    """
    box = _of_runs(segmentation) if isinstance(segmentation, dict) else _of_polygons(segmentation)
    return box if box is not None and (box[2:] > box[:2]).all() else None


def _of_polygons(segmentation: object) -> np.ndarray | None:
    parts = segmentation if isinstance(segmentation, list) else []
    flat = numbers(parts) if parts and not isinstance(parts[0], list | str) else None
    found = [flat] if flat is not None else [numbers(part) for part in parts]
    points = [part.reshape(-1, 2) for part in found if part is not None and len(part) % 2 == 0]
    together = np.concatenate([np.zeros((0, 2)), *points])
    if not len(together) or not np.isfinite(together).all():
        return None
    return np.concatenate([together.min(0), together.max(0)])


def _of_runs(segmentation: dict) -> np.ndarray | None:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    sides = [whole_number(side) for side in size] if isinstance(size, list) and len(size) == 2 else []
    runs = _from_text(counts) if isinstance(counts, str) else numbers(counts)
    if None in sides or not sides or runs is None or not np.isfinite(runs).all():
        return None
    height, width = (int(side or 0) for side in sides)
    if min(height, width) < 1 or height * width > _MAX_PIXELS:
        return None
    if (runs < 0).any() or runs.sum() > height * width:
        return None
    ends = np.cumsum(runs.astype(np.int64))
    first, last = ends[:-1:2], ends[1::2] - 1
    first, last = first[first <= last], last[first <= last]
    if not len(first):
        return None
    # A run that goes on in the next column has the bottom of one and the top of the other.
    one_column = first // height == last // height
    top = np.where(one_column, first % height, 0).min()
    bottom = np.where(one_column, last % height, height - 1).max()
    return np.array([first.min() // height, top, last.max() // height + 1, bottom + 1], np.float64)


def _from_text(text: str) -> np.ndarray | None:
    """The counts; None where the text is none."""
    counts: list[int] = []
    value, bits = 0, 0
    for code in (ord(character) - 48 for character in text):
        if not 0 <= code < 64 or bits > 40:
            return None
        value, bits = value | (code & 31) << bits, bits + 5
        if code & 32:
            continue
        signed = value - (1 << bits) if code & 16 else value
        counts.append(signed + (counts[-2] if len(counts) > 2 else 0))
        value, bits = 0, 0
    return np.array(counts, np.float64) if counts and not bits else None
