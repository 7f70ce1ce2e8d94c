"""Boxes a run of them at a time: for maps and sums with too many numbers to lie in memory at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hardmine_jax.mining.layout import on_mesh_of

# Numbers a run, so that a run stays in a core's cache: measured with 128 to 512 channels.
RUN = 2**17
# On TPU: 32 MB of float32, for which there is room in the memory on the chip (128 MB on v5e).
TPU_RUN = 2**23


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

    def in_runs(total: jax.Array, per_box: Any) -> jax.Array:
        return sum_in_runs(add, total, per_box, run=RUN // numbers_a_box)

    def at_once(total: jax.Array, per_box: Any) -> jax.Array:
        return add(total, per_box, jnp.ones(_count(per_box), bool))

    if not _count(per_box):
        return total
    return jax.lax.platform_dependent(total, per_box, cpu=in_runs, default=at_once)


def sum_in_runs(
    add: Callable[[jax.Array, Any, jax.Array], jax.Array], total: jax.Array, per_box: Any, *, run: int
) -> jax.Array:
    """As `sum_over_boxes`, `run` boxes at a time (one at least)."""

    def turn(total: jax.Array, rows: Any, start: jax.Array, fresh: jax.Array) -> jax.Array:
        del start
        return add(total, rows, fresh)

    return _over_runs(turn, total, per_box, run)


def map_in_runs(
    function: Callable[[Any, Any], jax.Array], shared: Any, per_box: Any, *, run: int
) -> jax.Array:
    """`function(shared, per_box)`, `run` boxes at a time (one at least).

    Args:
      function: (shared, rows) -> [n, ...], where rows is `per_box` cut to [n, ...].
      shared: pytree of arrays.
      per_box: pytree of arrays [N, ...].
    """
    made = jax.eval_shape(function, shared, per_box)
    first = jax.tree.leaves(shared)[0]

    def turn(made: jax.Array, rows: Any, start: jax.Array, fresh: jax.Array) -> jax.Array:
        del fresh
        return jax.lax.dynamic_update_slice_in_dim(made, function(shared, rows), start, axis=0)

    with on_mesh_of(first):
        return _over_runs(turn, _varying(jnp.zeros(made.shape, made.dtype), shared), per_box, run)


def _over_runs(turn: Callable[..., jax.Array], state: jax.Array, per_box: Any, run: int) -> jax.Array:
    count = _count(per_box)
    if not count:
        return state
    run = min(count, max(1, run))

    def one(number: jax.Array, state: jax.Array) -> jax.Array:
        start = jnp.minimum(number * run, count - run)
        rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, run), per_box)
        return turn(state, rows, start, start + jnp.arange(run) >= number * run)

    return jax.lax.fori_loop(0, -(-count // run), one, _varying(state, per_box))


def _varying(state: jax.Array, arrays: Any) -> jax.Array:
    """The state of a loop, which has to vary over the devices of `shard_map` from the start as these do."""
    for leaf in jax.tree.leaves(arrays):
        state = state + jnp.zeros_like(leaf[:1]).sum().astype(state.dtype)
    return state


def _count(per_box: Any) -> int:
    return int(jax.tree.leaves(per_box)[0].shape[0])
