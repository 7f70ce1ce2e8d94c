"""What a training script does around its task: the run's folder, going on where it stood, its errors.

In a job of several processes each runs the same script; the folder is process 0's.
"""

import contextlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sized
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from hardmine_jax import training
from hardmine_jax.errors import UserError
from hardmine_jax.job import distributed, exchange
from hardmine_jax.job.folder_lock import locked
from hardmine_jax.job.host_memory import keep_freed_memory
from hardmine_jax.job.launch import launch_name
from hardmine_jax.tasks.compilation_cache import compilation_cache
from hardmine_jax.tasks.config_json import Dataclass, plain, write_json
from hardmine_jax.tasks.exit_codes import bugs_marked, explain, run_to_exit_code
from hardmine_jax.tasks.flags import check_numbers, flag
from hardmine_jax.tasks.run_config import RunConfig, check_alone, check_joined
from hardmine_jax.training.checkpoint_folder import FOLDER
from hardmine_jax.training.loop import Batches
from hardmine_jax.training.named_arrays import describe, named, to_tree


def run_training(config: Dataclass, run: RunConfig, body: Callable[[], object]) -> int:
    """`run_to_exit_code(body)`, with --distributed as one of the job's processes, which all end together.

    Args:
      config: the task's, which all processes must agree on; run: its part that every task has.
    """

    def noted_body() -> None:
        with only_start(run), noted(run.folder), compilation_cache(run):
            # It asks JAX for the devices, which have to wait until the processes have found each other.
            keep_freed_memory()
            body()

    def run_joined() -> None:
        check_joined(run)
        where = {name: getattr(run, name) for name in ("coordinator", "num_processes", "process_id")}
        with distributed.joined(**where, patience=run.patience, explain=explain), bugs_marked():
            check_processes(config)
            noted_body()

    def run_alone() -> None:
        check_alone(run)
        noted_body()

    def checked() -> None:
        check_numbers(config)
        (run_joined if run.distributed else run_alone)()

    return run_to_exit_code(checked)


@contextlib.contextmanager
def only_start(run: RunConfig) -> Iterator[None]:
    """Within it a second start in the same --workdir is refused; of a job's processes the first is asked.

    Raises:
      UserError: this is the second.
    """
    with contextlib.ExitStack() as holding:
        if exchange.is_main():
            holding.enter_context(locked(run.folder))
        yield


_NOTE = "non_finite.json"


@contextlib.contextmanager
def noted(workdir: pathlib.Path) -> Iterator[None]:
    """Within it a NaN is written down, so that the next start knows when it has come to the same again."""
    try:
        yield
    except training.NonFiniteError as error:
        path, found = workdir / _NOTE, {"step": error.step, "metric": error.metric}
        with contextlib.suppress(OSError, ValueError):
            error.again = path.exists() and json.loads(path.read_text()) == found
            write_json(path, found)
        if error.again:
            error.args = (f"{error}. It was the same in the start before",)
        raise


@contextlib.contextmanager
def warn_of_errors(path: pathlib.Path) -> Iterator[None]:
    """Within it a file is written that training can do without, on a full disk, say."""
    try:
        yield
    except OSError as error:
        print(f"warning: {path} could not be written ({error.strerror})", file=sys.stderr)


# Flags that processes of one job may have each its own.
_OF_A_PROCESS = (
    "coordinator", "process_id", "patience", "workdir", "cache_dir", "data_dir", "images", "annotations",
)  # fmt: skip


def check_processes(config: Dataclass) -> None:
    """Raises UserError where the processes have different flags or numbers of devices."""
    flags = {flag(name): value for name, value in plain(config).items() if name not in _OF_A_PROCESS}
    exchange.check_same({**flags, "number of devices": jax.local_device_count()})


class Splits(Protocol):
    """A dataset, as far as any run knows it."""

    @property
    def train(self) -> Sized: ...

    @property
    def validation(self) -> Sized: ...


class Stream(Batches, Protocol):
    """Training batches as `data.stream.TrainBatches` gives them."""

    @property
    def unreadable(self) -> set[int]: ...

    def set_state(self, state: Any, /) -> None: ...

    def close(self) -> None: ...


def check_data(dataset: Splits) -> None:
    """Raises UserError where the processes have read different data."""
    exchange.check_same({"training examples": len(dataset.train), "validation": len(dataset.validation)})


def all_unreadable(batches: Stream) -> list[int]:
    """Records that some process could not read any more."""
    return sorted(set().union(*exchange.gather(sorted(batches.unreadable), "unreadable")))


class Opened(NamedTuple):
    """Where a run stands: its state, the step, whether it was restored, and where to save."""

    state: training.TrainState
    step: int
    restored: bool
    checkpoints: training.Checkpoints


@contextlib.contextmanager
def open_run(
    run: RunConfig,
    state: training.TrainState,
    batches: Stream,
    *,
    best_metric: str,
    begin: Callable[[training.TrainState], training.TrainState] = lambda state: state,
) -> Iterator[Opened]:
    """The run in `run.workdir`, where it was left; at its beginning with `begin(state)` otherwise.

    Args:
      state: fresh; gives the structure.
      batches: moved to where the run stands; closed at the end.
      best_metric: the score by which a checkpoint is the best.
      begin: called only where nothing was restored.

    Raises:
      CheckpointError: another model's, or --eval-only without a checkpoint and without --init-from.
      UserError: the run is beyond --steps.
    """
    if not (run.resume or run.eval_only):
        exchange.from_main(lambda: start_anew_once(run.folder), "start anew")
    with contextlib.ExitStack() as closing:
        closing.enter_context(contextlib.closing(batches))
        checkpoints = training.Checkpoints(
            run.folder, keep_last=run.keep_last, best_metric=best_metric, anew="--no-resume"
        )
        closing.enter_context(contextlib.closing(checkpoints))
        restored = checkpoints.restore_latest(state, check_position)
        if restored is None:
            if run.eval_only and run.init_from is None:
                raise training.CheckpointError(
                    f"{run.workdir} has no checkpoint to evaluate: train there first"
                )
            begun = begin(state)
            if jax.process_count() > 1:
                exchange.check_same({"initial state": _fingerprint(begun)})
            yield Opened(begun, 0, False, checkpoints)
            return
        print(f"resuming from step {restored.step} of {run.workdir}")
        if not run.eval_only and restored.step > run.length:
            raise UserError(
                f"{run.workdir} is at step {restored.step}, beyond --steps {run.steps}: give more "
                "--steps, --eval-only, or --no-resume to start anew"
            )
        batches.set_state(restored.iterator_state)
        yield Opened(restored.state, restored.step, True, checkpoints)


def check_position(restored: training.Restored) -> None:
    """Raises ValueError where the batches that were read are not as many as the steps that were made."""
    position = restored.iterator_state
    batches = position.get("batches") if isinstance(position, dict) else None
    if batches != restored.step:
        raise ValueError(f"{batches} batches were read, and {restored.step} steps made")


def _fingerprint(state: training.TrainState) -> dict:
    return describe({name: np.asarray(x) for name, x in named(to_tree(state)).items()})


def keep_begun(opened: Opened, batches: Stream, save_config: Callable[[], None]) -> None:
    """Makes a run of weights that are evaluated as they came: to predict with, to export, or to train on."""
    if not opened.restored:
        save_config()
        opened.checkpoints.save(opened.step, opened.state, batches.get_state())


def check_run(run: RunConfig) -> None:
    """What can be known of the run before much is made ready for it.

    Raises:
      CheckpointError: --eval-only where nothing was trained, and without --init-from.
      UserError: --init-from of a file that is not there.
    """
    begun = exchange.from_main((run.folder / "config.json").exists, "begun")
    if run.eval_only and not begun and run.init_from is None:
        raise training.CheckpointError(f"{run.workdir} has no run to evaluate: train there first")
    if run.init_from is not None and not run.init_from.exists() and not (begun and run.resume):
        raise UserError(f"--init-from {run.init_from}: no such file or folder")


def goes_on(run: RunConfig) -> bool:
    """Whether there is something in the run's folder that the next start goes on from, or evaluates."""
    begun = (run.folder / "config.json").exists() and any((run.folder / FOLDER).glob("[0-9]*"))
    return begun and (run.resume or run.eval_only)


# The launch that a run was started anew in.
_ANEW = "started_anew.json"


def start_anew_once(workdir: pathlib.Path) -> None:
    """`start_anew`, but not again where this start is a restart within the same launch, which goes on."""
    launch, path = launch_name(), workdir / _ANEW
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if launch is not None and json.loads(path.read_text()) == {"launch": launch}:
            print(f"note: {workdir} was started anew in this launch already: it goes on", file=sys.stderr)
            return
    start_anew(workdir)
    if launch is not None:
        write_json(path, {"launch": launch})


def start_anew(workdir: pathlib.Path) -> None:
    """Sets the old run's checkpoints aside, and drops its results, which the new one's config would belie."""
    training.set_aside(workdir)
    for name in ("config.json", "metrics.jsonl", "result.json", "report.html", _NOTE, _ANEW):
        (workdir / name).unlink(missing_ok=True)
