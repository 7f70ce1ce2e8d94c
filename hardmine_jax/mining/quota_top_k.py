"""The hardest units of each group, so many a group."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.layout import beside
from hardmine_jax.mining.order import first_reaching, order_keys, participating
from hardmine_jax.mining.types import AnyArray, ArrayLike, check_units

# Of one step of the search for the k-th key: 16 counts a group stay in a core's own cache for 1,000 groups.
_DIGIT = 4


def quota_top_k(
    losses: ArrayLike, group: ArrayLike, *, k: AnyArray | Sequence[int], where: ArrayLike | None = None
) -> jax.Array:
    """Keeps the k[g] hardest units of each group g of a row: a class, a source, positives and negatives.

    keep_i = where_i and #{j in where: group_j = group_i, unit j before unit i} < k[group_i]

    where j comes before i if it is harder, or as hard and j < i; min(k[g], participating) of each group.
    A NaN that takes part is hardest, as in `top_k`. A unit of a group that k does not count (say -1) is never
    kept. The choice carries no gradient. The cost does not rise with the number of groups.

    With k = [positives, negatives] and `group = labels == 0` these are the quotas of Fast R-CNN's mini-batch,
    64 of 128 regions at most with an object (1504.08083, section 2.3: a quarter), hardest instead of drawn.

    Args:
      losses: [..., N], or any other score, larger is harder.
      group: integer or bool [..., N], from 0.
      k: integers [G] for all rows or [..., G], 0 or more; may be traced, and is clipped to what takes part.
      where: bool [..., N], True takes part; None for all.

    Returns:
      bool [..., N], a subset of `where`.

    Raises:
      ValueError: if a k that is no array is negative, group is not of the shape of the losses, k has no axis
        of groups or other rows, or `where` is not bool or of another shape.
      TypeError: if group or k are no integers, or losses are complex.

    >>> losses = jnp.array([5.0, 4.0, 3.0, 2.0, 1.0])
    >>> quota_top_k(losses, jnp.array([0, 0, 0, 1, 1]), k=[2, 1])
    Array([ True,  True, False,  True, False], dtype=bool)
    """
    losses, where = check_units(losses, where)
    group, k = _check_group(group, losses), _check_quotas(k, losses)
    if losses.shape[-1] == 0:
        return where
    num_groups = k.shape[-1]
    # A row for each of the losses, on the device where that is.
    k = jnp.broadcast_to(k, (*losses.shape[:-1], num_groups)) + jnp.zeros_like(losses[..., :1], jnp.int32)
    # What belongs to no group lies in one of its own, of which none is kept.
    where = where & (group >= 0) & (group < num_groups)
    group = jnp.where(where, group, num_groups)
    k = jnp.concatenate([k, jnp.zeros_like(k[..., :1])], axis=-1)
    keys = participating(order_keys(losses), where)
    return jnp.vectorize(_keep, signature="(n),(n),(g)->(n)")(keys, group, k) & where


def _check_group(group: ArrayLike, losses: jax.Array) -> jax.Array:
    if not isinstance(group, jax.Array):
        # As numpy has them: JAX would make 32 bits of 64.
        group = np.asarray(group)
    if group.dtype == bool:
        group = group.astype(np.int32)
    if not jnp.issubdtype(group.dtype, jnp.integer):
        raise TypeError(f"group of {group.dtype} must be integers: which group each unit belongs to")
    if group.shape != losses.shape:
        raise ValueError(f"group of shape {group.shape} != losses {losses.shape}: broadcast it first")
    # Clipped before the cast, which would make a group that there is of a large number.
    held, most = jnp.iinfo(group.dtype), jnp.iinfo(jnp.int32).max
    clipped = jnp.asarray(group.clip(max(held.min, -1), min(held.max, most)), jnp.int32)
    return beside(clipped, losses)


def _check_quotas(k: AnyArray | Sequence[int], losses: jax.Array) -> jax.Array:
    """int32 [G] or [..., G], between 0 and N."""
    quotas = k if isinstance(k, (jax.Array, np.ndarray)) else np.asarray(k)
    if quotas.ndim and quotas.shape[-1] == 0:
        raise ValueError("k has no group: give a number for each")
    if not jnp.issubdtype(quotas.dtype, jnp.integer):
        raise TypeError(f"k of {quotas.dtype} must be integers: how many to keep of each group")
    if quotas.ndim == 0 or quotas.shape[:-1] not in ((), losses.shape[:-1]):
        raise ValueError(
            f"k of shape {quotas.shape} for losses {losses.shape}: give a number for each group, [G], or one "
            "for each group of each row"
        )
    if quotas is not k and (np.asarray(quotas) < 0).any():
        raise ValueError(f"k={k} has a negative number of units to keep")
    most = min(losses.shape[-1], jnp.iinfo(quotas.dtype).max)
    return jnp.asarray(quotas.clip(0, most), jnp.int32)


def _keep(keys: jax.Array, group: jax.Array, k: jax.Array) -> jax.Array:
    """One row. A sort of 10^6 units takes XLA:CPU 100 ms, counting them by group and digit 1.4 ms a digit."""
    return jax.lax.platform_dependent(keys, group, k, cpu=_keep_by_counting, default=_keep_by_sorting)


def _keep_by_sorting(keys: jax.Array, group: jax.Array, k: jax.Array) -> jax.Array:
    units = jax.lax.broadcasted_iota(jnp.int32, keys.shape, 0)
    group, _, units = jax.lax.sort((group, ~keys, units), num_keys=2, is_stable=True)
    first = first_reaching(group, jax.lax.broadcasted_iota(jnp.int32, k.shape, 0))
    rank = jax.lax.broadcasted_iota(jnp.int32, keys.shape, 0) - first[group]
    # Back by another sort: a scatter takes its units one by one on a TPU.
    return jax.lax.sort((units, rank < k[group]), num_keys=1)[1]


def _keep_by_counting(keys: jax.Array, group: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th highest key of each group, digit by digit; then the ties with it are cut by index."""
    num_bits = 8 * keys.dtype.itemsize
    unsigned = jnp.uint64 if num_bits == 64 else jnp.uint32
    keys = jax.lax.bitcast_convert_type(keys ^ jnp.iinfo(keys.dtype).min, unsigned)
    k = jnp.minimum(k, _count(group, jnp.ones_like(group), k))
    kth, spare = _kth_highest(keys, group, k, num_bits)
    level = kth[group]
    tied = keys == level
    first = jax.lax.cond(
        (_count(group, tied.astype(jnp.int32), k) > spare).any(), _first_ties, _all_ties, tied, group, spare
    )
    return (keys > level) | first


def _all_ties(tied: jax.Array, group: jax.Array, number: jax.Array) -> jax.Array:
    return tied


def _first_ties(tied: jax.Array, group: jax.Array, number: jax.Array) -> jax.Array:
    num_units = tied.shape[0]
    from_the_end = num_units - jax.lax.broadcasted_iota(jnp.int32, tied.shape, 0)
    keys = jnp.where(tied, from_the_end, 0).astype(jnp.uint32)
    last, _ = _kth_highest(keys, group, number, num_units.bit_length())
    return tied & (keys >= last[group]) & (number > 0)[group]


def _kth_highest(
    keys: jax.Array, group: jax.Array, k: jax.Array, num_bits: int
) -> tuple[jax.Array, jax.Array]:
    """(the k-th highest key [G] of each group, how many of those with that key belong to the first k)."""
    num_digits, levels = -(-num_bits // _DIGIT), 1 << _DIGIT

    def append_digit(step: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        prefix, k = state
        # Under `jax.disable_jit` the step is Python's.
        rest = keys >> jnp.asarray(_DIGIT * (num_digits - 1 - step), keys.dtype)
        digit = (rest & (levels - 1)).astype(jnp.int32)
        counted = ((rest >> _DIGIT) == prefix[group]).astype(jnp.int32)
        counts = _count(group * levels + digit, counted, jnp.repeat(k, levels)).reshape(-1, levels)
        at_least = jnp.cumsum(counts[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]
        # The highest digit that k units reach; 0 where none does.
        level = jnp.maximum((at_least >= k[:, None]).sum(axis=1, dtype=jnp.int32) - 1, 0)
        higher = jnp.take_along_axis(at_least - counts, level[:, None], axis=1)[:, 0]
        return (prefix << _DIGIT) | level.astype(keys.dtype), k - higher

    start = jnp.zeros_like(k, dtype=keys.dtype) + jnp.zeros_like(keys[:1])
    k = k + jnp.zeros_like(group[:1])
    return jax.lax.fori_loop(0, num_digits, append_digit, (beside(start, keys), beside(k, keys)))


def _count(places: jax.Array, numbers: jax.Array, like: jax.Array) -> jax.Array:
    """int32, as many as `like` has: the sum of the numbers in each place."""
    return beside(jnp.zeros_like(like), places).at[places].add(numbers, mode="promise_in_bounds")
