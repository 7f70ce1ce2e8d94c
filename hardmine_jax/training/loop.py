"""The training loop: steps in flight, and now and then a log line, an evaluation, a checkpoint."""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from hardmine_jax.job import interrupts
from hardmine_jax.job.activity import waiting, working
from hardmine_jax.job.exchange import is_main
from hardmine_jax.job.signals import StopVotes, stop_requests
from hardmine_jax.training.checkpoint import Checkpoints
from hardmine_jax.training.metrics_log import MetricsLog
from hardmine_jax.training.progress import show_progress
from hardmine_jax.training.sharding import Parallel
from hardmine_jax.training.state import TrainState
from hardmine_jax.training.window import Window, check_state

# The first batch may have to wait for input processes to start, and for files to come from far away.
_FIRST_SLACK = 10.0
# A checkpoint may have to wait for the one before, on its way to storage that is far away.
_SAVE_SLACK = 10.0
_NO_LOSS = (
    "note: the loss of the first step is exactly 0: nothing in its examples takes part. Are labels where the "
    "pictures show something (pixels, not shares of the image), and is anything of them kept?"
)


class Batches(Protocol):
    """An endless iterator of numpy batches that can tell where it stands."""

    def __next__(self) -> Any: ...

    def get_state(self) -> Any: ...


@dataclass(frozen=True)
class FitResult:
    """Attributes: state (on the devices), step it is at, whether a signal stopped it early, training speed
    without compilation, evaluation and saving (0.0 when no step ran), and the last evaluation's scores."""

    state: TrainState
    step: int
    stopped: bool
    images_per_second: float
    scores: dict[str, float]


def fit(
    state: TrainState,
    *,
    parallel: Parallel,
    batches: Batches,
    batch_size: int,
    steps: int,
    workdir: str | os.PathLike[str],
    checkpoints: Checkpoints | None = None,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    learning_rate: Callable[[int], Any] | None = None,
    speed: Callable[[float], dict[str, float]] | None = None,
    log_every: int = 50,
    evaluate_every: int | None = None,
    checkpoint_every: int | None = None,
    must_save: bool = True,
) -> FitResult:
    """Trains from `state.step` to `steps`. SIGTERM or Ctrl-C saves and returns with `stopped`.

    In a job of several processes each calls it, a signal to one of them stops all after the same step,
    process 0 alone shows and writes, and one that keeps the others waiting is found (`distributed.joined`).

    Args:
      state: fresh or restored, on the host or one device; not consumed.
      parallel: the compiled step.
      batches: stands where `state` does (after a restore, `batches.set_state(restored.iterator_state)`).
      batch_size: examples in a step over all devices and processes, for the speed.
      steps: length of the whole run, not of what is left.
      workdir: gets `metrics.jsonl` and `tensorboard/`.
      checkpoints: saves every `checkpoint_every` steps, after each evaluation, when stopped, at the end. One
        that cannot be written, as on a full disk, is told, and training goes on: but the first and the last
        must be.
      evaluate: placed state -> scores; after step 1 (there the curve starts, and what fails fails at once),
        every `evaluate_every` steps and at the end. Logged as `validation/<name>`; `checkpoints` picks the
        best by them.
      learning_rate: schedule to log.
      speed: images a second -> what else is to be logged of the speed.
      log_every: steps; a log line holds the means since the line before. Step 1 is logged too.
      must_save: whether it is an error when the state after `steps` cannot be saved; False where training
        goes on from it. After a signal it always is.

    Raises:
      NonFiniteError: some metric was NaN or infinite, or a weight, average or batch statistic that was to be
        saved. Looked for before anything is saved.
      CheckpointError: the state that training ended with could not be saved.
    """
    step = int(state.step)
    # Nobody here needs the one that was given any more.
    state = parallel.put_state(state)
    training = _Training(
        state=state,
        step=step,
        parallel=parallel,
        batches=batches,
        window=Window(batch_size, parallel.get, speed),
        checkpoints=checkpoints,
        evaluate=evaluate,
        learning_rate=learning_rate,
    )
    del state
    every = _Every(log_every, evaluate_every, checkpoint_every)
    with contextlib.ExitStack() as held, stop_requests() as stop:
        asked_to_stop = StopVotes(stop, parallel.mesh)
        try:
            with _watching(workdir, training.step, steps, batch_size) as reports, working("training"):
                _run(training, steps, every, asked_to_stop, reports, held)
        finally:
            if checkpoints is not None:
                with working("saving the last checkpoint", slack=_SAVE_SLACK):
                    checkpoints.wait()
        if not training.stopped:
            # While the last checkpoint was being written; what comes after it may be long.
            with waiting():
                training.stopped = asked_to_stop(last=True)
    if checkpoints is not None and (must_save or training.stopped):
        checkpoints.check_saved()
        saved = f"interrupted: step {training.step} is saved, the same command goes on from there"
        interrupts.answer(saved, 0)
    rate = training.window.images_per_second()
    return FitResult(training.state, training.step, training.stopped, rate, training.scores)


class _Every(NamedTuple):
    """So many steps lie between two of each."""

    log: int
    evaluate: int | None
    checkpoint: int | None


class _Due(NamedTuple):
    """What is done after a step, before the next."""

    line: bool
    evaluation: bool
    checkpoint: bool


@dataclass
class _Training:
    """What a step leaves to the next one, and what works on it."""

    state: TrainState
    step: int
    parallel: Parallel
    batches: Batches
    window: Window
    checkpoints: Checkpoints | None
    evaluate: Callable[[TrainState], dict[str, float]] | None
    learning_rate: Callable[[int], Any] | None
    batch: Any = None
    stopped: bool = False
    scores: dict[str, float] = field(default_factory=dict)

    def read(self, what: str, *, slack: float = 1.0) -> None:
        with working(what, slack=slack):
            self.batch = self.parallel.put_batch(next(self.batches))

    def update(self) -> dict:
        """One step further; its metrics, on the devices."""
        self.step += 1
        self.state, metrics = self.parallel.train_step(self.state, self.batch)
        return metrics

    def due(self, every: _Every, *, last: bool) -> _Due:
        first, end = self.step == 1, last or self.stopped
        evaluation = self.evaluate is not None and not self.stopped
        evaluation = evaluation and (first or last or self._is_due(every.evaluate))
        checkpoint = self.checkpoints is not None
        checkpoint = checkpoint and (end or evaluation or self._is_due(every.checkpoint))
        line = end or evaluation or checkpoint or first or self._is_due(every.log)
        return _Due(line, evaluation, checkpoint)

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def report(self, due: _Due, position: Any, reports: "_Reports") -> None:
        """A line, with an evaluation and a checkpoint where they are due."""
        line = self._flush()
        reports.progress(self.step, line)
        if due.evaluation and self.evaluate is not None:
            with working("an evaluation"):
                self.scores = self.evaluate(self.state)
            line |= {f"validation/{name}": value for name, value in self.scores.items()}
        reports.log(self.step, line)
        if due.checkpoint and self.checkpoints is not None:
            with working("saving a checkpoint", slack=_SAVE_SLACK):
                reports.keep()
                one = self.parallel.get(self.state)
                check_state(self.step, one)
                self.checkpoints.save(self.step, one, position, self.scores if due.evaluation else None)
        self.window.restart()

    def _flush(self) -> dict[str, Any]:
        with waiting():
            line: dict[str, Any] = self.window.flush()
        if self.learning_rate is not None:
            line["learning_rate"] = float(self.learning_rate(self.step - 1))
        if self.step == 1 and line.get("loss") == 0 and is_main():
            print(_NO_LOSS, file=sys.stderr, flush=True)
        return line


def _run(
    training: _Training,
    steps: int,
    every: _Every,
    asked_to_stop: StopVotes,
    reports: "_Reports",
    held: contextlib.ExitStack,
) -> None:
    if training.step >= steps:
        return
    training.read("reading the first batch", slack=_FIRST_SLACK)
    with working("compiling", slack=math.inf):
        metrics = training.update()
    # Until a step is done there is nothing to save, and Ctrl-C ends the process at once.
    held.enter_context(interrupts.held())
    while True:
        last = training.step == steps
        with waiting():
            training.window.add(training.step, metrics)
            # Asked once a step, before the iterator moves on: the position saved is this step's.
            training.stopped = asked_to_stop(last=last)
        due = training.due(every, last=last)
        position = training.batches.get_state() if due.checkpoint else None
        end = last or training.stopped
        if not end:
            training.read("reading a batch")
        if due.line:
            training.report(due, position, reports)
        if end:
            return
        with waiting():
            metrics = training.update()


class _Reports(NamedTuple):
    """What is called with (step, values), for who watches and for metrics.jsonl; and what keeps that safe."""

    progress: Callable[[int, dict], None]
    log: Callable[[int, dict], None]
    keep: Callable[[], None]


@contextlib.contextmanager
def _watching(workdir: str | os.PathLike[str], step: int, steps: int, batch_size: int) -> Iterator[_Reports]:
    if not is_main():
        yield _Reports(lambda step, values: None, lambda step, values: None, lambda: None)
        return
    progress = show_progress(step, steps, batch_size=batch_size)
    with MetricsLog(workdir, after=step) as log, progress as show:
        yield _Reports(show, log.write, log.keep)
