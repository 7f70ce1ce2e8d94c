"""Training that knows no task: state, step, devices, optimizer, checkpoints and the loop over them."""

try:
    from hardmine_jax.job.ending import NonFiniteError
    from hardmine_jax.training.checkpoint import Checkpoints, load_step, load_variables
    from hardmine_jax.training.checkpoint_folder import CheckpointError, set_aside
    from hardmine_jax.training.checkpoint_of_all import Restored
    from hardmine_jax.training.loop import FitResult, fit
    from hardmine_jax.training.metrics_log import MetricsLog, read_metrics
    from hardmine_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
    from hardmine_jax.training.sharding import Parallel, parallelise
    from hardmine_jax.training.state import TrainState, create_state, evaluation_variables, start_from
    from hardmine_jax.training.step import LossFunction, Step, ema_update, make_train_step
except ModuleNotFoundError as error:
    if (error.name or "").startswith("hardmine_jax"):
        raise
    raise ImportError(
        f'hardmine_jax.training needs the train extra ({error}): pip install "hardmine-jax[train]"'
    ) from error

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
