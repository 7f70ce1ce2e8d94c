"""Hard units that are not near-copies of one another."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hardmine_jax.mining.order import order_keys, participating
from hardmine_jax.mining.types import check_count, check_units

SimilarityRow = Callable[[jax.Array], jax.Array]


def non_max(
    losses: jax.Array,
    similarity: jax.Array | SimilarityRow,
    *,
    threshold: float | jax.Array = 0.7,
    max_kept: int | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """Keeps the hardest unit, then each next one that is not too similar to any kept one. Greedy and exact.

    keep_i = where_i and all(similarity_ji <= threshold for each kept j harder than i)

    Non-maximum suppression where similarity is the overlap of boxes. Units are taken from the hardest down,
    ties from the lowest index up, NaN first, as in `top_k`. Similarity is compared with the threshold in
    float32 and equal is kept; NaN is no such thing, so it is covered. A unit's similarity to itself is never
    looked at. No gradient flows, neither through losses nor through similarity.

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
      ValueError: for max_kept < 1, max_kept > N, similarity or `where` of another shape, `where` not bool.
      TypeError: if max_kept is no integer, or losses are complex.

    >>> centres = jnp.array([0.0, 0.1, 1.0, 1.1])
    >>> losses = jnp.array([1.0, 2.0, 4.0, 3.0])
    >>> non_max(losses, lambda index: 1 - jnp.abs(centres - centres[index]), threshold=0.5)
    Array([False,  True,  True, False], dtype=bool)
    """
    losses, where = check_units(losses, where)
    if max_kept is not None:
        max_kept = check_count("max_kept", max_kept, losses.shape[-1], least=1)
    similar = _row_function(similarity, losses.shape)
    keys = participating(order_keys(losses), where)
    lowest = jnp.iinfo(keys.dtype).min
    index = jnp.arange(losses.shape[-1], dtype=jnp.int32).reshape((1,) * (losses.ndim - 1) + (-1,))

    def keep_hardest(state):
        keys, keep = state
        hardest = keys.max(axis=-1, keepdims=True)
        # The lowest index at which it lies: two reductions, since XLA:CPU has no fast arg-max.
        first = jnp.where(keys == hardest, index, losses.shape[-1]).min(axis=-1)
        chosen = (index == first[..., None]) & (hardest > lowest)
        covered = ~(similar(first) <= jnp.asarray(threshold, jnp.float32))
        return jnp.where(chosen | covered, lowest, keys), keep | chosen

    state = keys, jnp.zeros_like(where)
    if max_kept is None:
        return jax.lax.while_loop(lambda state: (state[0] > lowest).any(), keep_hardest, state)[1]
    return jax.lax.fori_loop(0, max_kept, lambda _, state: keep_hardest(state), state)[1]


def _row_function(similarity: jax.Array | SimilarityRow, shape: tuple[int, ...]) -> SimilarityRow:
    if not callable(similarity):
        matrix = jnp.asarray(similarity)
        if matrix.shape != (*shape, shape[-1]):
            raise ValueError(f"similarity of shape {matrix.shape} != {(*shape, shape[-1])}, losses and N")

        def similarity(index):
            return jnp.take_along_axis(matrix, index[..., None, None], axis=-2)[..., 0, :]

    def row(index):
        similar = jnp.asarray(similarity(index))
        if similar.shape != shape:
            raise ValueError(f"similarity(index) of shape {similar.shape} != losses {shape}")
        return jax.lax.stop_gradient(similar).astype(jnp.float32)

    return row
