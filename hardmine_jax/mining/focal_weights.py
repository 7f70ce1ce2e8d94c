"""Easy units weighted down smoothly, instead of left out."""

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.types import ArrayLike, Scalar, check_number, check_soft_units


def focal_weights(losses: ArrayLike, *, gamma: Scalar = 2.0, where: ArrayLike | None = None) -> jax.Array:
    """The modulating factor of the focal loss, from cross-entropies.

    weights_i = where_i * (1 - p_i)^gamma,  p_i = exp(-losses_i): the probability given to the right answer

    `masked_mean(weights * losses, where=where)` is the focal loss in value and in gradient: as in the paper
    the factor is differentiated too. For a plain re-weighting put `jax.lax.stop_gradient` around it. The
    paper's alpha is another factor, `jnp.where(positive, 0.25, 0.75)`, and its sum is divided by the number
    of positives: `masked_mean(..., denominator=)`. 1708.02002, section 3.2.

    Args:
      losses: [..., N], cross-entropies in nats, 0 or more (less counts as 0).
      gamma: 0 (all weights 1) or more; may be traced.
      where: bool [..., N], True takes part; None for all.

    Returns:
      [..., N], float32 (float64 for float64 losses), from 0 to 1, 0 where a unit takes no part. A NaN that
      takes part gives NaN, except where gamma is 0 (the product with its loss is NaN there too).

    Raises:
      ValueError: for gamma < 0, or a `where` that is not bool or of another shape.

    >>> focal_weights(-jnp.log(jnp.array([0.9, 0.5, 0.1]))).round(2)
    Array([0.01, 0.25, 0.81], dtype=float32)
    """
    losses, where = check_soft_units(losses, where)
    check_number("gamma", gamma)
    if not isinstance(gamma, jax.Array) and not 0 <= gamma < np.inf:
        raise ValueError(f"gamma={gamma} must be finite and 0 or more")
    gamma = jnp.asarray(gamma, losses.dtype)
    # At and below 0 the power has no finite derivative for gamma < 1, and an infinite one times 0 is NaN.
    smooth = where & ~(losses <= 0)
    weights = (-jnp.expm1(-jnp.where(smooth, losses, 1))) ** gamma
    return jnp.where(smooth, weights, jnp.where(where & (gamma == 0), jnp.ones_like(losses), 0))
