"""Of boxes that overlap, the best one. Boxes are xyxy in pixels."""

import functools

import jax
import jax.numpy as jnp

from hardmine_jax.detection.boxes import iou_rows
from hardmine_jax.mining import non_max
from hardmine_jax.mining.fit import best_first
from hardmine_jax.mining.types import AnyArray, ArrayLike, Scalar, check_count, check_overlap, check_units


def nms(
    boxes: ArrayLike,
    scores: ArrayLike,
    *,
    threshold: Scalar,
    max_kept: int,
    where: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Greedy non-maximum suppression: the best box, then each next one that overlaps no kept one too much.

    A box goes when its overlap with a kept one is above the threshold; equal to it (in float32) it stays.
    Ties in score go to the lowest index; a NaN score that takes part counts as the best, as in `top_k`. No
    gradient flows. Time is O(N * max_kept), memory O(N), on accelerators O(256 N): max_kept is the number of
    boxes one wants, not N.

    Args:
      boxes: [N, 4] pixels. A box without area overlaps nothing and so is never suppressed.
      scores: [N], larger is better. For scores of several classes call it for each: `jax.vmap`.
      threshold: of IoU, 0 .. 1; may be traced.
      max_kept: 1 <= max_kept <= N, a Python int.
      where: bool [N], True takes part; None for all.

    Returns:
      (indices int32 [max_kept] best first, where bool [max_kept]): slots that stayed free come last, are
      False, and hold the index of some box.

    Raises:
      ValueError: for max_kept < 1 or > N, a threshold outside 0 .. 1, or shapes that do not fit.
      TypeError: if max_kept is no integer.

    >>> boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    >>> nms(boxes, jnp.array([0.8, 0.7, 0.9]), threshold=0.5, max_kept=3)
    (Array([2, 0, 0], dtype=int32), Array([ True,  True, False], dtype=bool))
    """
    scores, where = check_units(scores, where)
    boxes = jnp.asarray(boxes)
    if scores.ndim != 1 or boxes.shape != (*scores.shape, 4):
        raise ValueError(f"boxes {boxes.shape} and scores {scores.shape} must be [N, 4] and [N]")
    check_overlap("threshold", threshold)
    max_kept = check_count("max_kept", max_kept, scores.shape[0], least=1)
    keep = non_max_boxes(scores, boxes, None, where, threshold=threshold, max_kept=max_kept)
    return best_first(scores, keep, capacity=max_kept)


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
