"""The thread that watches a process of a job, and ends it when another failed, or when it hangs itself."""

import sys
import threading
import time
import traceback

import jax

from hardmine_jax.job import ending
from hardmine_jax.job.activity import Activity, activity
from hardmine_jax.job.exchange import client, is_main
from hardmine_jax.job.interrupts import exit_now, say

# All wait for each other: so many times the patience, since a step may take long.
ALL_WAIT_SLACK = 10.0
_POLL_SECONDS, _TICK_SECONDS, _LAST_SECONDS = 0.5, 5.0, 3.0
_WAITS, _TICKS = "hardmine/waits/", "hardmine/ticks/"


def watch(over: threading.Event, patience: float, thread: int) -> None:
    """Ends this process when another has failed, which a collective would wait for in vain, or when it hangs.

    Args:
      over: set when the job has come to its end.
      patience: see `distributed.joined`; infinite waits for ever.
      thread: the one that trains.
    """
    look = _Lookout(patience, thread)
    while not over.wait(_POLL_SECONDS):
        try:
            failure = ending.declared()
            if failure is None:
                look()
                continue
            if failure.by == jax.process_index():
                # Its main thread ends it.
                return
            ending.acknowledge()
        except jax.errors.JaxRuntimeError:
            # A call that failed once is made again; if the coordinator is gone, JAX ends this process.
            continue
        if is_main():
            say(f"process 0: ending too, for {failure.message}")
            # The service that the others end by goes with this process: it is the last.
            time.sleep(_LAST_SECONDS)
        exit_now(failure.code)


class _Lookout:
    """Called again and again, finds what JAX's heartbeat, from a thread outside of Python, does not.

    This process hangs, while others wait for it; all wait for each other, as when a device hangs; the next
    process's Python stands still. Each looks after one other, so that their number does not matter.
    """

    def __init__(self, patience: float, thread: int):
        self._patience, self._thread = patience, thread
        # Who waits or works for less is none to speak of.
        self._soon = min(_TICK_SECONDS, patience / 2)
        self._me = jax.process_index()
        self._neighbour = (self._me + 1) % jax.process_count()
        self._reported_waiting, self._reported_doing, self._ticks, self._seen = False, "idle", 0, ""
        self._suspect: tuple[Activity, float] | None = None
        self._called = self._ticked = self._seen_at = time.monotonic()

    def __call__(self) -> None:
        if jax.process_count() == 1:
            return
        now = time.monotonic()
        if now - self._called > _TICK_SECONDS:
            # This process itself stood still, perhaps with its whole machine: what it heard last is old.
            self._seen_at = now
        self._called = now
        self._report_waiting(now)
        self._check_myself(now)
        doing = "idle" if activity().what is None else "at work"
        # What it does is told at once: whoever froze soon after would count as idle.
        if now - self._ticked >= _TICK_SECONDS or doing != self._reported_doing:
            self._ticked, self._ticks, self._reported_doing = now, self._ticks + 1, doing
            client().key_value_set(f"{_TICKS}{self._me}", f"{self._ticks} {doing}", allow_overwrite=True)
            self._check_neighbour(now)

    def _report_waiting(self, now: float) -> None:
        current = activity()
        waits = current.waiting and now - current.since > self._soon
        if waits and not self._reported_waiting:
            client().key_value_set(f"{_WAITS}{self._me}", "", allow_overwrite=True)
        if self._reported_waiting and not waits:
            client().key_value_delete(f"{_WAITS}{self._me}")
        self._reported_waiting = waits

    def _check_myself(self, now: float) -> None:
        current = activity()
        if current.what is None or now - current.since < self._soon:
            self._suspect = None
            return
        waiting = [int(key.rpartition("/")[2]) for key, _ in client().key_value_dir_get(_WAITS)]
        all_wait = len(waiting) == jax.process_count()
        # Counted from when the others have to wait, or the last one does: until then nothing is wrong.
        if activity() != current or not (all_wait if current.waiting else waiting):
            self._suspect = None
        elif self._suspect is None or self._suspect[0] != current:
            self._suspect = current, now
        elif now - self._suspect[1] >= self._patience * (ALL_WAIT_SLACK if all_wait else current.slack):
            long = f"{now - current.since:.0f} s in {current.what}"
            self._end(
                f"all processes wait for each other, process {self._me} {long}: a device or the network hangs"
                if all_wait
                else f"process {self._me} hangs: {long}, while process {min(waiting)} waits"
            )

    def _end(self, said: str) -> None:
        if ending.declare(1, said):
            stack = "".join(traceback.format_stack(sys._current_frames()[self._thread]))
            where = f"a larger patience allows more. Process {self._me} is here:\n{stack}"
            say(f"{said}; {where}".rstrip())
            ending.wait_until_acknowledged()
            exit_now(1)

    def _check_neighbour(self, now: float) -> None:
        try:
            tick = client().key_value_try_get(f"{_TICKS}{self._neighbour}")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
            # It has not come so far as to tick.
            tick = "idle"
        if tick != self._seen or tick.endswith("idle"):
            self._seen, self._seen_at = tick, now
        elif now - self._seen_at > max(self._patience, 3 * _TICK_SECONDS):
            seconds = f"{now - self._seen_at:.0f} s"
            said = f"process {self._neighbour} hangs or is gone: its Python has stood still for {seconds}"
            if ending.declare(1, said):
                say(f"process {self._me}: {said}")
                ending.wait_until_acknowledged(but=1)
                exit_now(1)
