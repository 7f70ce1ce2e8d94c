"""Files that somebody else names: only regular ones are opened."""

import errno
import os
import pathlib
import stat


def read_bytes(path: str | os.PathLike, *, max_bytes: int | None = None) -> bytes:
    """A regular file's content, behind a link too.

    A pipe that nobody writes to would wait at its opening without end, and a device might never stop.

    Raises:
      OSError: there is no such file, it cannot be read, is no regular one, or has more than `max_bytes`.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no regular file", os.fspath(path))
    if max_bytes is not None and status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"has more than {max_bytes:,} bytes", os.fspath(path))
    return pathlib.Path(path).read_bytes()
