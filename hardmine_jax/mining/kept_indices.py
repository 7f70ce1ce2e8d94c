"""From a choice to the indices of what was chosen."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining.fit import best_first
from hardmine_jax.mining.types import ArrayLike, check_choice, check_count, check_units


def kept_indices(losses: ArrayLike, keep: ArrayLike, *, capacity: int) -> tuple[jax.Array, jax.Array]:
    """The kept units of each row by index, hardest first: for who gathers them by hand.

    Of more than `capacity` the hardest stay. Ties go to the lowest index and a NaN is hardest, as in `top_k`.
    A slot that stays free repeats a kept unit, so that what is gathered there is as finite as the rest.
    `mine` gathers, runs and weighs the hard units in one call.

    Args:
      losses: [..., N], or any other score, larger is harder.
      keep: bool [..., N], what a selector returned.
      capacity: static, 1 <= capacity <= N.

    Returns:
      (indices int32 [..., capacity] within [0, N), where bool [..., capacity]: a kept unit is there).

    Raises:
      ValueError: for a capacity out of range, or a `keep` that is not bool or of another shape.
      TypeError: if the capacity is no Python int, or losses are complex.

    >>> indices, where = kept_indices(jnp.array([1.0, 3.0, 2.0]), jnp.array([True, True, False]), capacity=3)
    >>> indices[where]
    Array([1, 0], dtype=int32)
    """
    losses, _ = check_units(losses, None)
    keep = check_choice("keep", keep, losses, "hand over what a selector returned")
    capacity = check_count("capacity", capacity, losses.shape[-1], least=1)

    def one_row(losses: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
        return best_first(losses, keep, capacity=capacity)

    return jnp.vectorize(one_row, signature="(n),(n)->(c),(c)")(losses, keep)
