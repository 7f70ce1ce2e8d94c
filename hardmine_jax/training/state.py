"""What training carries from step to step: parameters, optimizer, batch statistics, EMA and randomness.

All leaves are arrays, so that a state can be donated, sharded and saved as it is.
"""

from collections.abc import Callable
from typing import Any

import flax.training.train_state
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.training.train_state.TrainState):
    """flax's `TrainState` (step, apply_fn, params, tx, opt_state) and what a network with BatchNorm needs.

    Attributes:
      batch_stats: running statistics of BatchNorm; an empty dict when the network has none.
      ema_params: exponential moving average of `params`, same structure; None when it is switched off.
      key: the run's random key; a step draws from `fold_in(key, step)` and never replaces it.
    """

    batch_stats: Any
    ema_params: Any
    key: jax.Array


def create_state(
    variables: dict,
    *,
    apply_fn: Callable[..., Any] | None,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    ema_decay: float | None = None,
) -> TrainState:
    """State at step 0 for `variables = {"params": ..., "batch_stats": ...}`.

    Args:
      variables: what `model.init` returned; `batch_stats` may be missing.
      apply_fn: usually `model.apply`; kept beside the arrays, never saved.
      optimizer: from `make_optimizer`, or any optax transformation.
      key: random key of the run, typed or of uint32.
      ema_decay: None switches the average of the weights off, and its memory with it.

    Returns:
      TrainState whose `step` is an int32 array.

    >>> state = create_state({"params": {"w": jnp.ones(3)}}, apply_fn=None, optimizer=optax.sgd(0.1),
    ...                      key=jax.random.key(0), ema_decay=0.99)
    >>> int(state.step), state.ema_params["w"].shape
    (0, (3,))
    """
    params = variables["params"]
    return TrainState(
        # flax starts from the Python integer 0: weakly typed, so the second step would compile again.
        step=jnp.zeros((), jnp.int32),
        apply_fn=apply_fn,  # type: ignore[arg-type]  # None does where nobody calls it; flax only keeps it.
        params=params,
        tx=optimizer,
        opt_state=optimizer.init(params),
        batch_stats=variables.get("batch_stats", {}),
        # A copy: one buffer under two names cannot be donated.
        ema_params=None if ema_decay is None else jax.tree.map(jnp.copy, params),
        key=key,
    )


def start_from(state: TrainState, variables: dict) -> TrainState:
    """A fresh state with other weights, which its average begins with.

    Args:
      state: what `create_state` gave, of the same structure.
      variables: {"params", "batch_stats"}; `batch_stats` may be missing.
    """
    params = variables["params"]
    ema_params = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    batch_stats = variables.get("batch_stats", state.batch_stats)
    return state.replace(params=params, ema_params=ema_params, batch_stats=batch_stats)


def evaluation_variables(state: TrainState) -> dict:
    """`{"params", "batch_stats"}` to evaluate with: the averaged weights where there are any."""
    params = state.params if state.ema_params is None else state.ema_params
    return {"params": params, "batch_stats": state.batch_stats}
