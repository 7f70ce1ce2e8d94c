"""What becomes of the boxes that a dataset's file gives: objects, regions that nothing is learned from,
nothing.

An object whose box cannot be used is in the picture all the same, and would be learned as background: as far
as its place is known that is a region which training leaves alone. Boxes are xyxy, half open.

    box                          object      what is left alone
    corners swapped              mended
    of no area, one side known               a square of that side around it
    a point, or no number                    all of the picture
    of an unknown class                      its box
    outside the picture
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

INVERTED = "box inverted (corners swapped back)"
CLIPPED = "box reaches out of the image (clipped)"
SMALL = "box smaller than a pixel"
NOT_FINITE, NO_AREA, OUTSIDE = "box that is no finite number", "box of no area", "box outside the image"


class Usable(NamedTuple):
    """What is made of one box.

    Attributes:
      box: [4] inside the image, of the object or of what is left alone; None where nothing of it is there.
      is_object: False for a region.
      problem: why it is no object; note: what is odd about it.
    """

    box: np.ndarray | None
    is_object: bool
    problem: str | None = None
    note: str | None = None


def usable_box(given: np.ndarray, size: tuple[int, int]) -> Usable:
    """What becomes of the box [4] in an image of `size` (H, W).

    >>> usable_box(np.array([30.0, 5.0, 10.0, 15.0]), (40, 60)).box
    array([10.,  5., 30., 15.])
    >>> usable_box(np.array([30.0, 20.0, 40.0, 20.0]), (40, 60))[:3]
    (array([30., 15., 40., 25.]), False, 'box of no area')
    """
    height, width = size
    if not np.isfinite(given).all():
        return Usable(_whole(size), False, NOT_FINITE)
    box = np.concatenate([np.minimum(given[:2], given[2:]), np.maximum(given[:2], given[2:])])
    clipped = np.clip(box, 0, np.array([width, height, width, height], np.float64))
    if (box[:2] >= (width, height)).any() or (box[2:] <= 0).any():
        return Usable(None, False, OUTSIDE)
    if not has_area(clipped):
        return Usable(_around(box, size), False, NO_AREA)
    if (box != given).any():
        return Usable(clipped, True, note=INVERTED)
    if (box != clipped).any():
        return Usable(clipped, True, note=CLIPPED)
    return Usable(clipped, True, note=SMALL if (box[2:] - box[:2] < 1).all() else None)


def has_area(box: np.ndarray) -> bool:
    """Whether a box [4] has an area as float32, which records keep."""
    return bool((np.float32(box[2:]) > np.float32(box[:2])).all())


def _whole(size: tuple[int, int]) -> np.ndarray:
    return np.array([0, 0, size[1], size[0]], np.float64)


def _around(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The square whose side is the longer one of the box; all of the image around a point."""
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max() / 2
    square = np.concatenate([middle - half, middle + half])
    inside = np.clip(square, 0, np.tile(np.array(size[::-1], np.float64), 2))
    return inside if has_area(inside) else _whole(size)


def is_whole(box: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a region is all of the picture: nothing is known of the object's place."""
    return bool((box == _whole(size)).all())


def are_relative(boxes: Iterable[np.ndarray]) -> bool:
    """Whether all these boxes [4] are parts of their picture's sides: in 0..1, and not all whole numbers.

    >>> are_relative([np.array([0.1, 0.2, 0.4, 1.0])]), are_relative([np.array([0.0, 0.0, 1.0, 1.0])])
    (True, False)
    """
    broken = False
    for box in boxes:
        if np.isfinite(box).all():
            # Of 0.4 + 0.6 floats make more than 1.
            if box.min() < 0 or box.max() > 1 + 1e-6:
                return False
            broken = broken or bool((box != np.round(box)).any())
    return broken
