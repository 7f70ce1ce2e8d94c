"""Locks that die with their process, however it ends."""

import errno
import fcntl
import os
import pathlib

_HELD = (errno.EWOULDBLOCK, errno.EACCES)


def open_locked(path: pathlib.Path, flags: int) -> int | None:
    """Opens a file or folder that no other process holds, by `os.open`'s flags; it is free again when closed.

    Returns:
      The number of what is open; None where another holds it.

    Raises:
      OSError: it cannot be opened, or the file system has no locks.
    """
    # flock's lock is this opening's: it ends with the process, and children do not inherit the number.
    opened = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(opened)
        if error.errno in _HELD:
            return None
        raise
    return opened
