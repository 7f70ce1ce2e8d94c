"""Selective search: boxes that may hold an object, from merging similar regions of one picture; on the host.

Boxes are xyxy in pixels, half open: a region that is the first pixel alone is (0, 0, 1, 1).
"""

import functools
import types

import numpy as np


def selective_search(
    image: np.ndarray,
    *,
    mode: str = "fast",
    max_proposals: int = 2000,
    min_size: float = 0.0,
    base_k: int = 150,
) -> np.ndarray:
    """Boxes around the regions of a hierarchical grouping, the likelier objects first.

    Regions of a graph-based segmentation are merged by likeness (colour, texture, size, fill), in several
    colour spaces and from several segmentations; every region on the way gives a box. A box's rank is its
    place among all, largest region first, times a random number, as in the paper, section 3.2 there; the
    numbers follow from the number of boxes alone, so the same picture gives the same bits (OpenCV's own order
    does not: it draws from the process's generator).

    Args:
      image: uint8 [H, W, 3] RGB.
      mode: "fast"; "single", one segmentation of one colour space grouped by one measure of likeness, about a
        quarter of the boxes in a sixth of the time; "quality", more of each than "fast", about twice the
        boxes in ten times the time.
      max_proposals: at most so many boxes, best first.
      min_size: boxes with a side shorter than this many pixels are left out.
      base_k: how large the first segments are, and the step to the next segmentation; smaller gives more and
        smaller boxes.

    Returns:
      float32 [P, 4], no box twice, P between 0 and `max_proposals`.

    Raises:
      ImportError: OpenCV without its contrib modules.
      ValueError: an image or a number that is none of the above.

    van de Sande, Uijlings, Gevers, Smeulders, "Segmentation as Selective Search for Object Recognition", ICCV
    2011; Uijlings et al., "Selective Search for Object Recognition", IJCV 2013.
    """
    _check(image, mode, max_proposals, base_k)
    search = _segmentation().createSelectiveSearchSegmentation()
    # OpenCV's images are BGR; its grey and HSV strategies are not the same the other way round.
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    MODES[mode](search, base_k)
    found = np.asarray(search.process(), np.float32).reshape(-1, 4)
    boxes = np.unique(np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], -1), axis=0)
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) >= max(min_size, 1)).all(-1)]
    return boxes[_order(boxes)][:max_proposals]


# The smoothing before segmentation, 0.8 pixels, is the published one.
MODES = {
    "single": lambda search, k: search.switchToSingleStrategy(k, 0.8),
    "fast": lambda search, k: search.switchToSelectiveSearchFast(k, k, 0.8),
    "quality": lambda search, k: search.switchToSelectiveSearchQuality(k, k, 0.8),
}


def _check(image: np.ndarray, mode: str, max_proposals: int, base_k: int) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"image {image.dtype} {list(image.shape)}: selective_search takes uint8 [H, W, 3]")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: choose one of {', '.join(MODES)}")
    if max_proposals < 1 or base_k < 1:
        raise ValueError(f"max_proposals={max_proposals} and base_k={base_k} must be 1 or more")


@functools.cache
def _segmentation() -> types.ModuleType:
    try:
        from cv2.ximgproc import segmentation
    except ImportError as error:
        wanted = "pip install opencv-contrib-python-headless"
        raise ImportError(f"selective search is in OpenCV's contrib modules ({error}): {wanted}") from error
    return segmentation


def _order(boxes: np.ndarray) -> np.ndarray:
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    largest_first = np.argsort(-areas, kind="stable")
    rank = np.random.default_rng(0).random(len(boxes)) * np.arange(1, len(boxes) + 1)
    return largest_first[np.argsort(rank, kind="stable")]
