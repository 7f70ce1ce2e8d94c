"""How far predicted keypoints are from the true ones. Points are (x, y) in pixels, [..., K, 2].

Of whatever real dtype they are, distances are worked out in float32, or in float64 where points are float64.
"""

import jax
import jax.numpy as jnp

from hardmine_jax.mining import masked_mean
from hardmine_jax.mining.types import ArrayLike, Scalar
from hardmine_jax.pose.types import check_labelled, differences

# Pixels. The square of a distance is still a finite float32, and the similarity there is 0 anyhow.
_FAR = 1e18


def pck_correct(
    predicted: ArrayLike,
    target: ArrayLike,
    *,
    reference: ArrayLike,
    fraction: Scalar = 0.1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Which keypoints lie within a fraction of a reference length of where they should be.

    correct_k = where_k and |predicted_k - target_k| <= fraction * reference

    Args:
      predicted: [..., K, 2] pixels.
      target: [..., K, 2] pixels.
      reference: [...] pixels: one length a person (side of the box, torso, head), or one for all.
      fraction: of the reference.
      where: bool [..., K], True is labelled; None for all.

    Returns:
      bool [..., K]; False where not labelled, and where the prediction is NaN.

    Raises:
      ValueError: if the points are not [..., K, 2], or `where` is not bool [..., K].
    """
    distance = jnp.sqrt(jnp.square(differences(predicted, target)).sum(axis=-1))
    where = check_labelled(where, distance.shape)
    limit = jnp.asarray(fraction, distance.dtype) * jnp.asarray(reference, distance.dtype)
    correct = distance <= jnp.broadcast_to(limit, distance.shape[:-1])[..., None]
    return correct if where is None else correct & where


def pck(
    predicted: ArrayLike,
    target: ArrayLike,
    *,
    reference: ArrayLike,
    fraction: Scalar = 0.1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Percentage of correct keypoints, as a fraction of the labelled ones (0 where none is labelled).

    Arguments and shapes are those of `pck_correct`. Yang and Ramanan, Articulated human detection with
    flexible mixtures of parts (2013).

    Returns:
      [], float32 in 0 .. 1.

    >>> true = jnp.array([[0.0, 0.0], [50.0, 0.0], [0.0, 100.0]])
    >>> pck(true + jnp.array([[3.0, 4.0], [60.0, 80.0], [0.0, 10.0]]), true, reference=100.0)
    Array(0.6666667, dtype=float32)
    """
    correct = pck_correct(predicted, target, reference=reference, fraction=fraction, where=where)
    return masked_mean(correct, where=where)


def pckh(
    predicted: ArrayLike,
    target: ArrayLike,
    *,
    reference: ArrayLike,
    fraction: Scalar = 0.5,
    where: ArrayLike | None = None,
) -> jax.Array:
    """PCK with half the head's length for reference: the measure of MPII (Andriluka et al., 2014).

    Args:
      predicted: [..., K, 2] pixels.
      target: [..., K, 2] pixels.
      reference: [...] pixels, the length of the head: MPII's is 0.6 times the diagonal of the head's box.
      fraction: of the reference.
      where: bool [..., K], True is labelled; None for all.

    Returns:
      [], float32 in 0 .. 1.
    """
    return pck(predicted, target, reference=reference, fraction=fraction, where=where)


def oks(
    predicted: ArrayLike,
    target: ArrayLike,
    *,
    area: ArrayLike,
    sigmas: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Object keypoint similarity, as COCO's evaluation has it.

    oks = mean over labelled k of exp(-|predicted_k - target_k|^2 / (2 area (2 sigma_k)^2))

    Args:
      predicted: [..., K, 2] pixels.
      target: [..., K, 2] pixels.
      area: [...] square pixels of the object, or one number for all.
      sigmas: [K] constants of the keypoints, as in `Skeleton.sigmas`.
      where: bool [..., K], True is labelled; None for all.

    Returns:
      [...] in 0 .. 1; 0 where nothing is labelled. What is not labelled reaches neither value nor gradient.

    Raises:
      ValueError: if the points are not [..., K, 2], `where` is not bool [..., K], or there are not K sigmas.

    >>> oks(jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2)), area=50.0, sigmas=jnp.array([0.5]))
    Array(0.7788..., dtype=float32)
    """
    difference = differences(predicted, target)
    dtype, labels = difference.dtype, difference.shape[:-1]
    labelled = check_labelled(where, labels)
    where = jnp.ones(labels, bool) if labelled is None else labelled
    sigmas = jnp.asarray(sigmas, dtype)
    if sigmas.shape != labels[-1:]:
        raise ValueError(f"sigmas of shape {sigmas.shape} for {labels[-1]} keypoints: give one for each")
    # Cut before it is squared: what is not labelled, or far away, would make NaN of the gradient.
    difference = jnp.clip(jnp.where(where[..., None], difference, 0), -_FAR, _FAR)
    # COCO adds the spacing of 1 to the area, so that an object of no area divides by no zero.
    area = jnp.broadcast_to(jnp.asarray(area, dtype), labels[:-1])[..., None] + jnp.finfo(dtype).eps
    spread = 2 * area * (2 * sigmas.reshape((1,) * (len(labels) - 1) + (-1,))) ** 2
    similarity = jnp.exp(-jnp.square(difference).sum(axis=-1) / jnp.where(where, spread, 1))
    total = jnp.where(where, similarity, 0).sum(axis=-1)
    return total / jnp.maximum(where.sum(axis=-1, dtype=dtype), 1)
