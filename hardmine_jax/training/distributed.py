"""One job of several processes on JAX's own runtime: they join, end together, and process 0 alone speaks.

What they tell each other is in `exchange.py`. A single process needs none of it, and pays nothing.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax

from hardmine_jax.training.exchange import barrier, client, is_main

# A process that is not heard for so many seconds is dead; JAX then ends the others, naming it.
HEARTBEAT_SECONDS = 30
_POLL_SECONDS, _HEARD_SECONDS, _LAST_SECONDS = 0.5, 10.0, 3.0
_FAILED, _HEARD = "hardmine/failed/", "hardmine/heard/"
# What JAX says in a process whose peer or coordinator went away.
_PEER_LOST = ("gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "onnection", "eer ")


@contextlib.contextmanager
def joined(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None, *,
           explain: Callable[[BaseException], str | None] = lambda error: None) -> Iterator[None]:
    """Within it this process is one of a job's; enter it before anything touches a device.

    Any exception ends the whole job: the process says what it was, the others end too, and none returns
    from here. On CPUs the collectives are gloo's. Processes other than the first are silent but for errors
    and logged warnings.

    Args:
      coordinator, num_processes, process_id: HOST:PORT of process 0, how many there are, which one this is;
        all None where JAX finds them by itself (Cloud TPU, Slurm, Open MPI, Kubernetes).
      explain: the line for an error that is the user's to mend, exit code 2; None for a crash, exit code 1
        and the traceback.

    Raises:
      ValueError: some of the three are missing or senseless, or no cluster was found.
    """
    _initialise(coordinator, num_processes, process_id)
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(over,), daemon=True, name="hardmine-watch")
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


def _watch(over: threading.Event) -> None:
    """Ends this process when another has failed: a collective would wait for it in vain."""
    number = jax.process_index()
    while not over.wait(_POLL_SECONDS):
        try:
            failed = client().key_value_dir_get(_FAILED)
            if not failed:
                continue
            failure = json.loads(failed[0][1])
            if failure["process"] == number:
                return
            client().key_value_set(f"{_HEARD}{number}", "")
        except jax.errors.JaxRuntimeError:
            # The coordinator is gone: JAX ends this process by itself.
            return
        if is_main():
            print(f"process 0: ending too, for {failure['message']}", file=sys.__stderr__, flush=True)
            # The service that the others end by goes with this process: it is the last.
            time.sleep(_LAST_SECONDS)
        _exit(failure["code"])


def _end_job(error: BaseException, line: str | None) -> NoReturn:
    """Tells the other processes, and ends this one once they know."""
    number, code = jax.process_index(), 1 if line is None else 2
    # Gloo's come as ValueErrors.
    from_below = line is None and isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
    if from_below and any(said in str(error) for said in _PEER_LOST):
        lost = f"process {number}: lost another process ({_first_line(error)})"
        print(lost, file=sys.__stderr__, flush=True)
        # Meanwhile the one that failed is heard, or JAX names the one that died, and ends this process.
        time.sleep(HEARTBEAT_SECONDS + 15)
    said = f"process {number}: error: {line}" if line else f"process {number}: {_first_line(error)}"
    try:
        failure = {"process": number, "code": code, "message": said}
        client().key_value_set(f"{_FAILED}first", json.dumps(failure))
    except jax.errors.JaxRuntimeError:
        # Another failed first, most often of the same; the watcher ends this process.
        time.sleep(_HEARD_SECONDS)
    print(said, file=sys.__stderr__)
    if line is None:
        traceback.print_exception(error, file=sys.__stderr__)
    deadline = time.monotonic() + _HEARD_SECONDS
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while len(client().key_value_dir_get(_HEARD)) < len(_others()) and time.monotonic() < deadline:
            time.sleep(0.1)
    _exit(code)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _exit(code: int) -> NoReturn:
    """Ends at once: JAX's own way out waits for processes that will not come."""
    for child in multiprocessing.active_children():
        child.terminate()
    sys.__stdout__.flush()
    sys.__stderr__.flush()
    os._exit(code)
