"""Hard units that are not near-copies of one another."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from hardmine_jax.mining.order import order_keys
from hardmine_jax.mining.types import ArrayLike, Scalar, check_count, check_number, check_units

SimilarityRow = Callable[[jax.Array], jax.Array]

# Of 8, 16 and 32 the fastest for 2,000 units (CPU).
_SLICES = 8


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
    Memory is O(N) where a function gives the rows. OHEM: 1604.03540, section 4.1, with IoU at 0.7.

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
    keys = _starting_keys(losses, where)
    index = jnp.arange(losses.shape[-1], dtype=jnp.int32).reshape((1,) * (losses.ndim - 1) + (-1,))

    def keep_hardest(keys: jax.Array) -> jax.Array:
        hardest = _reduced(keys, jnp.maximum, jnp.max)
        # The lowest index at which it lies: two reductions, since XLA:CPU has no fast arg-max.
        first = _reduced(jnp.where(keys == hardest, index, losses.shape[-1]), jnp.minimum, jnp.min)
        covered = ~(similar(first[..., 0]) <= jnp.asarray(threshold, jnp.float32))
        left = jnp.where(covered, jnp.minimum(keys, _out(keys)), keys)
        return jnp.where((index == first) & (hardest > _out(keys)), _kept(keys), left)

    if max_kept is None:
        keys = jax.lax.while_loop(lambda keys: (keys > _out(keys)).any(), keep_hardest, keys)
    else:
        keys = jax.lax.fori_loop(0, max_kept, lambda _, keys: keep_hardest(keys), keys)
    return keys == _kept(keys)


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
