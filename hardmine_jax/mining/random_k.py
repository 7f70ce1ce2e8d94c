"""A uniform choice of k units: what hard example mining has to beat."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining.layout import check_whole
from hardmine_jax.mining.order import keep_first
from hardmine_jax.mining.types import ArrayLike, Count, check_count_a_row, check_units


def random_k(key: jax.Array, losses: ArrayLike, *, k: Count, where: ArrayLike | None = None) -> jax.Array:
    """Keeps min(k, participating) units of each row, every such set equally likely.

    Only the shape of the losses matters. Each row draws its own units; the same key draws the same ones.

    Args:
      key: a PRNG key; use a new one each step.
      losses: [..., N].
      k: how many to keep, 1 <= k <= N, a Python int; or an integer array, [] or one a row [...], which may
        be traced and is clipped to what takes part.
      where: bool [..., N], True takes part; None for all.

    Returns:
      bool [..., N], a subset of `where`.

    Raises:
      ValueError: for a static k < 1 or k > N, or a `where` that is not bool or of another shape.
      TypeError: if k is no integer.

    >>> int(random_k(jax.random.key(0), jnp.zeros(17), k=8).sum())
    8
    """
    losses, where = check_units(losses, where)
    check_whole(losses)
    k = check_count_a_row("k", k, losses, least=1)
    lottery = jax.lax.bitcast_convert_type(jax.random.bits(key, losses.shape, jnp.uint32), jnp.int32)
    return keep_first(lottery, k=k, where=where)
