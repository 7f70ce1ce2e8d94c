"""One job of several processes on JAX's own runtime: they join, end together, and process 0 alone speaks.

What they tell each other is in `exchange.py`, what becomes of failures in `ending.py`, of those that hang in
`lookout.py`. A single process needs none of it, and pays nothing.
"""

import contextlib
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator

import jax

from hardmine_jax.errors import UserError
from hardmine_jax.job import interrupts
from hardmine_jax.job.ending import HEARTBEAT_SECONDS, end_job, end_others
from hardmine_jax.job.exchange import barrier, is_main
from hardmine_jax.job.lookout import watch

# A process that others wait for hangs when it works for longer than this without coming on.
PATIENCE_SECONDS = 45.0
_LONGEST = 1e9


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    patience: float = PATIENCE_SECONDS,
    explain: Callable[[BaseException], str | None] = lambda error: None,
) -> Iterator[None]:
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
      explain: the line for an error that is the user's to mend, exit code 2, or 1 where
        `ending.restart_may_mend` it; None for a crash, exit code 1 and the traceback.

    Raises:
      UserError: some of the three are missing or senseless, or no cluster was found.
    """
    if not 0 <= patience <= _LONGEST:
        raise UserError(
            f"patience={patience} must lie in [0, {_LONGEST:.0e}]: give seconds, or 0 to wait for ever"
        )
    _initialise(coordinator, num_processes, process_id)
    over = threading.Event()
    arguments = (over, patience or math.inf, threading.get_ident())
    watcher = threading.Thread(target=watch, args=arguments, daemon=True, name="hardmine-watch")
    watcher.start()
    try:
        with _only_main_speaks(), interrupts.telling(end_others, silent=not is_main()):
            yield
        # Process 0 may write its report for longer than JAX's own shutdown would wait.
        barrier("the end")
    except BaseException as error:
        end_job(error, explain(error))
    over.set()
    watcher.join()
    jax.distributed.shutdown()


def _initialise(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    given = (coordinator, num_processes, process_id)
    if None in given and given != (None, None, None):
        raise UserError("give all of coordinator, num_processes and process_id, or none of them")
    if coordinator is not None and num_processes is not None and process_id is not None:
        if not coordinator.rpartition(":")[2].isdecimal():
            raise UserError(f"coordinator={coordinator}: give HOST:PORT of process 0")
        if not 0 <= process_id < num_processes:
            raise UserError(f"process_id={process_id} must lie in 0 .. {num_processes - 1}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself, also where nothing is there to save yet.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except ValueError as error:
        raise UserError(
            f"no cluster was found ({error}): give coordinator, HOST:PORT of process 0, num_processes and "
            "process_id"
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
