"""Average precision of PASCAL VOC. Host side (numpy); boxes are xyxy in pixels, labels 1 .. C."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt


class Detections(NamedTuple):
    """What was found in one image, in any order.

    Attributes:
      boxes: [P, 4] pixels.
      scores: [P], larger is surer.
      labels: int [P], 1 .. C.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class GroundTruth(NamedTuple):
    """What is to be found in one image.

    Attributes:
      boxes: [M, 4] pixels.
      labels: int [M], 1 .. C.
      difficult: bool [M], True for what need not be found; finding it is neither good nor bad. None: nothing.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray | None = None


# Plain tuples do, of all that numpy makes arrays of.
Found: TypeAlias = Detections | tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]
Truth: TypeAlias = (
    GroundTruth
    | tuple[npt.ArrayLike, npt.ArrayLike]
    | tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike | None]
)


class _Objects(NamedTuple):
    """`GroundTruth` that says of each object whether it is difficult."""

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


class ClassPrecision(NamedTuple):
    """How one class fares. The curve has a point for each detection that counts, D of them, surest first.

    Attributes:
      name: of the class.
      num_objects: how many there are to find, difficult ones not counted.
      ap: area under the curve (VOC 2010 and later); NaN where there is nothing to find.
      ap_11_point: mean of the precision at 11 recalls (VOC 2007); NaN alike.
      precision: float64 [D], right ones among the surest so many.
      recall: float64 [D], those found among all to find; NaN where there is nothing to find.
      scores: [D], down to which score the point counts.
    """

    name: str
    num_objects: int
    ap: float
    ap_11_point: float
    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray


class AveragePrecision(NamedTuple):
    """What `average_precision` gives.

    Attributes:
      mean: of `ap` over the classes that have something to find; NaN if none has.
      mean_11_point: of `ap_11_point` alike.
      classes: one for each class, in the order of the labels.
      without_objects: names of the classes that have nothing to find and are left out of the means.
    """

    mean: float
    mean_11_point: float
    classes: tuple[ClassPrecision, ...]
    without_objects: tuple[str, ...]


def average_precision(
    detections: Sequence[Found],
    ground_truth: Sequence[Truth],
    *,
    classes: Sequence[str],
    iou_threshold: float = 0.5,
) -> AveragePrecision:
    """Average precision of each class, and the mean, by both of VOC's rules.

    ap = sum over i of (recall_i - recall_i-1) * max over j >= i of precision_j
    ap_11_point = mean over r = 0, 0.1 ... 1 of max over j with recall_j >= r of precision_j, 0 without such j

    As in VOC's development kit: the detections of a class are taken surest first, over all images, ties as
    they come; each belongs to the object of its class that it overlaps most, if the IoU reaches the
    threshold. The first that an object gets is right, each further one wrong, as is one that reaches none;
    with a difficult object for its own it does not count at all. One thing differs: the kit adds a pixel to
    each width and height, here the width is x2 - x1, as everywhere in this library. Everingham et al., The
    PASCAL Visual Object Classes challenge (2010), section 4.2.

    Args:
      detections: one for each image; plain tuples do.
      ground_truth: one for each image, in the same order.
      classes: names of labels 1 .. C.
      iou_threshold: above 0, up to 1.

    Returns:
      `AveragePrecision`.

    Raises:
      ValueError: if the two are not of one length, arrays of an image do not fit, a label is not in 1 .. C,
        or the threshold is not above 0.

    >>> truth = GroundTruth(np.array([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]]), np.array([1, 1]))
    >>> boxes = np.array([[0.0, 0.0, 10.0, 9.0], [5.0, 0.0, 15.0, 10.0]])
    >>> found = Detections(boxes, scores=np.array([0.9, 0.8]), labels=np.array([1, 1]))
    >>> result = average_precision([found], [truth], classes=("cell", "plate"))
    >>> result.mean, round(result.mean_11_point, 4), result.without_objects
    (0.5, 0.5455, ('plate',))
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold={iou_threshold} must be above 0, up to 1")
    images = list(checked_images(detections, ground_truth, num_classes=len(classes)))
    scores, labels, owners, ignored = _concatenated(images, iou_threshold)
    counted = np.concatenate([truth.labels[~truth.difficult] for _, truth in images] or [np.zeros(0, int)])
    rows = []
    for label, name in enumerate(classes, start=1):
        mine = np.flatnonzero((labels == label) & ~ignored)
        # Stable, so that ties stay as they came. NaN comes last.
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        rows.append(_class_precision(name, int((counted == label).sum()), owners[mine], scores[mine]))
    some = [row for row in rows if row.num_objects]
    return AveragePrecision(
        mean=float(np.mean([row.ap for row in some])) if some else float("nan"),
        mean_11_point=float(np.mean([row.ap_11_point for row in some])) if some else float("nan"),
        classes=tuple(rows),
        without_objects=tuple(row.name for row in rows if not row.num_objects),
    )


def checked_images(
    detections: Sequence[Found], ground_truth: Sequence[Truth], *, num_classes: int
) -> Iterator[tuple[Detections, _Objects]]:
    """Image by image the two as float64, int64 and bool arrays, `difficult` filled in.

    Raises:
      ValueError: if the two are not of one length, arrays of an image do not fit, or a label is not 1 .. C.
    """
    if len(detections) != len(ground_truth):
        raise ValueError(f"{len(detections)} images with detections, {len(ground_truth)} with ground truth")
    for number, image in enumerate(zip(detections, ground_truth, strict=True)):
        found, truth = _as_arrays(*image)
        for kind, arrays in (("detections", found), ("ground truth", truth)):
            if len({len(array) for array in arrays}) > 1:
                lengths = ", ".join(str(len(array)) for array in arrays)
                raise ValueError(f"image {number}: arrays of its {kind} have lengths {lengths}")
        given = np.concatenate([found.labels, truth.labels])
        if not ((given >= 1) & (given <= num_classes)).all():
            raise ValueError(f"image {number}: labels {np.unique(given)} are not all in 1 .. C={num_classes}")
        yield found, truth


def _as_arrays(found: Found, truth: Truth) -> tuple[Detections, _Objects]:
    def flat(array: npt.ArrayLike, dtype: npt.DTypeLike) -> np.ndarray:
        return np.asarray(array, dtype).reshape(-1)

    boxes, scores, labels = found
    true_boxes, true_labels, difficult = truth if len(truth) == 3 else (*truth, None)
    true_labels = flat(true_labels, np.int64)
    return (
        Detections(_boxes(boxes), flat(scores, np.float64), flat(labels, np.int64)),
        _Objects(
            _boxes(true_boxes),
            true_labels,
            flat(np.zeros(len(true_labels)) if difficult is None else difficult, bool),
        ),
    )


def _boxes(boxes: npt.ArrayLike) -> np.ndarray:
    return np.asarray(boxes, np.float64).reshape(-1, 4)


def _concatenated(images: list[tuple[Detections, _Objects]], iou_threshold: float) -> tuple[np.ndarray, ...]:
    """Of all detections: score, label, number of the object it belongs to (-1: none), ignored or not."""
    parts, first = [(np.zeros(0), np.zeros(0, int), np.zeros(0, int), np.zeros(0, bool))], 0
    for found, truth in images:
        if len(truth.labels):
            shared = np.where(found.labels[:, None] == truth.labels, overlaps(found.boxes, truth.boxes), 0)
            best = shared.argmax(axis=1)
            enough = shared.max(axis=1) >= iou_threshold
            owners, ignored = np.where(enough, first + best, -1), enough & truth.difficult[best]
        else:
            owners, ignored = np.full(len(found.labels), -1), np.zeros(len(found.labels), bool)
        parts.append((found.scores, found.labels, owners, ignored))
        first += len(truth.labels)
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes [P, 4] with boxes [M, 4], float64 [P, M]. `boxes.iou` is for the device, in float32."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    both = np.clip(high - low, 0, None).prod(axis=-1)
    area_a, area_b = (np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=-1) for boxes in (a, b))
    union = area_a[:, None] + area_b - both
    return np.divide(both, union, out=np.zeros_like(both), where=both > 0)


def _class_precision(name: str, num_objects: int, owners: np.ndarray, scores: np.ndarray) -> ClassPrecision:
    right = np.zeros(len(owners), bool)
    # The first detection of each object; its object does not depend on what came before.
    right[np.unique(owners, return_index=True)[1]] = True
    num_right = np.cumsum(right & (owners >= 0))
    precision = num_right / np.arange(1, len(owners) + 1)
    if not num_objects:
        nothing = np.full(len(owners), np.nan)
        return ClassPrecision(name, 0, float("nan"), float("nan"), precision, nothing, scores)
    recall = num_right / num_objects
    # The best precision from each point on.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    area = float((np.diff(recall, prepend=0.0) * envelope).sum())
    # In integers: 3 of 10 reach the recall 0.3, which 3 * 0.1 does not say.
    reached = np.searchsorted(10 * num_right, num_objects * np.arange(11))
    eleven = float(np.append(envelope, 0.0)[np.minimum(reached, len(envelope))].mean())
    return ClassPrecision(name, num_objects, area, eleven, precision, recall, scores)
