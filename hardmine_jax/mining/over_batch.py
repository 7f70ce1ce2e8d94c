"""A selector that chooses among all rows at once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hardmine_jax.mining.types import ArrayLike, check_units


def over_batch(selector: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same selector over the units of all rows together: k of the whole batch, not of each image.

    over_batch(select)(losses [..., N]) = select(losses reshaped to [M]) reshaped back

    Args:
      selector: any that takes losses first (`functools.partial(random_k, key)`).

    Returns:
      A selector. Options of the shape of the losses (`where`, `positive`, `group`) are reshaped with them;
      others are handed on. Inside shard_map or pmap a device's own rows are the batch: over all devices that
      is `global_top_k`.

    Raises:
      ValueError: from the returned selector, as from the one given.

    >>> from hardmine_jax.mining.top_k import top_k
    >>> over_batch(top_k)(jnp.array([[5.0, 4.0], [1.0, 2.0]]), k=2)
    Array([[ True,  True],
           [False, False]], dtype=bool)
    """

    @functools.wraps(selector)
    def select(losses: ArrayLike, /, *, where: ArrayLike | None = None, **options: Any) -> jax.Array:
        losses, where = check_units(losses, where)

        def flat(option: Any) -> Any:
            return jnp.reshape(option, -1) if jnp.shape(option) == losses.shape else option

        keep = selector(flat(losses), where=flat(where), **{name: flat(x) for name, x in options.items()})
        return keep.reshape(losses.shape)

    return select
