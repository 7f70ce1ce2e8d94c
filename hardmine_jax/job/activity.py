"""What this process is at, so that in a job of several one that hangs is told from those that wait for it.

Inside `working` a process has to come on, inside `waiting` it is the others' turn; the innermost one counts,
from when something was last entered or left. Outside of both nobody asks: preparing data may take hours. Only
the thread that trains uses them; another one watches (`lookout.py`).
"""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple


class Activity(NamedTuple):
    """Attributes: what is done, None where nobody asks; whether it is waiting for other processes; since when
    (time.monotonic); how many times the usual patience it may take."""

    what: str | None
    waiting: bool
    since: float
    slack: float = 1.0


_now = Activity(None, False, time.monotonic())


def activity() -> Activity:
    """Of this process, now."""
    return _now


@contextlib.contextmanager
def working(what: str, *, slack: float = 1.0) -> Iterator[None]:
    """Within it this process comes on; where it keeps the others waiting beyond their patience it hangs.

    Args:
      what: as in "process 1 hangs in WHAT".
      slack: so many times the usual patience; infinite for what nobody can know the length of.
    """
    with _doing(what, False, slack):
        yield


@contextlib.contextmanager
def waiting(what: str = "a step") -> Iterator[None]:
    """Within it this process waits for the others, or for its own devices."""
    with _doing(what, True, 1.0):
        yield


@contextlib.contextmanager
def _doing(what: str, is_waiting: bool, slack: float) -> Iterator[None]:
    global _now
    before = _now
    _now = Activity(what, is_waiting, time.monotonic(), slack)
    try:
        yield
    finally:
        # Something came to its end: what is around it begins anew.
        _now = before._replace(since=time.monotonic())
