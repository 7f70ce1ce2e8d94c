"""What a run is busy with beside its steps, and how long that took: lines on stdout, terminal or not."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hardmine_jax.job.exchange import is_main


@contextlib.contextmanager
def phase(doing: str, done: str) -> Iterator[None]:
    """Within it process 0 has said what it does; then in how many seconds that was done.

    >>> with phase("boiling the egg", "boiled it"):
    ...     pass
    boiling the egg ...
    boiled it in 0.0 s
    """
    _say(f"{doing} ...")
    started = time.perf_counter()
    yield
    _say(f"{done} in {time.perf_counter() - started:,.1f} s")


def first_in_phase(function: Callable[..., Any], doing: str, done: str) -> Callable[..., Any]:
    """The function, whose first call is a phase: of a jitted one that is the compilation."""
    called = False

    def wrapped(*args: Any) -> Any:
        nonlocal called
        if called:
            return function(*args)
        called = True
        with phase(doing, done):
            return function(*args)

    return wrapped


def tell_scores(step: int, scores: Mapping[str, float], seconds: float) -> None:
    """A line about an evaluation while training.

    >>> tell_scores(200, {"pck": 0.25, "ap": 0.1234}, 3.14)
    evaluation at step 200: pck 0.250, ap 0.123 (3.1 s)
    """
    shown = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    _say(f"evaluation at step {step}: {shown} ({seconds:,.1f} s)")


def _say(line: str) -> None:
    if is_main():
        print(line, flush=True)
