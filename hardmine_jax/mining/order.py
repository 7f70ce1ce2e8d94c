"""An exact, total order of losses, and the choice of the first k of it.

Losses become signed integers in the same order, so that NaN, infinities, signed zeros and ties have one
meaning on every backend, and so that no participating loss is as low as a slot that takes no part.
"""

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.layout import check_whole
from hardmine_jax.mining.types import at_least_single, check_real

# Up to here counting the harder units of each pair is faster (CPU, 64 rows); it takes N^2 comparisons.
_PAIRWISE_UNITS = 64


def order_keys(losses: jax.Array) -> jax.Array:
    """Integer keys in the order of the losses: -inf < ... < -0.0 == 0.0 < ... < inf < NaN.

    Args:
      losses: [..., N], real: float, integer or bool.

    Returns:
      [..., N], int32 (int64 where the losses have 64 bits).

    Raises:
      TypeError: for complex losses.
      ValueError: where the units are cut over an Explicit axis of the mesh.
    """
    check_real(losses)
    check_whole(losses)
    signed = jnp.int64 if losses.dtype.itemsize == 8 else jnp.int32
    if jnp.issubdtype(losses.dtype, jnp.floating):
        keys = _float_keys(losses.astype(at_least_single(losses.dtype)), signed)
        # LLVM may take a bfloat16 to float32 and back wherever it is used, and x86's instruction for that
        # makes 0 of subnormals (llvm/llvm-project#221052): keys made anew for each use would not agree.
        return jax.lax.optimization_barrier(keys) if losses.dtype == jnp.bfloat16 else keys
    if losses.dtype in (jnp.uint32, jnp.uint64):
        return jax.lax.bitcast_convert_type(losses, signed) ^ jnp.iinfo(signed).min
    return losses.astype(signed)


def _float_keys(losses: jax.Array, signed: jax.typing.DTypeLike) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(losses, signed)
    lowest, highest = jnp.iinfo(signed).min, jnp.iinfo(signed).max
    # The bits of a negative float rise as it falls. -0.0 is told by its bits: compared as a float, a
    # subnormal loss would count as zero too on hardware that flushes it.
    keys = jnp.where(bits < 0, bits ^ highest, bits)
    return jnp.where(jnp.isnan(losses), highest, jnp.where(bits == lowest, 0, keys))


def participating(keys: jax.Array, where: jax.Array) -> jax.Array:
    """The keys, with the lowest integer where a unit takes no part and nowhere else.

    Args:
      keys: int32 or int64 [..., N].
      where: bool [..., N].

    Returns:
      [..., N], of the dtype of keys.
    """
    lowest = jnp.iinfo(keys.dtype).min
    return jnp.where(where, jnp.maximum(keys, lowest + 1), lowest)


# Compiled as one even where the caller is not: a loop alone would be compiled again at every call.
@jax.jit
def keep_first(keys: jax.Array, *, k: int | jax.Array, where: jax.Array) -> jax.Array:
    """Marks the min(k, participating) highest keys of each row, ties to the lowest index.

    Args:
      keys: int32 or int64 [..., N].
      k: 0 <= k <= N, a Python int; or an integer array, [] or one a row [...], which may be traced and
        counts as 0 below 0.
      where: bool [..., N].

    Returns:
      bool [..., N], a subset of `where`.
    """
    k = jnp.broadcast_to(jnp.asarray(k).astype(jnp.int32), keys.shape[:-1])[..., None]
    # The zeros vary over the devices of `shard_map` as the keys do: a loop's state has to from the start.
    k = jnp.clip(k, 0, count(where)) + jnp.zeros_like(keys[..., :1], dtype=jnp.int32)
    keys = participating(keys, where)
    if keys.shape[-1] <= _PAIRWISE_UNITS:
        return _first_by_counting(keys, k) & where
    # v5e, 32 x 8,732: words 257 us, bytes 343; a sort is slow. H200, 16 x 2,000: sort 0.18 ms, bytes 1.1.
    first = jax.lax.platform_dependent(
        keys, k, cpu=_first_by_bytes, cuda=_first_by_sorting, default=_first_by_words
    )
    return first & where


def highest(keys: jax.Array, *, k: int, where: jax.Array) -> jax.Array:
    """The k highest keys of each row, in the order of the units; the lowest integer where these run out.

    Args:
      keys: int32 or int64 [..., N].
      k: 0 <= k <= N, a Python int.
      where: bool [..., N].

    Returns:
      [..., k], of the dtype of keys.
    """
    if k == keys.shape[-1]:
        return participating(keys, where)
    # `lax.top_k` of integers is a full sort on CPU, a hundred times slower.
    rank = jnp.cumsum(keep_first(keys, k=k, where=where), axis=-1, dtype=jnp.int32)
    lowest = jnp.iinfo(keys.dtype).min
    places = first_reaching(rank, counting(k, rank.ndim))
    picked = jnp.take_along_axis(keys, jnp.minimum(places, keys.shape[-1] - 1), axis=-1)
    return jnp.where(places < keys.shape[-1], jnp.maximum(picked, lowest + 1), lowest)


@jax.jit
def first_reaching(ordered: jax.Array, wanted: jax.Array) -> jax.Array:
    """int32 [..., K]: where each row [..., N], which rises, reaches the numbers wanted [..., K]; N: nowhere.

    A binary search. `jnp.searchsorted` is for one row, and as of JAX 0.12 its vmap fails where a mesh axis is
    Explicit or, in shard_map, not manual.
    """
    num_units = ordered.shape[-1]
    if num_units == 0:
        return jnp.zeros_like(wanted, dtype=jnp.int32)
    below = jnp.zeros_like(ordered[..., :1], dtype=jnp.int32) + jnp.zeros_like(wanted, dtype=jnp.int32)
    for bit in reversed(range(num_units.bit_length())):
        further = jnp.minimum(below + 2**bit, num_units)
        passed = jnp.take_along_axis(ordered, further - 1, axis=-1, mode="promise_in_bounds") < wanted
        below = jnp.where(passed, further, below)
    return below


def counting(number: int, ndim: int) -> np.ndarray:
    """int32 [1, ..., number], of ndim axes: 1, 2, ... number."""
    return np.arange(1, number + 1, dtype=np.int32).reshape((1,) * (ndim - 1) + (-1,))


def count(where: jax.Array) -> jax.Array:
    """How many are True in each row: bool [..., N] -> int32 [..., 1]."""
    return _count(where, axis=-1)


def _first_by_counting(keys: jax.Array, k: jax.Array) -> jax.Array:
    num_units = keys.shape[-1]
    mine, other = keys[..., :, None], keys[..., None, :]
    shape = (1,) * (keys.ndim - 1) + (num_units, num_units)
    earlier = np.tri(num_units, k=-1, dtype=bool).reshape(shape)
    return ((other > mine) | ((other == mine) & earlier)).sum(axis=-1, dtype=jnp.int32) < k


def _first_by_sorting(keys: jax.Array, k: jax.Array) -> jax.Array:
    places = jax.lax.broadcasted_iota(jnp.int32, (1,) * (keys.ndim - 1) + keys.shape[-1:], keys.ndim - 1)
    kth = jnp.where(places == keys.shape[-1] - k, jnp.sort(keys, axis=-1), jnp.iinfo(keys.dtype).min)
    kth = jnp.max(kth, axis=-1, keepdims=True)
    # No unit is wanted: the highest integer, above which none is.
    return _first_down_to(keys, jnp.where(k > 0, kth, jnp.iinfo(keys.dtype).max), k)


def _first_by_words(keys: jax.Array, k: jax.Array) -> jax.Array:
    """O(N), whatever k: the k-th highest key is found bit by bit."""
    num_bits, lowest = 8 * keys.dtype.itemsize, jnp.iinfo(keys.dtype).min

    def set_bit(step: jax.Array, level: jax.Array) -> jax.Array:
        # The sum of the lowest integer and its highest bit is 0, as it should be.
        higher = level + (jnp.ones_like(level) << jnp.asarray(num_bits - 1 - step, level.dtype))
        return jnp.where(count(keys >= higher) >= k, higher, level)

    start = jnp.full_like(k, lowest, dtype=keys.dtype)
    return _first_down_to(keys, jax.lax.fori_loop(0, num_bits, set_bit, start), k)


def _first_down_to(keys: jax.Array, kth: jax.Array, k: jax.Array) -> jax.Array:
    """The first k keys, where the k-th highest, [..., 1], is known: those above it, then ties with it."""
    above = keys > kth
    ties = _first_ties(_tiles(keys == kth), (k - count(above))[..., None])
    return above | _untiled(ties, keys.shape)


def _first_by_bytes(keys: jax.Array, k: jax.Array) -> jax.Array:
    """O(N), whatever k: the k-th highest key is found byte by byte, then the ties with it are cut.

    Bytes in tiles of up to 127 rows can be counted in bytes, several times faster than as integers on CPU.
    """
    shape, num_bytes = keys.shape, keys.dtype.itemsize
    unsigned = jnp.uint64 if num_bytes == 8 else jnp.uint32
    keys = _tiles(jax.lax.bitcast_convert_type(keys ^ jnp.iinfo(keys.dtype).min, unsigned))
    k = k[..., None]

    def append_byte(step: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        prefix, k = state
        # Under `jax.disable_jit` the step is Python's.
        rest = keys >> jnp.asarray(8 * (num_bytes - 1 - step), unsigned)
        # As a signed byte in the order of the unsigned one.
        byte = rest.astype(jnp.uint8).astype(jnp.int8) ^ np.int8(-128)
        byte = jnp.where(rest >> 8 == prefix, byte, np.int8(-128))
        level = _kth_highest_byte(byte, k)
        prefix = (prefix << 8) | (level + 128).astype(unsigned)
        return prefix, k - _count_tiles(byte > level.astype(jnp.int8))

    kth, spare = jax.lax.fori_loop(0, num_bytes, append_byte, (jnp.zeros_like(k, dtype=unsigned), k))
    return _untiled((keys > kth) | _first_ties(keys == kth, spare), shape)


def _tiles(keys: jax.Array) -> jax.Array:
    """[..., N] -> [..., rows, columns] row by row, at most 127 rows, filled with 0 (False)."""
    num_units = keys.shape[-1]
    columns = 64 * -(-num_units // (127 * 64))
    rows = -(-num_units // columns)
    widths = [(0, 0)] * (keys.ndim - 1) + [(0, rows * columns - num_units)]
    return jnp.pad(keys, widths).reshape(*keys.shape[:-1], rows, columns)


def _untiled(tiles: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return tiles.reshape(*shape[:-1], tiles.shape[-2] * tiles.shape[-1])[..., : shape[-1]]


def _count_tiles(where: jax.Array) -> jax.Array:
    return where.sum(axis=-2, keepdims=True, dtype=jnp.int8).sum(axis=-1, keepdims=True, dtype=jnp.int32)


def _kth_highest_byte(byte: jax.Array, k: jax.Array) -> jax.Array:
    """int32 [..., 1, 1]: the highest level that k bytes reach."""

    def raise_level(step: jax.Array, level: jax.Array) -> jax.Array:
        higher = level + (jnp.ones_like(level) << (7 - step))
        return jnp.where(_count_tiles(byte >= higher.astype(jnp.int8)) >= k, higher, level)

    return jax.lax.fori_loop(0, 8, raise_level, jnp.full_like(k, -128))


def _first_ties(tied: jax.Array, number: jax.Array) -> jax.Array:
    """The first `number` ties of tiles [..., rows, columns]: whole rows, then a part of one."""
    up_to_row = jnp.cumsum(tied.sum(axis=-1, keepdims=True, dtype=jnp.int32), axis=-2)
    whole = _count(up_to_row <= number, axis=-2)
    number = number - jnp.where(up_to_row <= number, up_to_row, 0).max(axis=-2, keepdims=True)
    row, column = (jax.lax.broadcasted_iota(jnp.int32, tied.shape, tied.ndim - axis) for axis in (2, 1))
    up_to_column = jnp.cumsum((tied & (row == whole)).any(axis=-2, keepdims=True), axis=-1, dtype=jnp.int32)
    end = whole * tied.shape[-1] + _count(up_to_column <= number, axis=-1)
    return tied & (row * tied.shape[-1] + column < end)


def _count(where: jax.Array, *, axis: int) -> jax.Array:
    return where.sum(axis=axis, keepdims=True, dtype=jnp.int32)
