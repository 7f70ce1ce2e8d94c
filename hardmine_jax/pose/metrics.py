"""How far predicted keypoints are from the true ones. Points are (x, y) in pixels, [..., K, 2]."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining import masked_mean
from hardmine_jax.mining.types import AnyArray, ArrayLike


def pck_correct(
    predicted: AnyArray,
    target: AnyArray,
    *,
    reference: jax.typing.ArrayLike,
    fraction: float = 0.1,
    where: AnyArray | None = None,
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
    """
    distance = jnp.sqrt(jnp.square(predicted - target).sum(axis=-1))
    correct = distance <= fraction * jnp.broadcast_to(reference, distance.shape[:-1])[..., None]
    return correct if where is None else correct & where


def pck(
    predicted: AnyArray,
    target: AnyArray,
    *,
    reference: jax.typing.ArrayLike,
    fraction: float = 0.1,
    where: AnyArray | None = None,
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
    predicted: AnyArray,
    target: AnyArray,
    *,
    reference: jax.typing.ArrayLike,
    fraction: float = 0.5,
    where: AnyArray | None = None,
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
    predicted: AnyArray,
    target: AnyArray,
    *,
    area: jax.typing.ArrayLike,
    sigmas: ArrayLike,
    where: AnyArray | None = None,
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
      [...] in 0 .. 1; 0 where nothing is labelled.

    >>> oks(jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2)), area=50.0, sigmas=jnp.array([0.5]))
    Array(0.7788..., dtype=float32)
    """
    squared = jnp.square(predicted - target).sum(axis=-1)
    where = jnp.ones(squared.shape, bool) if where is None else where
    sigmas = jnp.asarray(sigmas, squared.dtype).reshape((1,) * (squared.ndim - 1) + (-1,))
    # COCO adds the spacing of 1 to the area, so that an object of no area divides by no zero.
    area = jnp.broadcast_to(area, squared.shape[:-1])[..., None] + jnp.finfo(squared.dtype).eps
    similarity = jnp.exp(-squared / (2 * area * (2 * sigmas) ** 2))
    total = jnp.where(where, similarity, 0.0).sum(axis=-1)
    return total / jnp.maximum(where.sum(axis=-1), 1)
