"""A few units drawn in proportion to their losses, weighted so that the mean stays unbiased."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining.layout import check_whole
from hardmine_jax.mining.types import ArrayLike, Count, at_least_single, check_count_a_row, check_units

# Shares are drawn in whole 2^-28ths: every sum of them is exact, and with a step of a whole row (k=1) still
# fits int32.
_GRAIN = 2**28


def importance_weights(
    key: jax.Array,
    losses: ArrayLike,
    *,
    k: Count,
    uniform: float = 0.1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Weights of k draws with probability in proportion to the loss, whose expectation is 1 for every unit.

    weights_i = draws_i / (k * p_i),  p_i = (1 - uniform) * losses_i / sum(losses) + uniform / participating

    Hence `masked_mean(weights * losses, where=where)` has the expectation of the plain mean over all units,
    and its gradient that of the full gradient: unlike a selector, which keeps the hard units and is biased on
    purpose. Units of weight 0 need no gradient: `keep = weights > 0` has at most k units, which `mine` can
    gather.

    The draws are systematic: one random offset a row, then equal steps through the cumulated p, so a unit is
    drawn floor(k p_i) or ceil(k p_i) times, with less variance than independent draws. Cumulated in integers,
    and weighted by the p of those integers, so that rounding makes no bias however many units there are.
    1803.00942, section 3; the losses as scores: 1511.06343.

    Args:
      key: a PRNG key; use a new one each step.
      losses: [..., N], 0 or more (less counts as 0). Where one that takes part is not finite, only such are
        favoured, so that it reaches the loss.
      k: draws a row, 1 <= k <= N, a Python int; or an integer array, [] or one a row [...], which may be
        traced and is clipped to that.
      uniform: in (0, 1], the part of the draws given evenly: no weight exceeds participating / (k * uniform),
        or 2 where that is more.
      where: bool [..., N], True takes part; None for all.

    Returns:
      float32 [..., N], 0 where a unit takes no part or was not drawn. No gradient.

    Raises:
      ValueError: for a static k out of range, a `uniform` not in (0, 1], a `where` that is not bool or of
        another shape.
      TypeError: if k is no integer.

    >>> losses = jnp.array([1.0, 1.0, 6.0, 0.0])
    >>> keys = jax.random.split(jax.random.key(0), 1000)
    >>> mean = jax.vmap(lambda key: importance_weights(key, losses, k=2))(keys).mean(axis=0)
    >>> bool((jnp.abs(mean - 1) < 0.2).all())
    True
    """
    losses, where = check_units(losses, where)
    check_whole(losses)
    k = check_count_a_row("k", k, losses, least=1)
    if not 0 < uniform <= 1:
        raise ValueError(f"uniform={uniform} must lie in (0, 1]: with none, a loss of 0 could never be drawn")
    k = jnp.maximum(jnp.broadcast_to(k, losses.shape[:-1]), 1)[..., None]
    shares = _shares(losses, uniform, where)
    ends = jnp.cumsum(shares, axis=-1, dtype=shares.dtype)
    # Rounded up, so that k steps reach the end and never more are drawn.
    step = jnp.maximum((ends[..., -1:] + k - 1) // k, 1)
    offset = jax.random.randint(key, step.shape, 0, step).astype(step.dtype)
    draws = (ends - offset + step - 1) // step - (ends - shares - offset + step - 1) // step
    return jnp.where(where, draws.astype(jnp.float32) * (step / jnp.maximum(shares, 1)), 0)


def _shares(losses: jax.Array, uniform: float, where: jax.Array) -> jax.Array:
    """int32 [..., N]: 1 or more for a unit that takes part, together about _GRAIN."""
    dtype = at_least_single(losses.dtype)
    broken = where & ~jnp.isfinite(losses)
    scores = jnp.where(where, jnp.maximum(losses.astype(dtype), 0), 0)
    scores = jnp.where(broken.any(axis=-1, keepdims=True), broken.astype(dtype), scores)
    # Away from both ends of the numbers there are: there a sum overflows, and a reciprocal is flushed to 0.
    scores = scores * jnp.where(scores.max(axis=-1, keepdims=True, initial=0) > 1, 2.0**-64, 2.0**64)
    total = scores.sum(axis=-1, keepdims=True)
    number = jnp.maximum(where.sum(axis=-1, keepdims=True, dtype=dtype), 1)
    evenly = jnp.where(total > 0, jnp.asarray(uniform, dtype), 1)
    share = (1 - evenly) * scores / jnp.where(total > 0, total, 1) + evenly / number
    return jnp.where(where, (share * _GRAIN).astype(jnp.int32) + 1, 0)
