"""The pure training step `(state, batch) -> (state, metrics)`, the same under jit, pmap and shard_map.

Every leaf of a batch has the examples on its first axis, `[B, ...]`; inside pmap and shard_map, B is the
device's own share.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hardmine_jax.training.state import TrainState

# (params, batch_stats, batch, key, step) -> (loss, (new_batch_stats, metrics))
LossFunction = Callable[
    [Any, Any, Any, jax.Array, jax.Array], tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]
]
Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    loss_fn: LossFunction,
    *,
    axis_name: str | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    gradient_dtype: jax.typing.DTypeLike | None = None,
) -> Step:
    """Builds one step of `params <- params + optimizer(mean gradient of loss_fn)`.

    The loss and the metrics have to be means over examples of equal weight: they are averaged over
    devices and micro-batches, and only a mean of means over equal parts is the mean over all.

    Args:
      loss_fn: `(params, batch_stats, batch, key, step) -> (loss [], (new_batch_stats, metrics))`. The key
        is the same on every device and in every micro-batch of one step: for draws that differ between
        examples and are yet the same however the batch is split, fold in something of the example,
        `jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])`. The step, int32 [], is how many
        updates came before: what changes as training goes on follows from it.
      axis_name: the mapped axis when this runs inside pmap or shard_map, None under plain jit.
      accumulate: how many micro-batches the gradient is averaged over. Micro-batch i holds the examples
        `i::accumulate`, so that it is the same set however many devices the batch is split over.
      ema_decay: see `ema_update`; give the same one to `create_state`.
      gradient_dtype: each device's gradient is rounded to it before the mean over `axis_name`, which is cast
        back: bfloat16 halves the bytes exchanged. None: as it is. Without an axis nothing is exchanged.

    Returns:
      `step(state, batch) -> (state, metrics)`, pure; metrics are those of `loss_fn` as float32, any
      shape, with `loss` and `grad_norm` (global L2 norm of the mean gradient, before any clipping).

    Raises:
      ValueError: accumulate < 1, or, when traced, a batch that does not split evenly.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate={accumulate} < 1: 1 takes the gradient of the whole batch at once")

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        grads, batch_stats, metrics = _gradients(loss_fn, state, batch, key, accumulate)
        if axis_name is not None:
            # Batch statistics too: without synchronised BatchNorm the replicas would drift apart.
            exchanged = jax.tree.map(lambda g: g.astype(gradient_dtype or g.dtype), grads)
            mean, batch_stats, metrics = jax.lax.pmean((exchanged, batch_stats, metrics), axis_name)
            grads = jax.tree.map(lambda m, g: m.astype(g.dtype), mean, grads)
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads).astype(jnp.float32)}
        # optax's Adam has a float to the power of an integer, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
        if ema_decay is not None:
            average = ema_update(state.ema_params, state.params, state.step, decay=ema_decay)
            state = state.replace(ema_params=average)
        return state, metrics

    return step


def ema_update(average: Any, params: Any, step: int | jax.Array, *, decay: float) -> Any:
    """`average <- d * average + (1 - d) * params` with `d = min(decay, (1 + step) / (10 + step))`.

    `step` counts updates including this one. The warm-up forgets the random initial weights quickly.
    """
    t = jnp.asarray(step, jnp.float32)
    d = jnp.minimum(jnp.float32(decay), (1.0 + t) / (10.0 + t))

    def one(a: jax.Array, p: jax.Array) -> jax.Array:
        wide = jnp.float64 if a.dtype == jnp.float64 else jnp.float32
        old, new = a.astype(wide), p.astype(wide)
        return (old + (1.0 - d).astype(wide) * (new - old)).astype(a.dtype)

    return jax.tree.map(one, average, params)


def _gradients(
    loss_fn: LossFunction, state: TrainState, batch: Any, key: jax.Array, accumulate: int
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """(mean gradient, batch statistics, mean metrics)."""

    def one(batch_stats: Any, part: Any) -> tuple[Any, Any, dict[str, jax.Array]]:
        (loss, (batch_stats, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, batch_stats, part, key, state.step
        )
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in {**metrics, "loss": loss}.items()}
        return grads, batch_stats, metrics

    if accumulate == 1:
        return one(state.batch_stats, batch)

    def body(carry: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], dict[str, jax.Array]]:
        total, batch_stats = carry
        grads, batch_stats, metrics = one(batch_stats, part)
        return (jax.tree.map(jnp.add, total, grads), batch_stats), metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    parts = jax.tree.map(lambda x: _strided(x, accumulate), batch)
    (total, batch_stats), metrics = jax.lax.scan(body, (zeros, state.batch_stats), parts)
    grads = jax.tree.map(lambda g: g / accumulate, total)
    return grads, batch_stats, jax.tree.map(lambda m: m.mean(0), metrics)


def _strided(x: jax.Array, accumulate: int) -> jax.Array:
    if x.shape[0] % accumulate:
        raise ValueError(
            f"{x.shape[0]} examples on a device do not split into accumulate={accumulate} micro-batches:"
            f" use a multiple of {accumulate} on every device"
        )
    return jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0)
