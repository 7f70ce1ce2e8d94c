"""Suppression that lowers the scores of boxes that overlap, and drops none. Boxes are xyxy in pixels."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from hardmine_jax.detection.boxes import iou_rows
from hardmine_jax.detection.nms import check_boxes
from hardmine_jax.mining.layout import beside
from hardmine_jax.mining.types import (
    ArrayLike,
    Scalar,
    at_least_single,
    check_count,
    check_number,
    check_overlap,
)


def soft_nms(
    boxes: ArrayLike,
    scores: ArrayLike,
    *,
    max_kept: int,
    method: Literal["gaussian", "linear"] = "gaussian",
    sigma: Scalar = 0.5,
    threshold: Scalar = 0.3,
    min_score: Scalar = 0.001,
    labels: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best box, then each next best one, where every box that is taken lowers the scores of those left.

    "gaussian":  score_j *= exp(-iou_ij^2 / sigma)
    "linear":    score_j *= 1 - iou_ij  where iou_ij > threshold

    for each box i that is taken, in turn. Nothing is dropped but what falls to `min_score` or below. Ties go
    to the lowest index. No gradient flows. Time is O(N * max_kept), memory O(N).
    Bodla et al., Soft-NMS, 1704.04503, section 3, equations (3) of both kinds and figure 2.

    Args:
      boxes: [..., N, 4] pixels. A box without area overlaps nothing.
      scores: [..., N], 0 or more, larger is better; a NaN is never taken.
      max_kept: 1 <= max_kept <= N, a Python int: of each row, all classes together.
      method: as above.
      sigma: of "gaussian", above 0; may be traced. The paper's is 0.5.
      threshold: of "linear", an IoU of 0 .. 1; may be traced. The paper's is 0.3.
      min_score: boxes at or below it, once lowered, are not taken; may be traced.
      labels: int [..., N], classes: boxes of different ones leave one another alone. None: all are alike.
      where: bool [..., N], True takes part; None for all.

    Returns:
      (indices int32 [..., max_kept], lowered scores [..., max_kept] in float32 or wider, where bool
      [..., max_kept]), best first; slots that stayed free come last, are False, and hold the index of some
      box and a score of 0.

    Raises:
      ValueError: for an unknown method, max_kept out of range, sigma <= 0, a threshold outside 0 .. 1, or
        shapes that do not fit.
      TypeError: if max_kept or labels are no integers.

    >>> boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [2.0, 0.0, 12.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    >>> indices, lowered, _ = soft_nms(boxes, jnp.array([0.9, 0.8, 0.3]), max_kept=3)
    >>> indices, (100 * lowered).round()
    (Array([0, 1, 2], dtype=int32), Array([90., 33., 30.], dtype=float32))
    """
    if method not in ("gaussian", "linear"):
        raise ValueError(f"method={method!r} must be 'gaussian' or 'linear'")
    scores, boxes, labels, where = check_boxes(scores, boxes, labels, where)
    check_overlap("threshold", threshold)
    for name, number in (("sigma", sigma), ("min_score", min_score)):
        check_number(name, number)
    if not isinstance(sigma, jax.Array) and not 0 < sigma < float("inf"):
        raise ValueError(f"sigma={sigma} must be positive and finite")
    max_kept = check_count("max_kept", max_kept, scores.shape[-1], least=1)
    scores = scores.astype(at_least_single(scores.dtype))
    # Below every score that a box can have.
    scores = jnp.where(where & (scores > min_score), scores, -1)
    number = jnp.asarray(sigma if method == "gaussian" else threshold, scores.dtype)
    # A loop's state has to vary, and lie, from the start as what it meets does.
    scores = beside(scores, boxes[..., 0]) + jnp.zeros_like(boxes[..., 0], scores.dtype)
    least = jnp.asarray(min_score, scores.dtype)
    return _soften(scores, boxes, labels, number, least, method=method, max_kept=max_kept)


# Compiled as one even where the caller is not: a loop alone would be compiled again at every call.
@functools.partial(jax.jit, static_argnames=("method", "max_kept"))
def _soften(
    scores: jax.Array,
    boxes: jax.Array,
    labels: jax.Array | None,
    number: Scalar,
    min_score: Scalar,
    *,
    method: str,
    max_kept: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    row_of = iou_rows(boxes, labels)
    unit = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)

    def take(scores: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        best = scores.max(axis=-1, keepdims=True)
        index = jnp.where(scores == best, unit, scores.shape[-1]).min(axis=-1)
        overlaps = row_of(index).astype(scores.dtype)
        factors = jnp.exp(-jnp.square(overlaps) / number)
        if method == "linear":
            factors = jnp.where(overlaps > number, 1 - overlaps, 1)
        lowered = jnp.where(scores > 0, scores * factors, scores)
        left = (unit != index[..., None]) & (lowered > min_score)
        return jnp.where(left, lowered, -1), (index, best[..., 0])

    _, (indices, taken) = jax.lax.scan(take, scores, length=max_kept)
    indices, taken = jnp.moveaxis(indices, 0, -1), jnp.moveaxis(taken, 0, -1)
    found = taken >= 0
    return indices, jnp.where(found, taken, 0), found
