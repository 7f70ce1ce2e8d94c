"""Hard units that are not near-copies of one another."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.order import order_keys
from hardmine_jax.mining.types import ArrayLike, Scalar, check_count, check_number, check_units

SimilarityRow = Callable[[jax.Array], jax.Array]

# Of 8, 16 and 32 the fastest for 2,000 units (CPU).
_SLICES = 8
# Units settled in one round on accelerators.
_BLOCK = 256


def non_max(
    losses: ArrayLike,
    similarity: ArrayLike | SimilarityRow,
    *,
    threshold: Scalar = 0.7,
    max_kept: int | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Keeps the hardest unit, then each next one that is not too similar to any kept one. Greedy and exact.

    keep_i = where_i and all(similarity_ji <= threshold for each kept j harder than i)

    Non-maximum suppression where similarity is the overlap of boxes. Units are taken from the hardest down,
    ties from the lowest index up, NaN first, as in `top_k` (of integer losses the three lowest are a tie).
    Similarity is compared with the threshold in float32 and equal is kept; NaN is no such thing, so it is
    covered. A unit's similarity to itself is never looked at. No gradient flows, neither through losses nor
    through similarity.

    One row of similarities is read for each unit kept, so that max_kept bounds the time: O(N * max_kept).
    Memory is O(N) where a function gives the rows. Accelerators settle 256 units at once and read a row of
    each, kept or not (the function comes under `jax.vmap`), until max_kept are kept: memory is O(256 N).
    OHEM: 1604.03540, section 4.1, with IoU at 0.7.

    Args:
      losses: [..., N], larger is harder.
      similarity: [..., N, N], of which entry [j, i] is read when j is kept; or a function of the index of
        the kept unit, int32 [...] (a scalar for losses [N]), that gives its row [..., N].
      threshold: a number, in the units of similarity; may be traced.
      max_kept: stop after this many, 1 <= max_kept <= N, a Python int: it is the length of a loop. With None
        the loop ends when no unit is left.
      where: bool [..., N], True takes part; None for all.

    Returns:
      bool [..., N], a subset of `where`.

    Raises:
      ValueError: for max_kept < 1, max_kept > N, similarity, `where` or threshold of another shape, `where`
        not bool.
      TypeError: if max_kept is no integer, or losses are complex.

    >>> centres = jnp.array([0.0, 0.1, 1.0, 1.1])
    >>> losses = jnp.array([1.0, 2.0, 4.0, 3.0])
    >>> non_max(losses, lambda index: 1 - jnp.abs(centres - centres[index]), threshold=0.5)
    Array([False,  True,  True, False], dtype=bool)
    """
    losses, where = check_units(losses, where)
    check_number("threshold", threshold)
    if max_kept is not None:
        max_kept = check_count("max_kept", max_kept, losses.shape[-1], least=1)
    similar = _row_function(similarity, losses.shape)
    if losses.shape[-1] == 0:
        return where
    cover = functools.partial(_covered, similar, jnp.asarray(threshold, jnp.float32))
    # 128 of 2,000 boxes, v5e: 900 launches, 1,157 us; blocks 28 each, 61 us, 8 at most: 491 us and a sort.
    return jax.lax.platform_dependent(
        _starting_keys(losses, where),
        cpu=functools.partial(_one_by_one, cover, max_kept),
        default=functools.partial(_in_blocks, cover, max_kept),
    )


def _covered(similar: SimilarityRow, threshold: jax.Array, index: jax.Array) -> jax.Array:
    """bool [..., N]: which units the one at the index, [...], covers where it is kept."""
    return ~(similar(index) <= threshold)


def _one_by_one(cover: SimilarityRow, max_kept: int | None, keys: jax.Array) -> jax.Array:
    """One unit a round, and of its row of similarities nothing stays: what is fastest on CPU."""
    num_units = keys.shape[-1]
    index = jnp.arange(num_units, dtype=jnp.int32).reshape((1,) * (keys.ndim - 1) + (-1,))

    def keep_hardest(keys: jax.Array) -> jax.Array:
        hardest = _reduced(keys, jnp.maximum, jnp.max)
        # The lowest index at which it lies: two reductions, since XLA:CPU has no fast arg-max.
        first = _reduced(jnp.where(keys == hardest, index, num_units), jnp.minimum, jnp.min)
        left = jnp.where(cover(first[..., 0]), jnp.minimum(keys, _out(keys)), keys)
        return jnp.where((index == first) & (hardest > _out(keys)), _kept(keys), left)

    if max_kept is None:
        keys = jax.lax.while_loop(lambda keys: (keys > _out(keys)).any(), keep_hardest, keys)
    else:
        keys = jax.lax.fori_loop(0, max_kept, lambda _, keys: keep_hardest(keys), keys)
    return keys == _kept(keys)


def _in_blocks(cover: SimilarityRow, max_kept: int | None, keys: jax.Array) -> jax.Array:
    """In the order of the keys, the next `_BLOCK` units a round: accelerators wait for each step of a loop.

    Memory is O(_BLOCK * N).
    """
    num_units = keys.shape[-1]
    size = min(num_units, _BLOCK)
    order = jnp.argsort(~keys, axis=-1, stable=True).astype(jnp.int32)
    most = num_units if max_kept is None else max_kept

    def block(number: jax.Array, state: _State) -> _State:
        # The last block begins in the one before: units which are settled.
        start = jnp.minimum(number * size, num_units - size)
        units = jax.lax.dynamic_slice_in_dim(order, start, size, axis=-1)
        more = (state.open.any(axis=-1) & (_number(state.keep) < most)).any().astype(jnp.int32)

        # A loop of one turn or none, since vmap makes of a branch both and a choice.
        def turn(turns: tuple[jax.Array, _State]) -> tuple[jax.Array, _State]:
            return turns[0] - 1, _settle(cover, units, turns[1], most)

        return jax.lax.while_loop(lambda turns: turns[0] > 0, turn, (more, state))[1]

    state = _State(keys > _out(keys), jnp.zeros_like(keys, dtype=bool))
    return jax.lax.fori_loop(0, -(-num_units // size), block, state).keep


class _State(NamedTuple):
    """bool [..., N]: units still to be settled, and those that are kept."""

    open: jax.Array
    keep: jax.Array


def _settle(cover: SimilarityRow, units: jax.Array, state: _State, most: int) -> _State:
    """After the units [..., B], hardest first; `most` are kept of all."""
    size, num_units = units.shape[-1], state.open.shape[-1]
    index = jax.lax.broadcasted_iota(jnp.int32, (1,) * units.ndim + (num_units,), units.ndim)
    here = units[..., None] == index
    covers = jax.vmap(cover, in_axes=-1, out_axes=-2)(units)
    # covers[..., units] as a product with the places: a TPU gathers columns slowly.
    among = jnp.einsum("...in,...jn->...ij", covers.astype(jnp.bfloat16), here.astype(jnp.bfloat16)) > 0
    earlier = np.triu(np.ones((size, size), bool), k=1).reshape((1,) * (units.ndim - 1) + (size, size))
    kept = _greedy((here & state.open[..., None, :]).any(axis=-1), among & earlier)
    before = (kept[..., None] & earlier).sum(axis=-2, dtype=jnp.int32)
    kept = (kept & (before < most - _number(state.keep)[..., None]))[..., None]
    left = state.open & ~(here | (covers & kept)).any(axis=-2)
    return _State(left, state.keep | (here & kept).any(axis=-2))


def _greedy(candidates: jax.Array, covers: jax.Array) -> jax.Array:
    """bool [..., B]: candidates that no kept one covers, by covers [..., B, B], False where i <= j.

    keep_i = candidates_i and not any_j (keep_j and covers_ji)

    There is one such choice. Begun with all candidates and done over and over, it is right for the first n
    after n rounds at the latest, and for all where it changes no more.
    """

    def again(keep: jax.Array) -> jax.Array:
        return candidates & ~(keep[..., None] & covers).any(axis=-2)

    def rounds(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        before = again(again(again(state[1])))
        keep = again(before)
        return (keep != before).any(), keep

    return jax.lax.while_loop(lambda state: state[0], rounds, ((candidates | True).any(), candidates))[1]


def _number(where: jax.Array) -> jax.Array:
    return where.sum(axis=-1, dtype=jnp.int32)


def _kept(keys: jax.Array) -> int:
    return jnp.iinfo(keys.dtype).min


def _out(keys: jax.Array) -> int:
    """The key of a unit that takes no part, or no longer."""
    return jnp.iinfo(keys.dtype).min + 1


def _starting_keys(losses: jax.Array, where: jax.Array) -> jax.Array:
    """Keys above `_out` where a unit takes part: one array tells what is kept, covered and still to come."""
    keys = order_keys(losses)
    return jnp.where(where, jnp.maximum(keys, _out(keys) + 1), _out(keys))


def _reduced(
    values: jax.Array, combine: Callable[..., jax.Array], reduce: Callable[..., jax.Array]
) -> jax.Array:
    """[..., N] -> [..., 1] by a reduction that may count a value twice.

    Slices are combined side by side first: XLA:CPU vectorises that, and no reduction along a short axis.
    """
    num_units = values.shape[-1]
    length = -(-num_units // _SLICES)
    starts = [min(length * number, num_units - length) for number in range(_SLICES)]
    slices = [jax.lax.slice_in_dim(values, start, start + length, axis=-1) for start in starts]
    return reduce(functools.reduce(combine, slices), axis=-1, keepdims=True)


def _row_function(similarity: ArrayLike | SimilarityRow, shape: tuple[int, ...]) -> SimilarityRow:
    if callable(similarity):
        read: SimilarityRow = similarity
    else:
        matrix = jnp.asarray(similarity)
        if matrix.shape != (*shape, shape[-1]):
            raise ValueError(f"similarity of shape {matrix.shape} != {(*shape, shape[-1])}, losses and N")

        def read(index: jax.Array) -> jax.Array:
            return jnp.take_along_axis(matrix, index[..., None, None], axis=-2)[..., 0, :]

    def row(index: jax.Array) -> jax.Array:
        similar = jnp.asarray(read(index))
        if similar.shape != shape:
            raise ValueError(f"similarity(index) of shape {similar.shape} != losses {shape}")
        return jax.lax.stop_gradient(similar).astype(jnp.float32)

    return row
