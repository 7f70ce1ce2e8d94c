"""Input processes that end with the process that asked for them, however it ends, and not before."""

import contextlib
import errno
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import NamedTuple

# A terminal sends them to all that run in it, Slurm SIGTERM to all of a task: it is the trainer's to say when
# the input ends, who may need it to finish its step.
_OF_THE_TRAINER = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_SHARED_MEMORY = "/dev/shm"


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """What starts within it never receives the signals that end a training run."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_TRAINER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_tracker() -> None:
    """Starts what gives back the shared memory that killed processes leave, without a word about it."""
    # Before `starting_workers`: it unblocks signals that were blocked.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    try:
        # Against SIGHUP it does nothing itself.
        with starting_workers():
            resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()


def end_with_parent(_index: int = 0, _count: int = 1) -> None:
    """To be called in a process of `multiprocessing`: it ends as soon as its parent does."""
    threading.Thread(target=_wait_for_parent, daemon=True, name="hardmine-parent").start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Of a pipe that the kernel closes, so that it ends for a parent that was killed, too.
        parent.join()
        os._exit(1)


class WorkerProblem(NamedTuple):
    """What became of input processes.

    Attributes:
      line: what to read.
      sure: whether it would be the same the next time.
      cause: for who asks whether a later start may go well.
    """

    line: str
    sure: bool
    cause: BaseException


def explain_worker(error: BaseException) -> WorkerProblem | None:
    """What an error of grain's or of `multiprocessing` says of input processes; None of any other."""
    # No semaphore can be made.
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOENT, errno.EACCES, errno.ENOSYS):
        if error.filename is not None:
            return None
        return WorkerProblem(
            f"{shared_memory()} has no room for input processes: make it larger", True, error
        )
    ended = re.search(r"terminated unexpectedly with exit code (-?[0-9]+)", str(error))
    if ended is None:
        return None
    code = int(ended[1])
    if code == -signal.SIGBUS:
        return WorkerProblem(f"{shared_memory()} has no room for the batches: make it larger", True, error)
    why = "was killed, as when memory runs out" if code == -signal.SIGKILL else f"ended with exit code {code}"
    # A passing one: the next start may go well.
    return WorkerProblem(f"an input process {why}", False, OSError(errno.EIO, "an input process ended"))


def shared_memory() -> str:
    """/dev/shm and how large it is."""
    try:
        size = shutil.disk_usage(_SHARED_MEMORY).total
    except OSError:
        return f"{_SHARED_MEMORY} (which is not there)"
    return (
        f"{_SHARED_MEMORY} ({size / 1e6:,.1f} MB)" if size >= 1e6 else f"{_SHARED_MEMORY} ({size // 1024} kB)"
    )
