"""One job of several processes on JAX's own runtime: they join, end together, and process 0 alone speaks.

What they tell each other is in `exchange.py`. A single process needs none of it, and pays nothing.
"""

import contextlib
import errno
import json
import logging
import math
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax

from hardmine_jax.training.activity import activity
from hardmine_jax.training.exchange import barrier, client, is_main
from hardmine_jax.training.window import NonFiniteError

# A process that is not heard for so many seconds is dead; JAX then ends the others, naming it.
HEARTBEAT_SECONDS = 30
# A process that others wait for hangs when it works for longer than this without coming on.
PATIENCE_SECONDS = 45.0
# All wait for each other: so many times the patience, since a step may take long.
_ALL_WAIT_SLACK = 10.0
_POLL_SECONDS, _TICK_SECONDS, _HEARD_SECONDS, _LAST_SECONDS = 0.5, 5.0, 10.0, 3.0
_FAILED, _HEARD, _WAITS, _TICKS = "hardmine/failed/", "hardmine/heard/", "hardmine/waits/", "hardmine/ticks/"
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED,
            errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH)  # fmt: skip
# What JAX says in a process whose peer or coordinator went away.
_PEER_LOST = ("gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "onnection", "eer ")


@contextlib.contextmanager
def joined(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None, *,
           patience: float = PATIENCE_SECONDS,
           explain: Callable[[BaseException], str | None] = lambda error: None) -> Iterator[None]:
    """Within it this process is one of a job's; enter it before anything touches a device.

    Any exception ends the whole job: the process says what it was, the others end too, and none returns
    from here. So does a process that dies, or hangs in what `activity.working` marks, or whose Python stands
    still there: it is named, and where its Python still runs it shows where it hangs. On CPUs the collectives
    are gloo's. Processes other than the first are silent but for errors and logged warnings.

    Args:
      coordinator, num_processes, process_id: HOST:PORT of process 0, how many there are, which one this is;
        all None where JAX finds them by itself (Cloud TPU, Slurm, Open MPI, Kubernetes).
      patience: seconds that a process may work by itself, between two signs of life, while others wait for
        it; 0 waits for ever.
      explain: the line for an error that is the user's to mend, exit code 2 (1 where `restart_may_mend` it);
        None for a crash, exit code 1 and the traceback.

    Raises:
      ValueError: some of the three are missing or senseless, or no cluster was found.
    """
    if patience < 0:
        raise ValueError(f"patience={patience} < 0: give seconds, or 0 to wait for ever")
    _initialise(coordinator, num_processes, process_id)
    over = threading.Event()
    arguments = (over, patience or math.inf, threading.get_ident())
    watcher = threading.Thread(target=_watch, args=arguments, daemon=True, name="hardmine-watch")
    watcher.start()
    try:
        with _only_main_speaks():
            yield
        # Process 0 may write its report for longer than JAX's own shutdown would wait.
        barrier("the end")
    except BaseException as error:
        _end_job(error, explain(error))
    over.set()
    watcher.join()
    jax.distributed.shutdown()


def _initialise(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    given = (coordinator, num_processes, process_id)
    if None in given and given != (None, None, None):
        raise ValueError("give all of --coordinator, --num-processes and --process-id, or none of them")
    if coordinator is not None:
        if not coordinator.rpartition(":")[2].isdecimal():
            raise ValueError(f"--coordinator {coordinator}: give HOST:PORT of process 0")
        if not 0 <= process_id < num_processes:
            raise ValueError(f"--process-id {process_id} must lie in 0 .. {num_processes - 1}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself, also where nothing is there to save yet.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except ValueError as error:
        raise ValueError(
            f"--distributed found no cluster ({error}): give --coordinator HOST:PORT --num-processes N "
            "--process-id I"
        ) from error


@contextlib.contextmanager
def _only_main_speaks() -> Iterator[None]:
    if is_main():
        yield
        return
    before = logging.lastResort
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter(f"process {jax.process_index()}: %(message)s"))
    with open(os.devnull, "w") as nowhere:
        logging.lastResort = handler
        try:
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
        finally:
            logging.lastResort = before


def _others() -> list[int]:
    return [number for number in range(jax.process_count()) if number != jax.process_index()]


def _watch(over: threading.Event, patience: float, thread: int) -> None:
    """Ends this process when another has failed, which a collective would wait for in vain, or when it hangs.

    Args:
      thread: the one that trains.
    """
    look = _Lookout(patience, thread)
    while not over.wait(_POLL_SECONDS):
        try:
            failed = client().key_value_dir_get(_FAILED)
            if not failed:
                look()
                continue
            failure = json.loads(failed[0][1])
            if failure["by"] == jax.process_index():
                # Its main thread, or the lookout, ends it.
                return
            client().key_value_set(f"{_HEARD}{jax.process_index()}", "")
        except jax.errors.JaxRuntimeError:
            # The coordinator is gone: JAX ends this process by itself.
            return
        if is_main():
            print(f"process 0: ending too, for {failure['message']}", file=sys.__stderr__, flush=True)
            # The service that the others end by goes with this process: it is the last.
            time.sleep(_LAST_SECONDS)
        _exit(failure["code"])


class _Lookout:
    """Called again and again, finds what JAX's heartbeat, from a thread outside of Python, does not.

    This process hangs, while others wait for it; all wait for each other, as when a device hangs; the next
    process's Python stands still. Each looks after one other, so that their number does not matter.
    """

    def __init__(self, patience: float, thread: int):
        self._patience, self._thread = patience, thread
        self._me = jax.process_index()
        self._neighbour = (self._me + 1) % jax.process_count()
        self._told_waiting, self._ticks, self._heard = False, 0, ""
        self._called = self._ticked = self._heard_at = time.monotonic()

    def __call__(self) -> None:
        if jax.process_count() == 1:
            return
        now = time.monotonic()
        if now - self._called > _TICK_SECONDS:
            # This process itself stood still, perhaps with its whole machine: what it heard last is old.
            self._heard_at = now
        self._called = now
        self._tell_waiting(now)
        self._check_myself(now)
        if now - self._ticked >= _TICK_SECONDS:
            self._tick(now)
            self._check_neighbour(now)

    def _tell_waiting(self, now: float) -> None:
        current = activity()
        waits = current.waiting and now - current.since > min(_TICK_SECONDS, self._patience / 2)
        if waits and not self._told_waiting:
            client().key_value_set(f"{_WAITS}{self._me}", "", allow_overwrite=True)
        if self._told_waiting and not waits:
            client().key_value_delete(f"{_WAITS}{self._me}")
        self._told_waiting = waits

    def _check_myself(self, now: float) -> None:
        current = activity()
        seconds = now - current.since
        allowed = self._patience * (_ALL_WAIT_SLACK if current.waiting else current.slack)
        if current.what is None or seconds < allowed:
            return
        waiting = [int(key.rpartition("/")[2]) for key, _ in client().key_value_dir_get(_WAITS)]
        if activity() != current:
            return
        long = f"{seconds:.0f} s"
        if not current.waiting and waiting:
            other = f"process {min(waiting)} waits"
            self._end(f"process {self._me} hangs: {long} in {current.what}, while {other}")
        if current.waiting and len(waiting) == jax.process_count():
            cause = "a device or the network hangs"
            self._end(f"all processes wait for each other, this one for {long}: {cause}")

    def _end(self, said: str) -> None:
        if _declare(1, said):
            stack = "".join(traceback.format_stack(sys._current_frames()[self._thread]))
            where = f"--patience allows more. Process {self._me} is here:\n{stack}"
            print(f"{said}; {where}", file=sys.__stderr__, end="", flush=True)
            _wait_until_heard()
            _exit(1)

    def _tick(self, now: float) -> None:
        self._ticked, self._ticks = now, self._ticks + 1
        tick = f"{self._ticks} {'idle' if activity().what is None else 'at work'}"
        client().key_value_set(f"{_TICKS}{self._me}", tick, allow_overwrite=True)

    def _check_neighbour(self, now: float) -> None:
        try:
            tick = client().key_value_try_get(f"{_TICKS}{self._neighbour}")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
            # It has not come so far as to tick.
            tick = "idle"
        if tick != self._heard or tick.endswith("idle"):
            self._heard, self._heard_at = tick, now
        elif now - self._heard_at > max(self._patience, 3 * _TICK_SECONDS):
            seconds = f"{now - self._heard_at:.0f} s"
            said = f"process {self._neighbour} hangs or is gone: its Python has stood still for {seconds}"
            if _declare(1, said):
                print(f"process {self._me}: {said}", file=sys.__stderr__, flush=True)
                _wait_until_heard(but=1)
                _exit(1)


def restart_may_mend(error: BaseException) -> bool:
    """Whether, after an error that is explained in a line, a start from the last checkpoint is worth a try.

    A NaN may come from a broken chip; storage and its network, which those codes are about, come back.
    """
    return isinstance(error, NonFiniteError) or (isinstance(error, OSError) and error.errno in _PASSING)


def _end_job(error: BaseException, line: str | None) -> NoReturn:
    """Tells the other processes, and ends this one once they know."""
    number = jax.process_index()
    code = 1 if line is None or restart_may_mend(error) else 2
    # Gloo's come as ValueErrors.
    from_below = line is None and isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
    if from_below and any(said in str(error) for said in _PEER_LOST):
        lost = f"process {number}: lost another process ({_first_line(error)})"
        print(lost, file=sys.__stderr__, flush=True)
        # Meanwhile the one that failed is heard, or JAX names the one that died, and ends this process.
        time.sleep(HEARTBEAT_SECONDS + 15)
    said = f"process {number}: error: {line}" if line else f"process {number}: {_first_line(error)}"
    if not _declare(code, said):
        # Another failed first, most often of the same; the watcher ends this process.
        time.sleep(_HEARD_SECONDS)
    print(said, file=sys.__stderr__)
    if line is None:
        traceback.print_exception(error, file=sys.__stderr__)
    _wait_until_heard()
    _exit(code)


def _declare(code: int, said: str) -> bool:
    """Tells all processes to end with that code, and why; False where another has told them already."""
    failure = {"by": jax.process_index(), "code": code, "message": said}
    try:
        client().key_value_set(f"{_FAILED}first", json.dumps(failure))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _wait_until_heard(but: int = 0) -> None:
    """Until all other processes have, `but` so many that cannot; not for long."""
    deadline = time.monotonic() + _HEARD_SECONDS
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while len(client().key_value_dir_get(_HEARD)) < len(_others()) - but and time.monotonic() < deadline:
            time.sleep(0.1)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _exit(code: int) -> NoReturn:
    """Ends at once: JAX's own way out waits for processes that will not come."""
    for child in multiprocessing.active_children():
        child.terminate()
    sys.__stdout__.flush()
    sys.__stderr__.flush()
    os._exit(code)
