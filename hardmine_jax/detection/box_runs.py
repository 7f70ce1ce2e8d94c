"""Sums over boxes, a run of them at a time: for gradients with too many addends to lie in memory at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Numbers a run, so that a run stays in a core's cache: measured with 128 to 512 channels.
RUN = 2**17


def sum_over_boxes(
    add: Callable[[jax.Array, Any, jax.Array], jax.Array], total: jax.Array, per_box: Any, numbers_a_box: int
) -> jax.Array:
    """`total` after `add` of every box: a run at a time on CPU, all at once on accelerators.

    Args:
      add: (total, rows, fresh) -> total, where rows is `per_box` cut to [n, ...] and fresh bool [n] is False
        where a box was added before, which happens in the last run: it must add nothing there.
      total: what to begin with.
      per_box: pytree of arrays [N, ...].
      numbers_a_box: size of what `add` makes of one box; RUN of them are made at once.
    """
    count = jax.tree.leaves(per_box)[0].shape[0]
    run = min(count, max(1, RUN // numbers_a_box))
    if count == 0:
        return total
    # What a loop works on has to vary over the devices of `shard_map` from the start, as what is added does.
    for leaf in jax.tree.leaves(per_box):
        total = total + jnp.zeros_like(leaf[:1]).sum().astype(total.dtype)

    def add_run(number: jax.Array, total: jax.Array) -> jax.Array:
        start = jnp.minimum(number * run, count - run)
        rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, run), per_box)
        return add(total, rows, start + jnp.arange(run) >= number * run)

    def in_runs(total: jax.Array, per_box: Any) -> jax.Array:
        del per_box
        return jax.lax.fori_loop(0, -(-count // run), add_run, total)

    def at_once(total: jax.Array, per_box: Any) -> jax.Array:
        return add(total, per_box, jnp.ones(count, bool))

    return jax.lax.platform_dependent(total, per_box, cpu=in_runs, default=at_once)
