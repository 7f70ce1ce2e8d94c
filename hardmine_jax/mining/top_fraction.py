"""The hardest part of each row."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining.order import count, keep_first, order_keys
from hardmine_jax.mining.types import ArrayLike, Count, Scalar, check_count_a_row, check_units

# Four roundings of float32: 0.3 of 10 is 3, though neither 0.3 nor the product is that exactly.
_SLACK = 1 - 2.0**-22


def top_fraction(
    losses: ArrayLike, *, fraction: Scalar, min_kept: Count = 1, where: ArrayLike | None = None
) -> jax.Array:
    """Keeps the hardest `fraction` of what takes part in each row, and at least min_kept units.

    keep = top_k(losses, k=max(ceil(fraction * P), min_kept), where=where),  P = #{i: where_i}

    Ties go to the lowest index and a NaN that takes part is hardest, as in `top_k`. The choice carries no
    gradient. nnU-Net's `TopKLoss` keeps 0.1 of the pixels; Rho-1 the 0.6 of the tokens whose loss exceeds a
    reference model's the most (2404.07965, section 2.2: the difference goes in as `losses`); reinforcement
    learning of language models on the 0.2 of the tokens of highest entropy: 2506.01939.

    Args:
      losses: [..., N], or any other score, larger is harder.
      fraction: in (0, 1]; may be traced (a schedule), then what is outside counts as the nearer end. The
        product is made in float32, where up to four roundings above a whole number count as that number.
      min_kept: 0 <= min_kept <= N, a Python int; or an integer array, [] or one a row [...], which may be
        traced.
      where: bool [..., N], True takes part; None for all.

    Returns:
      bool [..., N], a subset of `where`.

    Raises:
      ValueError: for a static fraction outside (0, 1], a static min_kept < 0 or > N, or a `where` that is not
        bool or of another shape.
      TypeError: if min_kept is no integer, or losses are complex.

    >>> losses = jnp.array([3.0, 1.0, 4.0, 2.0])
    >>> top_fraction(losses, fraction=0.5)
    Array([ True, False,  True, False], dtype=bool)
    >>> top_fraction(losses, fraction=0.5, where=losses < 3.5)
    Array([ True, False, False,  True], dtype=bool)
    """
    losses, where = check_units(losses, where)
    if not isinstance(fraction, jax.Array) and not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} must lie in (0, 1]: the part of the units that is kept")
    min_kept = check_count_a_row("min_kept", min_kept, losses, least=0)
    participating = count(where)[..., 0]
    wanted = jnp.asarray(fraction, jnp.float32).clip(0, 1) * participating.astype(jnp.float32)
    k = jnp.ceil(wanted * _SLACK).astype(jnp.int32)
    return keep_first(order_keys(losses), k=jnp.maximum(k, min_kept), where=where)
