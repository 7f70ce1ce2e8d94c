"""An array that XLA's CPU compiler works out before what uses it, and not together with it."""

import jax
import jax.numpy as jnp


def materialised(array: jax.Array) -> jax.Array:
    """The array itself, of which on CPU what makes it and what uses it stay two loops.

    Left alone, XLA's CPU compiler makes one loop of a gather and of the reshaping and matrix product that
    follow: it finds the place of each number by divisions, and takes several times as long as both one after
    the other. Accelerators do not, and are given the array as it is.

    Not to be differentiated: for use inside a function that has a gradient of its own.

    Args:
      array: floating, of any shape.

    Returns:
      The same, bit for bit; under jit, vmap and shard_map as well.
    """
    return jax.lax.platform_dependent(array, cpu=_through_a_loop, default=lambda array: array)


def _through_a_loop(array: jax.Array) -> jax.Array:
    # What a loop works on lies in memory. This one takes no turn and copies nothing, which the compiler sees
    # only when it has merged what it merges.
    turns = jax.lax.optimization_barrier(jnp.zeros((), jnp.int32))
    return jax.lax.fori_loop(0, turns, lambda _, array: -array, array)
