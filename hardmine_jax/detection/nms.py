"""Of boxes that overlap, the best one. Boxes are xyxy in pixels."""

import functools

import jax
import jax.numpy as jnp

from hardmine_jax.detection.boxes import iou_rows
from hardmine_jax.mining import kept_indices, non_max
from hardmine_jax.mining.types import AnyArray, ArrayLike, Scalar, check_count, check_overlap, check_units


def nms(
    boxes: ArrayLike,
    scores: ArrayLike,
    *,
    threshold: Scalar,
    max_kept: int,
    labels: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Greedy non-maximum suppression: the best box, then each next one that overlaps no kept one too much.

    A box goes when its overlap with a kept one is above the threshold; equal to it (in float32) it stays.
    Ties in score go to the lowest index; a NaN score that takes part counts as the best, as in `top_k`. No
    gradient flows. Time is O(N * max_kept), memory O(N), on accelerators O(256 N): max_kept is the number of
    boxes one wants, not N.

    Args:
      boxes: [..., N, 4] pixels. A box without area overlaps nothing and so is never suppressed.
      scores: [..., N], larger is better.
      threshold: of IoU, 0 .. 1; may be traced.
      max_kept: 1 <= max_kept <= N, a Python int: of each row, all classes together.
      labels: int [..., N], classes: boxes of different ones never suppress one another. None: all are alike.
      where: bool [..., N], True takes part; None for all.

    Returns:
      (indices int32 [..., max_kept] best first, where bool [..., max_kept]): slots that stayed free come
      last, are False, and hold the index of some box.

    Raises:
      ValueError: for max_kept < 1 or > N, a threshold outside 0 .. 1, or shapes that do not fit.
      TypeError: if max_kept or labels are no integers.

    >>> boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    >>> nms(boxes, jnp.array([0.8, 0.7, 0.9]), threshold=0.5, max_kept=3)
    (Array([2, 0, 0], dtype=int32), Array([ True,  True, False], dtype=bool))
    """
    scores, boxes, labels, where = check_boxes(scores, boxes, labels, where)
    check_overlap("threshold", threshold)
    max_kept = check_count("max_kept", max_kept, scores.shape[-1], least=1)
    keep = non_max_boxes(scores, boxes, labels, where, threshold=threshold, max_kept=max_kept)
    return kept_indices(scores, keep, capacity=max_kept)


def check_boxes(
    scores: ArrayLike, boxes: ArrayLike, labels: ArrayLike | None, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array]:
    """Scores [..., N] without gradient, boxes [..., N, 4], labels int [..., N] or None, where bool [..., N].

    Raises:
      ValueError: for shapes that do not fit.
      TypeError: if labels are no integers.
    """
    scores, where = check_units(scores, where)
    boxes = jax.lax.stop_gradient(jnp.asarray(boxes))
    if boxes.shape != (*scores.shape, 4):
        raise ValueError(f"boxes {boxes.shape} and scores {scores.shape} must be [..., N, 4] and [..., N]")
    if labels is not None:
        labels = jnp.asarray(labels)
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise TypeError(f"labels of {labels.dtype} must be integers: the class of each box")
        if labels.shape != scores.shape:
            raise ValueError(f"labels of shape {labels.shape} != scores {scores.shape}: one for each box")
    return scores, boxes, labels, where


# Compiled as one even where the caller is not: a loop alone would be compiled again at every call.
@functools.partial(jax.jit, static_argnames="max_kept")
def non_max_boxes(
    scores: jax.Array,
    boxes: AnyArray,
    labels: AnyArray | None,
    where: jax.Array,
    *,
    threshold: Scalar,
    max_kept: int,
) -> jax.Array:
    """`mining.non_max` by IoU: of scores [..., N] and boxes [..., N, 4] which are kept, bool [..., N].

    Boxes of different labels [..., N] never suppress one another; None: all are of one kind.
    """
    return non_max(scores, iou_rows(boxes, labels), threshold=threshold, max_kept=max_kept, where=where)
