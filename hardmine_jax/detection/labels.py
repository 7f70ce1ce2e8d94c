"""Labels: integers of any width, 0 for background and 1 .. C for objects."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining.types import ArrayLike


def class_numbers(labels: ArrayLike) -> jax.Array:
    """Labels as int32, those that it does not hold as numbers that are no class either.

    Raises:
      TypeError: if they are no integers.
    """
    labels = jax.lax.stop_gradient(jnp.asarray(labels))
    if labels.dtype == bool:
        return labels.astype(jnp.int32)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels of {labels.dtype} must be integers, 0 for background")
    held = jnp.iinfo(labels.dtype)
    # Subtracted from and compared with numbers of classes, 8 bits would wrap around.
    return labels.clip(max(held.min, -1), min(held.max, jnp.iinfo(jnp.int32).max)).astype(jnp.int32)
