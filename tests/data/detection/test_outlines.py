"""Boxes around COCO's outlines, masks in runs against numpy and an encoder that is not ours."""

import numpy as np
import pytest

from hardmine_jax.data.detection.outlines import outline_box


def _counts(mask: np.ndarray) -> list[int]:
    """Lengths of the runs down the columns, outside first."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat, prepend=~flat[:1], append=~flat[-1:]))
    runs = np.diff(ends).tolist()
    return [0, *runs] if flat[0] else runs


def _box(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def test_masks_in_runs():
    encode = pytest.importorskip("faster_coco_eval.core.mask").encode
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(1, 90, 2)
        mask = rng.random((height, width)) < rng.choice([0.002, 0.05, 0.5, 0.98])
        mask[rng.integers(height), rng.integers(width)] = True
        size = [int(height), int(width)]
        text = encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        text = text.decode() if isinstance(text, bytes) else text
        for counts in (_counts(mask), [str(run) for run in _counts(mask)], text):
            np.testing.assert_array_equal(outline_box({"size": size, "counts": counts}), _box(mask))


@pytest.mark.parametrize(
    "outline",
    [
        [[10, 8, 31, 8, 31, 26]],
        [10, 8, 31, 8, 31, 26],
        [["10", "8", "31", "26"]],
        [[[10, 8], [31, 8], [31, 26]]],
        [[10, 8, 20, 9], [19, 9, 31, 26]],
    ],
)
def test_polygons(outline):
    np.testing.assert_array_equal(outline_box(outline), [10, 8, 31, 26])


@pytest.mark.parametrize(
    "nothing",
    [
        None,
        [],
        {},
        "x",
        7,
        [[]],
        [[1, 2]],
        [[1, 2, 3]],
        [[1, 2, 1, 9]],
        [[1, 2, float("nan"), 4]],
        [["a", "b"]],
        [{}],
        {"size": [4, 6], "counts": [24]},
        {"size": [4, 6], "counts": [5, 99]},
        {"size": [0, 6], "counts": [0, 5]},
        {"size": [4, 6], "counts": [5, -2, 8]},
        {"size": [4, 6], "counts": "\x7f"},
        {"size": [4, 6], "counts": "oooo"},
        {"size": [4, 6], "counts": "o" * 10_000},
        {"size": [10**9, 10**9], "counts": [0, 5]},
        {"counts": [0, 5]},
        {"size": 4, "counts": [0, 5]},
        {"size": [4, 6]},
        {"size": ["a", 6], "counts": [0, 5]},
    ],
)
def test_what_is_no_outline(nothing):
    assert outline_box(nothing) is None
