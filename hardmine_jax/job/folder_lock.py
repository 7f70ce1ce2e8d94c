"""A folder that one process at a time writes to: the lock dies with its process, however that ends."""

import contextlib
import datetime
import os
import pathlib
import socket
import sys
from collections.abc import Iterator

from hardmine_jax.errors import UserError
from hardmine_jax.file_lock import open_locked

_NAME = ".lock"


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
        file = open_locked(path, os.O_RDWR | os.O_CREAT)
        if file is None:
            used = f"{path.parent} is in use{_read_owner(path)}"
            raise UserError(f"{used}: wait until that run has ended, or take another folder")
        try:
            if _is(file, path):
                _write_owner(file)
                return file
        except OSError:
            os.close(file)
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


def _read_owner(path: pathlib.Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        said = file.read(200).decode(errors="replace")
        if said.isprintable() and said:
            return f" by {said}"
    return ""
