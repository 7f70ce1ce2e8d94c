"""The settings that every run has, whatever its task."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax

from hardmine_jax.data.problems import DataError
from hardmine_jax.errors import UserError
from hardmine_jax.job.distributed import PATIENCE_SECONDS
from hardmine_jax.tasks.flags import check_counts, flag
from hardmine_jax.training import OptimizerConfig
from hardmine_jax.training.profile import StepRange, parse_step_range


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run, whatever it trains.

    Attributes:
      cache_dir: where prepared data lies, and what was compiled; $HARDMINE_CACHE or ~/.cache/hardmine_jax.
      compilation_cache: keep compiled programs there for the next start (not with --distributed).
      workdir: everything that the run writes; runs/<task>_<dataset>_<preset> by default.
      init_from: weights to start from: a published file of the network or of its trunk (.pth, .safetensors,
        .npz), or the --workdir of a run; what does not fit keeps its initial value and is told.
      batch_size: images a step, over all devices and processes.
      accumulate: micro-batches a step is split into, to save memory.
      steps: length of the run, by default the preset's for the dataset. The preset's warm-up is at most a
        tenth of it.
      seed: of weights, order and augmentation.
      dtype: of the computation; weights stay float32.
      remat: blocks computes the inside of the network's blocks again for their gradient, instead of keeping
        it: less memory, a longer step, the same numbers.
      gradient_dtype: bfloat16 halves what devices exchange in a step: each rounds its gradients before the
        mean over devices is taken. float32 by default; on one device nothing is exchanged.
      ema_decay: of the averaged weights that are evaluated; 0 evaluates the last ones.
      sync_batch_norm: batch statistics over all devices (jit always does).
      parallel: how the step runs on the devices.
      num_workers: input processes; 0 reads in two threads.
      distributed: this is one process of a job of several, started with the same flags, which share every
        batch (launch/README.md).
      coordinator: HOST:PORT of process 0. This and the next two only where JAX does not find them by itself,
        as it does on Cloud TPU and under Slurm.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      patience: seconds that a process may keep the others waiting in training before it counts as hanging and
        the job ends, to be started again; 0 waits for ever.
      resume: go on from the last checkpoint in --workdir. --no-resume starts anew, once: what a launcher or a
        scheduler starts again goes on.
      eval_only: no training, evaluate the last checkpoint.
      evaluate_every: steps between evaluations on a part of the validation split, beside those after the
        first and the last step; 0 only those.
      checkpoint_every: steps between checkpoints; 0 with evaluations only.
      log_every: steps between log lines.
      profile_steps: FROM:TO, steps of which a trace by jax.profiler is written to profile/ in --workdir.
      keep_last: latest checkpoints kept, beside the best.
      optimizer: optimizer and learning rate.
    """

    cache_dir: pathlib.Path | None = None
    compilation_cache: bool = True
    workdir: pathlib.Path | None = None
    init_from: pathlib.Path | None = None
    batch_size: int = 32
    accumulate: int = 1
    steps: int | None = None
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "blocks"] = "none"
    gradient_dtype: Literal["bfloat16"] | None = None
    ema_decay: float = 0.998
    sync_batch_norm: bool = True
    parallel: Literal["auto", "jit", "pmap", "shard_map"] = "auto"
    num_workers: int = 0
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    patience: float = PATIENCE_SECONDS
    resume: bool = True
    eval_only: bool = False
    evaluate_every: int = 200
    checkpoint_every: int = 200
    log_every: int = 20
    profile_steps: str | None = None
    keep_last: int = 2
    optimizer: OptimizerConfig = OptimizerConfig()

    @property
    def folder(self) -> pathlib.Path:
        """`workdir`, once the command line is parsed or config.json read."""
        assert self.workdir is not None, "no workdir: `parse` fills it in"
        return self.workdir

    @property
    def length(self) -> int:
        """`steps`, likewise."""
        assert self.steps is not None, "no steps: `parse` fills them in"
        return self.steps


def fill_in(run: RunConfig, default: RunConfig, *, steps: int | None, folder: str) -> RunConfig:
    """The run with the length and the workdir that were not given, and see `shorten_warmup`.

    Args:
      default: what the flags changed; steps: where none are given; folder: in `runs`, the same.
    """
    filled = dataclasses.replace(
        run,
        steps=steps if run.steps is None else run.steps,
        workdir=run.workdir or pathlib.Path("runs") / folder,
    )
    return shorten_warmup(filled, default)


def shorten_warmup(run: RunConfig, default: RunConfig) -> RunConfig:
    """The run, its warm-up at most a tenth of it where it is the default's: nobody asked for it."""
    optimizer = run.optimizer
    if optimizer.warmup_steps != default.optimizer.warmup_steps:
        return run
    warmup = min(optimizer.warmup_steps, max(run.length, 0) // 10)
    return dataclasses.replace(run, optimizer=dataclasses.replace(optimizer, warmup_steps=warmup))


def check_run_config(run: RunConfig) -> None:
    """Raises UserError for a number out of its range."""
    least = {"accumulate": 1, "batch_size": 1, "steps": 1, "log_every": 1, "keep_last": 1, "seed": 0}
    check_counts(run, least | {"evaluate_every": 0, "checkpoint_every": 0, "num_workers": 0})
    if not 0 <= run.ema_decay < 1:
        raise UserError(f"--ema-decay {run.ema_decay} must lie in [0, 1)")
    profiled_steps(run)


def profiled_steps(run: RunConfig) -> StepRange | None:
    """What --profile-steps asks for.

    Raises:
      UserError: no range of steps of this run.
    """
    if run.profile_steps is None:
        return None
    try:
        steps = parse_step_range(run.profile_steps)
    except UserError as error:
        raise UserError(f"--profile-steps {error}") from error
    if steps.last > run.length:
        raise UserError(
            f"--profile-steps {run.profile_steps} ends beyond --steps {run.steps}: end it earlier"
        )
    return steps


def check_devices(run: RunConfig) -> None:
    """Raises UserError for what the devices that are there cannot do: share the batch, round gradients."""
    num_devices = jax.device_count()
    parts = num_devices * run.accumulate
    if run.batch_size % parts:
        raise UserError(
            f"--batch-size {run.batch_size} does not split over {num_devices} devices and "
            f"--accumulate {run.accumulate}: use a multiple of {parts}"
        )
    if run.gradient_dtype is not None and run.parallel == "jit" and num_devices > 1:
        raise UserError(
            f"--gradient-dtype {run.gradient_dtype} means nothing to --parallel jit, where the compiler "
            "exchanges gradients as it sees fit: use shard_map or pmap"
        )


@contextlib.contextmanager
def check_saved(workdir: pathlib.Path, run: RunConfig) -> Iterator[None]:
    """Within it a run is checked that `config.json` in `workdir` holds, which anybody may have edited.

    Raises:
      DataError: naming the file, for a UserError, and for a run without `steps` or `workdir`.
    """
    path = pathlib.Path(workdir) / "config.json"
    if run.steps is None or run.workdir is None:
        raise DataError(f"{path} has no steps or no workdir: give the --workdir of a run")
    try:
        yield
    except UserError as error:
        raise DataError(f"{path} cannot be used ({error}): was it edited?") from error


def check_alone(run: RunConfig) -> None:
    """Raises UserError for a flag of --distributed without it."""
    patience = None if run.patience == PATIENCE_SECONDS else run.patience
    given = {name: getattr(run, name) for name in ("coordinator", "num_processes", "process_id")}
    for name, value in {**given, "patience": patience}.items():
        if value is not None:
            raise UserError(f"{flag(name)} means nothing without --distributed: add it")


def check_joined(run: RunConfig) -> None:
    """Raises UserError where some of the flags that name a process of --distributed are missing."""
    names = ("coordinator", "num_processes", "process_id")
    if len({getattr(run, name) is None for name in names}) > 1:
        raise UserError("give all of --coordinator, --num-processes and --process-id, or none of them")


class Shard(NamedTuple):
    """What of a batch one process loads: arguments of the input pipelines."""

    batch_size: int
    shard_index: int
    shard_count: int


def shard_of(run: RunConfig) -> Shard:
    """This process's part of a batch over all devices."""
    return Shard(run.batch_size // jax.process_count(), jax.process_index(), jax.process_count())
