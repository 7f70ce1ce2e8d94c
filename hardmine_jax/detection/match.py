"""Which ground truth each box belongs to. Boxes are xyxy in pixels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hardmine_jax.detection.boxes import area, iou, sides
from hardmine_jax.detection.labels import class_numbers
from hardmine_jax.mining.layout import for_export
from hardmine_jax.mining.types import ArrayLike, as_floats


@for_export
class Matched(NamedTuple):
    """What `match` gives for each of N boxes. Nothing in it carries a gradient.

    Attributes:
      labels: int32 [..., N], of the ground truth where the overlap reaches `foreground`, else 0: background;
        -1 between `background` and that, for `where=labels >= 0`.
      boxes: float [..., N, 4] pixels, the ground truth overlapped most, for background too; the box itself
        where it touches none, so that `encode_boxes` gives zeros.
      overlaps: float [..., N] in 0 .. 1, the IoU with it; 0 where none is touched.
      indices: int32 [..., N] in 0 .. M - 1, which ground truth it is; 0 where none is touched.
    """

    labels: jax.Array
    boxes: jax.Array
    overlaps: jax.Array
    indices: jax.Array


def match(
    boxes: ArrayLike,
    gt_boxes: ArrayLike,
    gt_labels: ArrayLike,
    *,
    foreground: float = 0.5,
    background: float | None = None,
    force: bool = False,
    where: ArrayLike | None = None,
) -> Matched:
    """Gives each box the ground truth that it overlaps most, and its label if that is enough.

    index_n = arg-max over m in where of iou_nm,  label_n = gt_labels[index_n] if iou >= foreground else 0

    For anchors, of which an object may overlap none enough: with `force` each ground truth m is that of its
    best box, arg-max over n of iou_nm, whatever their overlap, if they touch. Of several with the same best
    box the one that overlaps it most has it. (SSD, 1512.02325, section 2.2, "matching strategy"; torchvision
    gives such a box the ground truth that *it* overlaps most.) With `background` what overlaps between that
    and `foreground` is neither, as in RetinaNet, 1708.02002, section 4 (0.4 and 0.5).

    Ties go to the lowest index of the ground truth. Ground truth without area, and what takes no part, is
    never matched, whatever it holds. What background is worth using (an overlap of at least 0.1, say) is the
    sampler's affair: `sample_rois`. Fast R-CNN, 1504.08083, section 2.3, "Mini-batch sampling".

    Args:
      boxes: [..., N, 4] pixels.
      gt_boxes: [..., M, 4] pixels; M may be 0.
      gt_labels: int [..., M], 1 .. C.
      foreground: the least overlap of an object, above 0.
      background: below this overlap a box is background, above 0 and up to foreground; from it on its label
        is -1 where it is no object's. None: as foreground.
      force: as above.
      where: bool [..., M], which ground truth takes part; None for all.

    Returns:
      `Matched`.

    Raises:
      ValueError: for foreground <= 0 or > 1, a background that is not above 0 and up to foreground, or shapes
        that do not fit.
      TypeError: if labels are no integers.

    >>> boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [50.0, 0.0, 60.0, 10.0]])
    >>> matched = match(boxes, jnp.array([[0.0, 0.0, 10.0, 12.0]]), jnp.array([7]))
    >>> matched.labels, matched.overlaps.round(2)
    (Array([7, 0, 0], dtype=int32), Array([0.83, 0.29, 0.  ], dtype=float32))
    """
    boxes, gt_boxes = (jax.lax.stop_gradient(array) for array in as_floats(boxes, gt_boxes))
    gt_labels = class_numbers(gt_labels)
    where = jnp.ones(gt_labels.shape, bool) if where is None else jnp.asarray(where)
    _check(boxes, gt_boxes, gt_labels, where)
    background = _check_overlaps(foreground, background)
    if gt_labels.shape[-1] == 0 or boxes.shape[-2] == 0:
        none = jnp.zeros(boxes.shape[:-1], jnp.int32)
        return Matched(labels=none, boxes=boxes, overlaps=none.astype(boxes.dtype), indices=none)
    pairs = jnp.where(where[..., None, :], iou(boxes, gt_boxes), 0)
    overlaps = pairs.max(axis=-1)
    number = jnp.arange(gt_labels.shape[-1], dtype=jnp.int32).reshape((1,) * (pairs.ndim - 1) + (-1,))
    # The lowest index of the best: XLA:CPU has no fast arg-max.
    indices = jnp.where(pairs == overlaps[..., None], number, gt_labels.shape[-1]).min(axis=-1)
    enough = overlaps >= foreground
    if force:
        indices, overlaps, forced = _forced(pairs, indices, overlaps)
        enough = enough | forced
    labels = jnp.take_along_axis(gt_labels, indices, axis=-1)
    nearest = jnp.take_along_axis(gt_boxes, indices[..., None], axis=-2)
    touches = overlaps > 0
    return Matched(
        labels=jnp.where(enough, labels, jnp.where(overlaps >= background, -1, 0)),
        boxes=jnp.where(touches[..., None], nearest, boxes),
        overlaps=overlaps,
        indices=jnp.where(touches, indices, 0),
    )


def _forced(
    pairs: jax.Array, indices: jax.Array, overlaps: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(indices, overlaps, which are forced) where each ground truth has its best box; pairs [..., N, M]."""
    place = jax.lax.broadcasted_iota(jnp.int32, pairs.shape, pairs.ndim - 2)
    best = pairs.max(axis=-2, keepdims=True)
    first = jnp.where(pairs == best, place, pairs.shape[-2]).min(axis=-2, keepdims=True)
    wins = jnp.where((place == first) & (best > 0), pairs, 0)
    overlap = wins.max(axis=-1)
    number = jax.lax.broadcasted_iota(jnp.int32, pairs.shape, pairs.ndim - 1)
    index = jnp.where(wins == overlap[..., None], number, pairs.shape[-1]).min(axis=-1)
    forced = overlap > 0
    return jnp.where(forced, index, indices), jnp.where(forced, overlap, overlaps), forced


def part_inside(boxes: ArrayLike, regions: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """The largest part of each box that lies in one of the regions.

    part_n = max over m in where of |box_n and region_m| / |box_n|

    So COCO's evaluation tells what lies in a crowd: a box within it belongs to it however small it is, where
    the intersection over union would be small. No gradient flows; a box or a region without area, or NaN,
    gives 0.

    Args:
      boxes: [..., N, 4] pixels.
      regions: [..., M, 4] pixels; M may be 0.
      where: bool [..., M], which regions take part; None for all.

    Returns:
      float [..., N] in 0 .. 1.

    Raises:
      ValueError: for shapes that do not fit.

    >>> crowd = jnp.array([[0.0, 0.0, 100.0, 50.0]])
    >>> part_inside(jnp.array([[10.0, 10.0, 20.0, 20.0], [90.0, 0.0, 110.0, 20.0]]), crowd)
    Array([1. , 0.5], dtype=float32)
    """
    boxes, regions = (jax.lax.stop_gradient(array) for array in as_floats(boxes, regions))
    where = jnp.ones(regions.shape[:-1], bool) if where is None else jnp.asarray(where)
    if boxes.ndim < 2 or boxes.shape[:-2] != regions.shape[:-2] or where.shape != regions.shape[:-1]:
        raise ValueError(
            f"boxes {boxes.shape}, regions {regions.shape} and where {where.shape} must be [..., N, 4],"
            " [..., M, 4] and [..., M]"
        )
    if where.dtype != bool:
        raise ValueError(f"where must be bool, not {where.dtype}: say which regions take part")
    if regions.shape[-2] == 0:
        return jnp.zeros(boxes.shape[:-1], jnp.float32)
    one, other = ([side[..., None] for side in sides(boxes)], [side[..., None, :] for side in sides(regions)])
    across, down = (
        jnp.minimum(one[axis + 2], other[axis + 2]) - jnp.maximum(one[axis], other[axis]) for axis in (0, 1)
    )
    both = jnp.maximum(across, 0) * jnp.maximum(down, 0)
    own = area(boxes)[..., None]
    # NaN is no overlap.
    some = where[..., None, :] & (both > 0) & (own > 0)
    return jnp.where(some, both / jnp.where(some, own, 1), 0).max(axis=-1)


def _check_overlaps(foreground: float, background: float | None) -> float:
    if not 0 < foreground <= 1:
        raise ValueError(f"foreground={foreground} must be above 0, up to 1: an object's least overlap")
    if background is None:
        return foreground
    if not 0 < background <= foreground:
        raise ValueError(f"background={background} must be above 0, up to foreground={foreground}")
    return background


def _check(boxes: jax.Array, gt_boxes: jax.Array, gt_labels: jax.Array, where: jax.Array) -> None:
    if gt_boxes.shape != (*gt_labels.shape, 4) or where.shape != gt_labels.shape:
        raise ValueError(
            f"gt_boxes {gt_boxes.shape}, gt_labels {gt_labels.shape} and where {where.shape} must be"
            " [..., M, 4], [..., M] and [..., M]"
        )
    if where.dtype != bool:
        raise ValueError(f"where must be bool, not {where.dtype}: say which ground truth takes part")
    if boxes.ndim < 2 or boxes.shape[:-2] != gt_labels.shape[:-1]:
        raise ValueError(f"boxes {boxes.shape} and gt_boxes {gt_boxes.shape} must have the same leading axes")
