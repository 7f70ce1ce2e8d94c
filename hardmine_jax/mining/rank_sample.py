"""Units drawn by their rank: the hardest surely, the easier the less likely."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining.order import count, first_reaching, keep_first, order_keys, participating
from hardmine_jax.mining.types import ArrayLike, Count, Scalar, check_count_a_row, check_units


def rank_sample(
    key: jax.Array,
    losses: ArrayLike,
    *,
    beta: Scalar,
    k: Count | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Keeps each unit with a probability that is a power of its rank among those that take part.

    P(keep_i) = (rank_i / P)^beta,  rank_i = #{j in where: losses_j <= losses_i},  P = #{i: where_i}

    So the hardest is always kept and units of the same loss alike; on average about 1 / (beta + 1) of them.
    With `k`, min(k, P) units are kept: drawn one after another without putting back, in proportion to the
    same powers. A NaN that takes part is hardest, as in `top_k`. The choice carries no gradient.

    Selective backprop, 1910.00762, section 3, where the rank is taken among recent losses: here it is among
    those of the row.

    Args:
      key: a PRNG key; use a new one each step.
      losses: [..., N], or any other score, larger is harder.
      beta: 0 (all alike) or more; may be traced.
      k: how many to keep, 1 <= k <= N, a Python int; or an integer array, [] or one a row [...], which may be
        traced and is clipped to what takes part. None: as many as are drawn.
      where: bool [..., N], True takes part; None for all.

    Returns:
      bool [..., N], a subset of `where`.

    Raises:
      ValueError: for a static beta that is negative or not finite, a static k out of range, or a `where` that
        is not bool or of another shape.
      TypeError: if k is no integer, or losses are complex.

    >>> losses = jnp.arange(8.0)
    >>> keys = jax.random.split(jax.random.key(0), 2000)
    >>> kept = jax.vmap(lambda key: rank_sample(key, losses, beta=1.0))(keys).mean(axis=0)
    >>> kept[jnp.array([1, 7])].round(1)
    Array([0.2, 1. ], dtype=float32)
    >>> int(rank_sample(jax.random.key(0), losses, beta=2.0, k=3).sum())
    3
    """
    losses, where = check_units(losses, where)
    if not isinstance(beta, jax.Array) and not 0 <= beta < float("inf"):
        raise ValueError(f"beta={beta} must be finite and 0 or more: the power of the rank")
    if k is not None:
        k = check_count_a_row("k", k, losses, least=1)
    beta = jnp.asarray(beta, jnp.float32)
    share = _ranks(order_keys(losses), where) / jnp.maximum(count(where), 1).astype(jnp.float32)
    if k is None:
        return where & (jax.random.uniform(key, losses.shape) < share**beta)
    # The k largest of log-probabilities with Gumbel noise are a draw without putting back.
    scores = beta * jnp.log(jnp.where(where, share, 1.0)) + jax.random.gumbel(key, losses.shape)
    return keep_first(order_keys(scores), k=k, where=where)


def _ranks(keys: jax.Array, where: jax.Array) -> jax.Array:
    """float32 [..., N]: how many that take part are no harder, at least 1 where a unit does."""
    keys = participating(keys, where)
    # Where what is harder begins: the sorted keys reach the next whole number there.
    highest = jnp.iinfo(keys.dtype).max
    beyond = first_reaching(jnp.sort(keys, axis=-1), jnp.minimum(keys, highest - 1) + 1)
    no_harder = jnp.where(keys == highest, keys.shape[-1], beyond)
    return (no_harder - (keys.shape[-1] - count(where))).astype(jnp.float32)
