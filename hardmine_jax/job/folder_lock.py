"""A folder that one process at a time writes to: the lock dies with its process, however that ends."""

import contextlib
import datetime
import errno
import fcntl
import os
import pathlib
import socket
import sys
from collections.abc import Iterator

from hardmine_jax.errors import UserError

_NAME = ".lock"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Within it no other process comes to hold the folder, which is made if missing.

    Where the file system has no locks it goes on, with a note on stderr.

    Raises:
      UserError: another process holds it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    file = None
    try:
        file = _open(folder / _NAME)
    except OSError as error:
        what = f"{folder} could not be locked ({error.strerror})"
        print(f"note: {what}: start no other run in it meanwhile", file=sys.stderr)
    try:
        yield
    finally:
        if file is not None:
            # While it is held: who has opened it by then sees that it is not the folder's any more.
            with contextlib.suppress(OSError):
                (folder / _NAME).unlink()
            os.close(file)
        if made:
            # Nothing has come of it.
            with contextlib.suppress(OSError):
                folder.rmdir()


def _open(path: pathlib.Path) -> int:
    """The number of the locked file."""
    while True:
        # flock's lock is this opening's: it ends with the process, and children do not inherit the number.
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(file, path):
                _write_owner(file)
                return file
        except OSError as error:
            owner = _read_owner(file)
            os.close(file)
            if error.errno in _HELD:
                raise UserError(
                    f"{path.parent} is in use{owner}: wait until that run has ended, or take another folder"
                ) from None
            raise
        # Removed meanwhile by the process that held it.
        os.close(file)


def _is(file: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _write_owner(file: int) -> None:
    now = datetime.datetime.now().isoformat(" ", "seconds")
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()} since {now}".encode())


def _read_owner(file: int) -> str:
    with contextlib.suppress(OSError):
        said = os.pread(file, 200, 0).decode(errors="replace")
        if said.isprintable() and said:
            return f" by {said}"
    return ""
