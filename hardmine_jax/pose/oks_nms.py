"""Of poses that are near-copies of one another, the best one. Keypoints are (x, y) in pixels, [N, K, 2]."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from hardmine_jax.mining import non_max
from hardmine_jax.mining.fit import best_first
from hardmine_jax.mining.layout import beside
from hardmine_jax.mining.types import (
    AnyArray,
    ArrayLike,
    Scalar,
    as_floats,
    check_count,
    check_overlap,
    check_units,
)
from hardmine_jax.pose.metrics import oks


def oks_nms(
    keypoints: ArrayLike,
    scores: ArrayLike,
    areas: ArrayLike,
    *,
    sigmas: Sequence[float] | AnyArray,
    threshold: Scalar = 0.9,
    max_kept: int,
    where: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Greedy suppression: the best pose, then each next one that no kept one resembles too much.

    similarity_ij = mean over k of exp(-|keypoints_ik - keypoints_jk|^2 / (2 area_ij (2 sigma_k)^2))
    area_ij = (area_i + area_j) / 2

    As in the released code of SimpleBaseline and HRNet (`nms.py`, `oks_iou`): every keypoint counts, however
    low its score, and it hands over as areas those of the crops, the padded boxes of the wanted aspect (not
    of the boxes, nor of the people, as COCO's evaluation has it). With 1.25 padding that is 1.6 times the
    box or more, so that 0.9 is reached further apart.

    A pose goes when its similarity to a kept one is above the threshold; equal to it (in float32) it stays.
    Ties in score go to the lowest index; a NaN score that takes part counts as the best. A pose with a NaN in
    it resembles none. No gradient flows. Memory is O(N K): a row of similarities at a time.

    Args:
      keypoints: [N, K, 2] pixels.
      scores: [N], larger is better.
      areas: [N] square pixels.
      sigmas: K, the dataset's own (`Skeleton.sigmas`).
      threshold: of the similarity, 0 .. 1; may be traced.
      max_kept: 1 <= max_kept <= N, a Python int.
      where: bool [N], True takes part; None for all.

    Returns:
      (indices int32 [max_kept] best first, where bool [max_kept]): slots that stayed free come last, are
      False, and hold the index of some pose.

    Raises:
      ValueError: for max_kept < 1 or > N, a threshold outside 0 .. 1, or shapes that do not fit.
      TypeError: if max_kept is no integer.

    >>> poses = jnp.array([[[0.0, 0.0]], [[1.0, 0.0]], [[60.0, 0.0]]])
    >>> oks_nms(poses, jnp.array([0.8, 0.7, 0.9]), jnp.full(3, 900.0), sigmas=(0.1,), max_kept=3)
    (Array([2, 0, 0], dtype=int32), Array([ True,  True, False], dtype=bool))
    """
    scores, where = check_units(scores, where)
    keypoints, areas = as_floats(keypoints, areas)
    check_overlap("threshold", threshold)
    shape = (*scores.shape, len(sigmas), 2)
    if scores.ndim != 1 or keypoints.shape != shape or areas.shape != scores.shape:
        raise ValueError(
            f"keypoints {keypoints.shape}, scores {scores.shape}, areas {areas.shape} and {len(sigmas)} "
            "sigmas must be [N, K, 2], [N], [N] and K"
        )
    max_kept = check_count("max_kept", max_kept, scores.shape[0], least=1)
    return _suppress(
        keypoints, scores, areas, jnp.asarray(sigmas, jnp.float32), threshold, where, max_kept=max_kept
    )


# Compiled as one even where the caller is not: a loop alone would be compiled again at every call.
@functools.partial(jax.jit, static_argnames="max_kept")
def _suppress(
    keypoints: jax.Array,
    scores: jax.Array,
    areas: jax.Array,
    sigmas: jax.Array,
    threshold: Scalar,
    where: jax.Array,
    *,
    max_kept: int,
) -> tuple[jax.Array, jax.Array]:
    similarity = oks_rows(keypoints, areas, sigmas)
    keep = non_max(scores, similarity, threshold=threshold, max_kept=max_kept, where=where)
    return best_first(scores, keep, capacity=max_kept)


def oks_rows(keypoints: jax.Array, areas: jax.Array, sigmas: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """For `mining.non_max`: the similarity of one pose to all, so that no matrix of N x N is ever built.

    Args:
      keypoints: [N, K, 2] pixels.
      areas: [N] square pixels.
      sigmas: [K].

    Returns:
      A function of an index, int32 [], to [N] in 0 .. 1.
    """

    def row(index: jax.Array) -> jax.Array:
        own, its_area = (beside(array, index)[index][None] for array in (keypoints, areas))
        similarity = oks(keypoints, own, area=(areas + its_area) / 2, sigmas=sigmas)
        return jnp.where(jnp.isnan(similarity), 0.0, similarity)

    return row
