"""Units much harder than the easiest one of their row."""

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.order import count, keep_first, order_keys
from hardmine_jax.mining.types import (
    ArrayLike,
    Count,
    Scalar,
    at_least_single,
    check_count_a_row,
    check_number,
    check_units,
)

_MIN_KEPT = 2


def harder_than_easiest(
    losses: ArrayLike,
    *,
    ratio: Scalar = 2.0,
    min_kept: Count = _MIN_KEPT,
    max_kept: Count | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Keeps units whose loss is at least `ratio` times the easiest of their row; between min and max of them.

    H = #{i in where: losses_i >= ratio * min_{j in where} losses_j}
    keep = top_k(losses, k=min(max(H, min_kept), max_kept), where=where)

    For losses that are not negative. Where the easiest is 0, every unit is `ratio` times that, itself
    too. A NaN that takes part is hardest, as in `top_k`, and never the easiest. Compared in float32 (float64
    for float64 losses), a subnormal loss counting as 0 on every backend. The choice carries no gradient.

    The keypoint mining of SLEAP (Pereira et al. 2022, doi:10.1038/s41592-022-01426-1), whose code has the
    same three options. There the choice is made over the batch, from a loss for each keypoint channel, and
    what it keeps is added, times a scale (5), to the mean over all: nothing easy is dropped. That is
    `emphasis_weights(keep, where, hard=5.0)` for `masked_mean`'s weights.

    Args:
      losses: [..., N], larger is harder.
      ratio: 1 or more; may be traced.
      min_kept: 0 <= min_kept <= N, a Python int, where the default of 2 is N where there are fewer units; or
        an integer array, [] or one a row [...], which may be traced. Ties to the lowest index.
      max_kept: as min_kept, at least 1 and min_kept; None for no limit.
      where: bool [..., N], True takes part; None for all.

    Returns:
      bool [..., N], a subset of `where`.

    Raises:
      ValueError: for a ratio < 1 or not finite, a static min_kept or max_kept out of range, min_kept >
        max_kept, a `where` that is not bool or of another shape.
      TypeError: if min_kept or max_kept is no integer, or losses are complex.

    >>> losses = jnp.array([0.5, 0.1, 0.3, 0.15])
    >>> harder_than_easiest(losses)
    Array([ True, False,  True, False], dtype=bool)
    >>> harder_than_easiest(losses, max_kept=2, min_kept=1, ratio=1.2)
    Array([ True, False,  True, False], dtype=bool)
    """
    losses, where = check_units(losses, where)
    check_number("ratio", ratio)
    if not isinstance(ratio, jax.Array) and not 1 <= ratio < np.inf:
        raise ValueError(f"ratio={ratio} must be finite and 1 or more: every unit is as hard as the easiest")
    if isinstance(min_kept, (int, np.integer)) and min_kept == _MIN_KEPT:
        min_kept = min(min_kept, losses.shape[-1])
    min_kept = check_count_a_row("min_kept", min_kept, losses, least=0)
    k = jnp.maximum(_num_hard(losses, ratio, where), min_kept)
    if max_kept is not None:
        max_kept = check_count_a_row("max_kept", max_kept, losses, least=1)
        if isinstance(min_kept, int) and isinstance(max_kept, int) and min_kept > max_kept:
            raise ValueError(f"min_kept={min_kept} > max_kept={max_kept}: no number of units is both")
        k = jnp.minimum(k, max_kept)
    return keep_first(order_keys(losses), k=k, where=where)


def _num_hard(losses: jax.Array, ratio: Scalar, where: jax.Array) -> jax.Array:
    losses = losses.astype(at_least_single(losses.dtype))
    broken = jnp.isnan(losses)
    # Some backends flush subnormals and some do not.
    losses = jnp.where(jnp.abs(losses) < jnp.finfo(losses.dtype).tiny, 0, losses)
    easiest = jnp.where(where & ~broken, losses, jnp.inf).min(axis=-1, keepdims=True, initial=jnp.inf)
    return count(where & (broken | (losses >= jnp.asarray(ratio, losses.dtype) * easiest)))[..., 0]
