"""A request to stop that training can finish its step for, in all processes after the same step."""

import contextlib
import signal
import threading
import types
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hardmine_jax.job import interrupts
from hardmine_jax.job.activity import activity

# So many steps lie between a vote and its count: the devices have them done by then, and no step waits.
_BEHIND = 2


_TWICE = "interrupted again: ended at once; checkpoints of earlier steps are kept"


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Within it SIGTERM, SIGHUP and the first Ctrl-C set the event; a second Ctrl-C ends the process at once.

    A second one that comes while a checkpoint is being written only says so; the next one ends it. SIGHUP
    stays ignored where it was, as by nohup. The handlers of before come back at the end. Outside the main
    thread, where Python allows no handlers, the event is never set.
    """
    stop = threading.Event()
    warned = False

    def handle(number: int, _frame: types.FrameType | None) -> None:
        nonlocal warned
        if number == signal.SIGINT and stop.is_set():
            if warned or "checkpoint" not in (activity().what or ""):
                interrupts.interrupt(_TWICE)
            warned = True
            interrupts.say("a checkpoint is being written: Ctrl-C once more gives it up")
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        if stop.is_set() and interrupts.is_listening():
            # The process is about to end, with what it was asked for done: asked again it ends no other way.
            before = {signal.SIGINT: before[signal.SIGINT]}
        for number, handler in before.items():
            # None: set by something other than Python, and not ours to know.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopVotes:
    """Whether any process was asked to stop: the same answer at the same step in each.

    A single process answers for itself, at once. Several vote in every step, by a sum of their own over the
    devices, and count two steps later; in the last step at once, so that no request is lost.

    Args:
      stop: this process's request.
      mesh: all devices.
    """

    def __init__(self, stop: threading.Event, mesh: Mesh):
        self._stop = stop
        self._votes: list[jax.Array] = []
        if jax.process_count() > 1:
            self._count = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
            self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            self._num_local = len(mesh.local_devices)

    def __call__(self, *, last: bool) -> bool:
        """To be asked once a step; `last` says that it is for the last time."""
        if jax.process_count() == 1:
            return self._stop.is_set()
        vote = np.full(self._num_local, self._stop.is_set(), np.int32)
        self._votes.append(self._count(jax.make_array_from_process_local_data(self._split, vote)))
        if not last and len(self._votes) <= _BEHIND:
            return False
        counted = self._votes[-1] if last else self._votes.pop(0)
        return bool(np.asarray(counted.addressable_data(0)))
