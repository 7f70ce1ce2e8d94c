"""What a training script does around its task: flags, the run's folder, going on where it stood, its errors.

A config is a frozen dataclass with at least `preset`, `workdir`, `init_from`, `steps`, `resume`, `eval_only`,
`keep_last`, `batch_size`, `accumulate`, `optimizer`, `distributed`, `coordinator`, `num_processes`,
`process_id` and `patience`; `config.json` holds it as JSON. In a job of several processes each runs the same
script; the folder is process 0's.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hardmine_jax import training
from hardmine_jax.data.problems import DataError, Skipped
from hardmine_jax.training import distributed, exchange
from hardmine_jax.training.ending import restart_may_mend
from hardmine_jax.training.host_memory import keep_freed_memory
from hardmine_jax.training.named_arrays import describe, named, to_tree


def first_flags(arguments: list[str] | None, choices: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The flags that the defaults of the others follow from; of each the first choice where it is not given.

    >>> first_flags(["--steps", "3", "--preset", "big"], {"preset": ("small", "big"), "dataset": ("lspet",)})
    {'preset': 'big', 'dataset': 'lspet'}
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, allowed in choices.items():
        parser.add_argument(flag(name), choices=allowed, default=allowed[0])
    return vars(parser.parse_known_args(arguments)[0])


def shorten_warmup(config, default):
    """The config, its warm-up at most a tenth of the run where it is the default's: nobody asked for it."""
    optimizer = config.optimizer
    if optimizer.warmup_steps != default.optimizer.warmup_steps:
        return config
    warmup = min(optimizer.warmup_steps, max(config.steps, 0) // 10)
    return dataclasses.replace(config, optimizer=dataclasses.replace(optimizer, warmup_steps=warmup))


def run_to_exit_code(body: Callable[[], object]) -> int:
    """0 when `body` came to its end, 2 after one line about what is wrong; bugs stay exceptions.

    1 after the line where, unlike of wrong input, a start from the last checkpoint may mend it.
    """
    try:
        body()
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1 if restart_may_mend(error) else 2
    return 0


def explain(error: BaseException) -> str | None:
    """The line that a user reads of an error that is theirs to mend; None for a bug."""
    if isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    ):
        return "out of memory: lower --batch-size or raise --accumulate"
    if _STATUS.match(str(error)):
        # Gloo's, when another process is gone, comes as a ValueError; the job can go on when started again.
        return None
    # DataError, CheckpointError, NonFiniteError and the checks of arguments: ValueErrors of one line.
    return str(error) if isinstance(error, (ValueError, OSError)) else None


# How XLA's runtime begins its messages.
_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED|ABORTED|DATA_LOSS)\b")


def run_training(config, body: Callable[[], object]) -> int:
    """`run_to_exit_code(body)`, with --distributed as one of the job's processes, which all end together."""

    def run() -> None:
        # It asks JAX for the devices, which have to wait until the processes have found each other.
        keep_freed_memory()
        body()

    where = {name: getattr(config, name) for name in ("coordinator", "num_processes", "process_id")}

    def run_joined() -> None:
        with distributed.joined(**where, patience=config.patience, explain=explain):
            check_processes(config)
            with noted(config.workdir):
                run()

    def run_alone() -> None:
        patience = None if config.patience == distributed.PATIENCE_SECONDS else config.patience
        for name, value in {**where, "patience": patience}.items():
            if value is not None:
                raise ValueError(f"{flag(name)} means nothing without --distributed: add it")
        with noted(config.workdir):
            run()

    if config.distributed:
        return run_to_exit_code(run_joined)
    return run_to_exit_code(run_alone)


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
def told_of_errors(path: pathlib.Path) -> Iterator[None]:
    """Within it a file is written that training can do without, on a full disk, say."""
    try:
        yield
    except OSError as error:
        print(f"warning: {path} could not be written ({error.strerror})", file=sys.stderr)


# Flags that processes of one job may have each its own.
_OF_A_PROCESS = (
    "coordinator", "process_id", "patience", "workdir", "cache_dir", "data_dir", "images", "annotations",
)  # fmt: skip


def check_processes(config) -> None:
    """Raises ValueError where the processes have different flags or numbers of devices."""
    flags = {flag(name): value for name, value in plain(config).items() if name not in _OF_A_PROCESS}
    exchange.check_same({**flags, "number of devices": jax.local_device_count()})


def check_data(dataset) -> None:
    """Raises ValueError where the processes have read different data."""
    exchange.check_same({"training examples": len(dataset.train), "validation": len(dataset.validation)})


def all_unreadable(batches) -> list[int]:
    """Records that some process could not read any more."""
    return sorted(set().union(*exchange.gather(sorted(batches.unreadable), "unreadable")))


class Share(NamedTuple):
    """What of a batch one process loads: arguments of the input pipelines."""

    batch_size: int
    shard_index: int
    shard_count: int


def share(batch_size: int) -> Share:
    """This process's share of a batch over all devices."""
    return Share(batch_size // jax.process_count(), jax.process_index(), jax.process_count())


def check_counts(config, least: Mapping[str, int]) -> None:
    """Raises ValueError for a flag below its least value, and for a seed that is none."""
    for name, low in {**least, "seed": 0}.items():
        if getattr(config, name) < low:
            raise ValueError(f"{flag(name)} {getattr(config, name)} must be at least {low}")
    if config.seed >= 2**32:
        raise ValueError(f"--seed {config.seed} must be below 2**32")


def check_batch_size(config) -> None:
    """Raises ValueError for a batch that does not split over devices and micro-batches."""
    num_devices = jax.device_count()
    parts = num_devices * max(config.accumulate, 1)
    if config.batch_size < 1 or config.batch_size % parts:
        raise ValueError(
            f"--batch-size {config.batch_size} does not split over {num_devices} devices and "
            f"--accumulate {config.accumulate}: use a multiple of {parts}"
        )


def check_data_flags(config, used: Mapping[str, tuple[str, ...]], kind: str, advice: str) -> None:
    """Raises ValueError for a flag that is given and means nothing to the dataset.

    Args:
      used: for each kind of dataset the flags that it reads.
      kind: which one it is; `advice`: what to do instead.
    """
    for name in sorted({name for names in used.values() for name in names} - {*used[kind]}):
        if getattr(config, name) is not None:
            raise ValueError(f"{flag(name)} means nothing to --dataset {kind}: {advice}, or drop it")


def tell_skipped(skipped: Skipped) -> None:
    """One line on stderr, where anything was left out or is odd."""
    if skipped.reasons or skipped.noted:
        print(skipped.report(), file=sys.stderr)


def flag(name: str) -> str:
    """
    >>> flag("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


class Opened(NamedTuple):
    """Where a run stands: its state, the step, whether it was restored, and where to save."""

    state: training.TrainState
    step: int
    restored: bool
    checkpoints: training.Checkpoints


@contextlib.contextmanager
def open_run(
    config,
    state: training.TrainState,
    batches,
    *,
    best_metric: str,
    begin: Callable[[training.TrainState], training.TrainState] = lambda state: state,
) -> Iterator[Opened]:
    """The run in `config.workdir`, where it was left; at its beginning with `begin(state)` otherwise.

    Args:
      state: fresh; gives the structure.
      batches: moved to where the run stands; closed at the end.
      best_metric: the score by which a checkpoint is the best.
      begin: called only where nothing was restored.

    Raises:
      CheckpointError: another model's, or --eval-only without a checkpoint and without --init-from.
      ValueError: the run is beyond --steps.
    """
    if not (config.resume or config.eval_only):
        exchange.from_main(lambda: start_anew(config.workdir), "start anew")
    with contextlib.ExitStack() as closing:
        closing.enter_context(contextlib.closing(batches))
        checkpoints = training.Checkpoints(
            config.workdir, keep_last=config.keep_last, best_metric=best_metric
        )
        closing.enter_context(contextlib.closing(checkpoints))
        restored = checkpoints.restore_latest(state)
        if restored is None:
            if config.eval_only and config.init_from is None:
                raise training.CheckpointError(
                    f"{config.workdir} has no checkpoint to evaluate: train there first"
                )
            begun = begin(state)
            if jax.process_count() > 1:
                exchange.check_same({"initial state": _fingerprint(begun)})
            yield Opened(begun, 0, False, checkpoints)
            return
        print(f"resuming from step {restored.step} of {config.workdir}")
        if not config.eval_only and restored.step > config.steps:
            raise ValueError(
                f"{config.workdir} is at step {restored.step}, beyond --steps {config.steps}: give more "
                "--steps, --eval-only, or --no-resume to start anew"
            )
        batches.set_state(restored.iterator_state)
        yield Opened(restored.state, restored.step, True, checkpoints)


def _fingerprint(state: training.TrainState) -> dict:
    return describe({name: np.asarray(x) for name, x in named(to_tree(state)).items()})


def keep_begun(opened: Opened, batches, save_config: Callable[[], None]) -> None:
    """Makes a run of weights that are evaluated as they came: to predict with, to export, or to train on."""
    if not opened.restored:
        save_config()
        opened.checkpoints.save(opened.step, opened.state, batches.get_state())


def check_run(config) -> None:
    """What can be known of the run before much is made ready for it.

    Raises:
      CheckpointError: --eval-only where nothing was trained, and without --init-from.
      ValueError: --init-from of a file that is not there.
    """
    begun = exchange.from_main((config.workdir / "config.json").exists, "begun")
    if config.eval_only and not begun and config.init_from is None:
        raise training.CheckpointError(f"{config.workdir} has no run to evaluate: train there first")
    if config.init_from is not None and not config.init_from.exists() and not (begun and config.resume):
        raise ValueError(f"--init-from {config.init_from}: no such file or folder")


def start_anew(workdir: pathlib.Path) -> None:
    """Sets the old run's checkpoints aside, and drops its results, which the new one's config would belie."""
    training.set_aside(workdir)
    for name in ("config.json", "metrics.jsonl", "result.json", "report.html", _NOTE):
        (workdir / name).unlink(missing_ok=True)


# Flags that may change between two starts of one run without changing what it is.
FREE = (
    "resume", "eval_only", "parallel", "num_workers", "workdir", "cache_dir", "log_every", "distributed",
    "coordinator", "num_processes", "process_id", "patience",
)  # fmt: skip


def tell_changes(workdir: pathlib.Path, old, new) -> None:
    """One line on stderr where a run goes on with another config than it had."""
    old, new = plain(old), plain(new)
    changed = [f"{name}={old[name]!r}" for name in new if name not in FREE and old[name] != new[name]]
    if changed:
        print(f"note: {workdir} was trained with {', '.join(changed)} until here", file=sys.stderr)


def read_config(workdir: pathlib.Path, kinds: Mapping[str, type | None], *, script: str) -> list:
    """The parts of a run's config.json.

    Args:
      kinds: for each part the dataclass it becomes; None leaves it as it is, lists as tuples.
      script: whose config.json it should be, for the error.

    Raises:
      DataError: no config.json there, or not one of this script.
    """
    path = pathlib.Path(workdir) / "config.json"
    try:
        content = json.loads(path.read_text())
        return [_tuples(content[name]) if kind is None else from_plain(kind, content[name])
                for name, kind in kinds.items()]  # fmt: skip
    except FileNotFoundError as error:
        raise DataError(f"no {path}: give the --workdir of a {script} run") from error
    # OverflowError: a number that is infinite; RecursionError: nested deeper than Python's stack.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path} is no config.json of {script} ({error}): give the --workdir of a run"
        ) from error


def write_json(path: pathlib.Path, content: Any) -> None:
    """Process 0's content as a file."""
    if not exchange.is_main():
        return
    # Renamed into place: a reader, or a run killed here, never meets half a file.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.new")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def plain(value) -> dict:
    """A dataclass as what JSON gives back."""
    return json.loads(json.dumps(dataclasses.asdict(value), default=str))


def from_plain(kind: type, content: Mapping):
    """The inverse of `plain`: paths, tuples and nested dataclasses by the fields' types."""
    hints = typing.get_type_hints(kind)
    values = {name: _from_plain(hints.get(name), value) for name, value in content.items()}
    for name, value in values.items():
        if name in hints and not _is_a(hints[name], value):
            raise ValueError(f"{name} is {value!r:.100}, not {hints[name]}")
    return kind(**values)


def _is_a(hint: Any, value: Any) -> bool:
    """Whether a value is of a type as the fields of configs have them."""
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return value in choices
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_is_a(choice, value) for choice in choices)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = choices[:1] * len(value) if choices[-1] is ... else choices
        return len(kinds) == len(value) and all(map(_is_a, kinds, value))
    if hint in (int, float):
        return isinstance(value, hint | int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _from_plain(hint: Any, value: Any) -> Any:
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if pathlib.Path in choices and value is not None:
        return pathlib.Path(value)
    nested = next((choice for choice in choices if dataclasses.is_dataclass(choice)), None)
    return from_plain(nested, value) if nested and value is not None else _tuples(value)


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def mean_speed(lines: list[dict]) -> float | None:
    """Training images a second over the whole run, resumed or not; a log line speaks for its steps."""
    steps = np.diff([0] + [line["step"] for line in lines])
    speeds = [line.get("images_per_second") for line in lines]
    timed = [(step, speed) for step, speed in zip(steps, speeds, strict=True)
             if isinstance(speed, int | float) and speed > 0 and step > 0]  # fmt: skip
    if not timed:
        return None
    return float(sum(step for step, _ in timed) / sum(step / speed for step, speed in timed))


def find_workdir(checkpoint: pathlib.Path, *, script: str) -> pathlib.Path:
    """The folder with config.json at or above a checkpoint.

    Raises:
      DataError: there is none.
    """
    path = checkpoint.resolve()
    for folder in (path, *path.parents[:2]):
        if (folder / "config.json").is_file():
            return folder
    raise DataError(
        f"no checkpoint at {checkpoint}: give the --workdir of a {script} run, or a checkpoint in it"
    )
