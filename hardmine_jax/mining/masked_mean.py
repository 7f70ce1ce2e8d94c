"""From per-unit losses and a choice to the scalar that is differentiated."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining.types import (
    ArrayLike,
    Scalar,
    at_least_single,
    check_number,
    check_real,
    check_where,
)


def masked_mean(
    losses: ArrayLike,
    *,
    where: ArrayLike | None,
    weights: ArrayLike | None = None,
    denominator: Scalar | None = None,
) -> jax.Array:
    """Sum of the kept losses over their number, or over a fixed denominator.

    mean = sum_i [where_i] weights_i losses_i / (denominator or max(1, sum_i [where_i]))

    Nothing kept gives 0 with a gradient of zeros. An inf or NaN in a slot that is not kept reaches neither
    the value nor the gradient with respect to `losses`; one in a kept slot does. (Where the losses
    themselves were computed with an infinite derivative, multiplying that by the zero arriving here
    makes NaN: make the loss safe there, as `optax.safe_norm` does.)

    The fixed denominator is what HRNet, CPN and mmpose use: k times the number of images, even where
    fewer than k units take part.

    Args:
      losses: [...], float, integer or bool (then it is the fraction of True).
      where: bool, of the shape of losses: what a selector returned. None for all.
      weights: of the shape of losses, with their gradient, as `focal_weights` or `emphasis_weights` give
        them; None for 1 each. They are not in the denominator.
      denominator: one positive number, which may be traced; None for the number of kept slots.

    Returns:
      [], float32 (float64 for float64 losses), summed in that precision.

    Raises:
      ValueError: if `where` is not bool or of another shape, weights have another shape, or the denominator
        is not one positive number.
      TypeError: for complex losses.

    >>> losses = jnp.array([1.0, 3.0, float("nan")])
    >>> masked_mean(losses, where=jnp.array([True, True, False]))
    Array(2., dtype=float32)
    >>> masked_mean(losses, where=jnp.array([True, True, False]), denominator=8)
    Array(0.5, dtype=float32)
    >>> masked_mean(losses, where=jnp.array([True, True, False]), weights=jnp.array([1.0, 2.0, 0.0]))
    Array(3.5, dtype=float32)
    """
    losses = check_real(jnp.asarray(losses))
    where = check_where(losses, where)
    if weights is not None:
        losses = _weighted(losses, jnp.asarray(weights), where)
    if denominator is not None:
        check_number("denominator", denominator)
    if denominator is not None and not isinstance(denominator, jax.Array) and not denominator > 0:
        raise ValueError(f"denominator={denominator} must be positive")
    dtype = at_least_single(losses.dtype)
    total = jnp.where(where, losses, jnp.zeros((), losses.dtype)).sum(dtype=dtype)
    count = jnp.maximum(where.sum(dtype=dtype), 1) if denominator is None else jnp.asarray(denominator, dtype)
    return total / count


def _weighted(losses: jax.Array, weights: jax.Array, where: jax.Array) -> jax.Array:
    if weights.shape != losses.shape:
        raise ValueError(f"weights of shape {weights.shape} != losses {losses.shape}: broadcast them first")
    dtype = at_least_single(losses.dtype)
    # Both made safe before the product: 0 times inf would make a NaN of either's gradient.
    losses, weights = (jnp.where(where, x.astype(dtype), 0) for x in (losses, weights))
    return losses * weights
