"""Training that knows no task: state, step, devices, optimizer, checkpoints and the loop over them.

The step and what it runs on need flax and optax alone; checkpoints, the loop and its log need the whole train
extra, and are imported when they are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardmine_jax.training.checkpoint import Checkpoints, load_step, load_variables
    from hardmine_jax.training.checkpoint_of_all import Restored
    from hardmine_jax.training.loop import FitResult, fit
    from hardmine_jax.training.metrics_log import MetricsLog, read_metrics

_EXTRA = 'hardmine_jax.training needs the train extra ({error}): pip install "hardmine-jax[train]"'

try:
    from hardmine_jax.job.ending import NonFiniteError
    from hardmine_jax.training.checkpoint_folder import CheckpointError, set_aside
    from hardmine_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
    from hardmine_jax.training.sharding import Parallel, parallelise
    from hardmine_jax.training.state import TrainState, create_state, evaluation_variables, start_from
    from hardmine_jax.training.step import LossFunction, Step, ema_update, make_train_step
except ModuleNotFoundError as error:
    if (error.name or "").startswith("hardmine_jax"):
        raise
    raise ImportError(_EXTRA.format(error=error)) from error

# What needs orbax, tensorboardX or rich, by the file that has it.
_LATER = {
    "checkpoint": ("Checkpoints", "load_step", "load_variables"),
    "checkpoint_of_all": ("Restored",),
    "loop": ("FitResult", "fit"),
    "metrics_log": ("MetricsLog", "read_metrics"),
}

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "FitResult",
    "LossFunction",
    "MetricsLog",
    "NonFiniteError",
    "OptimizerConfig",
    "Parallel",
    "Restored",
    "Step",
    "TrainState",
    "create_state",
    "ema_update",
    "evaluation_variables",
    "fit",
    "load_step",
    "load_variables",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "parallelise",
    "read_metrics",
    "set_aside",
    "start_from",
]


def __getattr__(name: str) -> Any:
    for file, names in _LATER.items():
        if name in names:
            try:
                found = getattr(importlib.import_module(f"{__name__}.{file}"), name)
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("hardmine_jax"):
                    raise
                raise ImportError(_EXTRA.format(error=error)) from error
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
