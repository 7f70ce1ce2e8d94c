"""A choice of any number of units, fitted into a buffer of static length."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hardmine_jax.mining.order import first_reaching, keep_first, order_keys


class Fitted(NamedTuple):
    """Kept units by index.

    Attributes:
      keep: bool [capacity], True for the first min(selected, capacity) slots.
      indices: int32 [capacity], within [0, N): kept units in rising order; in the slots that stayed free the
        first kept unit once more (0 if there is none).
      num_selected: int32 [], before anything was dropped.
      num_dropped: int32 [], max(0, num_selected - capacity).
    """

    keep: jax.Array
    indices: jax.Array
    num_selected: jax.Array
    num_dropped: jax.Array


def fit(losses: jax.Array, keep: jax.Array, *, capacity: int) -> Fitted:
    """The kept units, or the `capacity` hardest of them where more are kept (ties to the lowest index).

    Free slots repeat a kept unit, not an arbitrary one: an arbitrary one may be padding, whose derivative is
    not finite and would make NaN of the zero that arrives there.

    Args:
      losses: [N].
      keep: bool [N].
      capacity: static, 1 <= capacity <= N.
    """
    num_selected = keep.sum(dtype=jnp.int32)
    if capacity < keep.shape[0]:
        keep = keep_first(order_keys(losses), k=capacity, where=keep)
    counted = jnp.cumsum(keep, dtype=jnp.int32)
    slots = jnp.arange(1, capacity + 1, dtype=jnp.int32)
    filled = slots <= counted[-1]
    # The unit by which so many are kept. A search in the running count needs no scatter over N.
    indices = first_reaching(counted, slots)
    indices = jnp.where(filled, indices, jnp.where(filled[0], indices[0], 0))
    return Fitted(filled, indices, num_selected, jnp.maximum(num_selected - capacity, 0))


def best_first(scores: jax.Array, keep: jax.Array, *, capacity: int) -> tuple[jax.Array, jax.Array]:
    """The kept units in the order of their scores, ties by index: (indices int32 [capacity], which are kept).

    Slots that stayed free come last. Arguments as for `fit`.
    """
    kept = fit(scores, keep, capacity=capacity)
    keys = order_keys(scores)[kept.indices]
    # Stable, and the indices rise: so ties stay in the order in which they were kept.
    order = jnp.argsort(jnp.where(kept.keep, ~keys, jnp.iinfo(keys.dtype).max), stable=True)
    return kept.indices[order], kept.keep[order]
