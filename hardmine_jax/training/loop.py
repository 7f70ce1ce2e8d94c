"""The training loop: steps in flight, and now and then a log line, an evaluation, a checkpoint."""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    step, stopped, compiled = int(state.step), False, False
    scores: dict[str, float] = {}
    state, window = parallel.put_state(state), Window(batch_size, parallel.get, speed)
    with contextlib.ExitStack() as holding, stop_requests() as stop:
        asked_to_stop = StopVotes(stop, parallel.mesh)
        try:
            with _watching(workdir, step, steps, batch_size) as reports, working("training"):
                if step < steps:
                    with working("reading the first batch", slack=_FIRST_SLACK):
                        batch = parallel.put_batch(next(batches))
                while step < steps and not stopped:
                    step += 1
                    last = step == steps
                    with waiting() if compiled else working("compiling", slack=math.inf):
                        state, metrics = parallel.train_step(state, batch)
                    if not compiled:
                        # Until a step is done there is nothing to save, and Ctrl-C ends the process at once.
                        holding.enter_context(interrupts.held())
                        compiled = True
                    with waiting():
                        window.add(step, metrics)
                        # Read once a step, before the iterator moves on: the position saved is this step's.
                        stopped = asked_to_stop(last=last)
                    due = step == 1 or last or _due(step, evaluate_every)
                    evaluating = evaluate is not None and not stopped and due
                    saving = checkpoints is not None and (
                        last or stopped or evaluating or _due(step, checkpoint_every)
                    )
                    position = batches.get_state() if saving else None
                    if not (last or stopped):
                        with working("reading a batch"):
                            batch = parallel.put_batch(next(batches))
                    if not (last or stopped or evaluating or saving or step == 1 or _due(step, log_every)):
                        continue
                    with waiting():
                        line: dict[str, Any] = window.flush()
                    if learning_rate is not None:
                        line["learning_rate"] = float(learning_rate(step - 1))
                    if step == 1 and line.get("loss") == 0 and is_main():
                        print(_NO_LOSS, file=sys.stderr, flush=True)
                    reports.progress(step, line)
                    if evaluate is not None and evaluating:
                        with working("an evaluation"):
                            scores = evaluate(state)
                        line |= {f"validation/{name}": value for name, value in scores.items()}
                    reports.log(step, line)
                    if checkpoints is not None and saving:
                        with working("saving a checkpoint", slack=_SAVE_SLACK):
                            reports.keep()
                            one = parallel.get(state)
                            check_state(step, one)
                            checkpoints.save(step, one, position, scores if evaluating else None)
                    window.restart()
        finally:
            if checkpoints is not None:
                with working("saving the last checkpoint", slack=_SAVE_SLACK):
                    checkpoints.wait()
        if not stopped:
            # While the last checkpoint was being written; what comes after it may be long.
            with waiting():
                stopped = asked_to_stop(last=True)
    if checkpoints is not None and (must_save or stopped):
        checkpoints.check_saved()
        interrupts.answer(f"interrupted: step {step} is saved, the same command goes on from there", 0)
    return FitResult(state, step, stopped, window.images_per_second(), scores)


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


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
