"""A trace of some training steps by `jax.profiler`: what ran on the devices and on the host, and when.

Steps are counted from 1, as in the log. A trace lies in `<folder>/plugins/profile/<time>/`; XProf reads it.
"""

import contextlib
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from hardmine_jax.errors import UserError
from hardmine_jax.job.activity import working
from hardmine_jax.job.exchange import is_main
from hardmine_jax.training.state import TrainState
from hardmine_jax.training.step import Step

# Tracing slows no step down much, but what it saw is written at once, and may be large.
_WRITE_SLACK = 10.0


class StepRange(NamedTuple):
    """Steps `first` to `last`, both included, the run's first being 1."""

    first: int
    last: int


def parse_step_range(text: str) -> StepRange:
    """
    >>> parse_step_range("10:12")
    StepRange(first=10, last=12)

    Raises:
      UserError: the text is no such range.
    """
    first, colon, last = text.partition(":")
    if not (colon and all(re.fullmatch("[0-9]{1,9}", one) for one in (first, last))):
        raise UserError(f"{text!r} is no range of steps: write FROM:TO, as 10:15")
    if not 1 <= int(first) <= int(last):
        raise UserError(f"{text!r} is no range of steps: FROM is at least 1, TO at least FROM")
    return StepRange(int(first), int(last))


class Profiled:
    """A training step that is traced while it is at certain steps, in process 0 alone.

    Args:
      step: the compiled one; at: how many were made before its next call.
      steps: which are traced, as far as they are still to come.
      folder: what the trace is written to.
    """

    def __init__(self, step: Step, *, at: int, steps: StepRange, folder: pathlib.Path):
        self._step, self._at, self._steps, self._folder = step, at, steps, folder
        self._from: int | None = None

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        self._at += 1
        if self._from is None and self._steps.first <= self._at <= self._steps.last and is_main():
            self._start(state)
        # The trace viewer shows by it which step is which, and XProf how long each took.
        with jax.profiler.StepTraceAnnotation("train", step_num=self._at):
            state, metrics = self._step(state, batch)
        if self._from is not None and self._at == self._steps.last:
            self.stop(metrics)
        return state, metrics

    def _start(self, state: TrainState) -> None:
        # What is still running is of the steps before.
        jax.block_until_ready(state)
        try:
            jax.profiler.start_trace(self._folder)
        except (OSError, RuntimeError) as error:
            # Somebody else's trace is running in this process, say. Training is worth more than its trace.
            self._steps = StepRange(0, 0)
            _warn(f"steps cannot be traced ({_reason(error)})")
        else:
            self._from = self._at

    def stop(self, running: Any = None) -> None:
        """Ends a trace, if there is one, after what is `running` on the devices, and says where it lies."""
        first, self._from = self._from, None
        if first is None:
            return
        with working("writing a trace", slack=_WRITE_SLACK):
            try:
                jax.block_until_ready(running)
            finally:
                self._write(first)

    def _write(self, first: int) -> None:
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:
            _warn(f"the trace of steps {first} to {self._at} could not be written ({_reason(error)})")
            return
        print(
            f"a trace of steps {first} to {self._at} is in {self._folder}: pip install xprof, then xprof "
            f"{self._folder} (or TensorBoard with its profile plugin, on the same folder)",
            flush=True,
        )


@contextlib.contextmanager
def profiled(step: Step, *, at: int, steps: StepRange, folder: pathlib.Path) -> Iterator[Profiled]:
    """Within it the step is traced when its time comes; the trace of a run that is stopped ends there."""
    one = Profiled(step, at=at, steps=steps, folder=folder)
    try:
        yield one
    finally:
        one.stop()


def _warn(what: str) -> None:
    print(f"warning: {what}; training goes on", file=sys.stderr, flush=True)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
