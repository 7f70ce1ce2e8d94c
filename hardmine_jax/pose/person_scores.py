"""How sure one is of a person: the detector's word and the keypoints' together."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining.types import ArrayLike, Scalar, as_floats


def person_scores(keypoint_scores: ArrayLike, box_scores: ArrayLike, *, min_score: Scalar = 0.2) -> jax.Array:
    """The score a predicted person is ranked by.

    score = box_score * mean over {k: keypoint_score_k > min_score} of keypoint_score_k, 0 where there is none

    As in the released code of SimpleBaseline and HRNet (`IN_VIS_THRE` 0.2, `dataset/coco.py`): the threshold
    is on the height of the heatmap alone, and a keypoint at it does not count. `min_score=-inf` is the plain
    mean.

    Args:
      keypoint_scores: [..., K], heights of the heatmaps.
      box_scores: [...], the detector's; ones for boxes of the ground truth.
      min_score: what a keypoint's score must exceed to count.

    Returns:
      [...], float32 (float64 where scores are), in which the comparison is made as well.

    Raises:
      ValueError: if the two do not fit.

    >>> person_scores(jnp.array([[0.75, 0.25, 0.125], [0.1, 0.0, 0.2]]), jnp.array([0.5, 0.9]))
    Array([0.25, 0.  ], dtype=float32)
    """
    keypoint_scores, box_scores = as_floats(keypoint_scores, box_scores)
    if keypoint_scores.shape[:-1] != box_scores.shape:
        raise ValueError(
            f"keypoint_scores {keypoint_scores.shape} and box_scores {box_scores.shape} must be [..., K] and "
            "[...]"
        )
    counts = keypoint_scores > jnp.asarray(min_score, keypoint_scores.dtype)
    total = jnp.where(counts, keypoint_scores, 0).sum(axis=-1)
    return box_scores * (total / jnp.maximum(counts.sum(axis=-1, dtype=total.dtype), 1))
