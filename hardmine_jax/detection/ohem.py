"""Online hard example mining over regions: hard ones that are not copies of one another."""

import jax
import jax.numpy as jnp

from hardmine_jax.detection.nms import non_max_boxes
from hardmine_jax.mining.types import ArrayLike, Scalar, check_count, check_overlap, check_units


def ohem(
    losses: ArrayLike,
    boxes: ArrayLike,
    *,
    k: int,
    iou_threshold: Scalar = 0.7,
    labels: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Keeps the k hardest regions of each image, at most one of each heap of overlapping ones.

    keep = top_k(losses, k, where=non_max(losses, iou(boxes, boxes), threshold=iou_threshold, where))

    Regions that overlap much have much the same loss, so that without suppression one object would be mined
    many times over. Non-maximum suppression with the loss for a score goes from the hardest down, so that the
    k hardest of those it keeps are the first k it keeps, and there it stops: time O(N * k), memory O(N) (on
    accelerators a few times 256 N).
    Ties go to the lowest index, NaN losses count as the hardest, overlap equal to the threshold stays, and no
    gradient flows. OHEM, 1604.03540, section 4.1, where k is B/N, images in a batch N.

    Args:
      losses: [..., N], one a region, larger is harder.
      boxes: [..., N, 4] pixels. A box without area overlaps nothing.
      k: 1 <= k <= N, a Python int: it is the length of a loop.
      iou_threshold: from 0 to 1; 1 suppresses nothing, which `top_k` does faster. May be traced.
      labels: integers [..., N]; regions of different labels then never suppress one another. None: the label
        plays no part, as in the paper.
      where: bool [..., N], True takes part; None for all.

    Returns:
      bool [..., N], a subset of `where`: min(k, regions that survive).

    Raises:
      ValueError: for k < 1 or k > N, a threshold outside 0 .. 1, or shapes that do not fit.
      TypeError: if k is no integer, or losses are complex.

    >>> boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    >>> ohem(jnp.array([3.0, 2.0, 1.0]), boxes, k=2)
    Array([ True, False,  True], dtype=bool)
    >>> ohem(jnp.array([3.0, 2.0, 1.0]), boxes, k=2, labels=jnp.array([1, 0, 0]))
    Array([ True,  True, False], dtype=bool)
    """
    losses, where = check_units(losses, where)
    k = check_count("k", k, losses.shape[-1], least=1)
    check_overlap("iou_threshold", iou_threshold)
    boxes, labels = jnp.asarray(boxes), None if labels is None else jnp.asarray(labels)
    for name, array, shape in (("boxes", boxes, (*losses.shape, 4)), ("labels", labels, losses.shape)):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} of shape {array.shape} != {shape}, for losses {losses.shape}")
    return non_max_boxes(losses, boxes, labels, where, threshold=iou_threshold, max_kept=k)
