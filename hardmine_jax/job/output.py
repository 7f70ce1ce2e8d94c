"""What is printed, when nobody reads it any more: `| head`, a terminal that was closed."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

_NOBODY_READS = (errno.EPIPE, errno.EIO)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Within it the process's output may go away: what is printed then is dropped, and no error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_lasting(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        sys.stdout, sys.stderr = before


class _Lasting(io.FileIO):
    """A file that turns to nowhere once nobody reads it."""

    def write(self, content, /):  # type: ignore[no-untyped-def]  # Bytes of any kind.
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
        # By the number, which what is not Python writes to as well.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno(), inheritable=True)
        os.close(nowhere)
        return len(content)


def _lasting(stream: TextIO) -> TextIO:
    """The same file under another stream; itself where it is no file, as in a notebook."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        stream.flush()
        number = stream.fileno()
        file = _Lasting(number, "w", closefd=False)
    except (OSError, ValueError):
        return stream
    unbuffered = isinstance(stream.buffer, io.FileIO)
    return io.TextIOWrapper(
        file if unbuffered else io.BufferedWriter(file),  # As Python's own with -u.
        encoding=stream.encoding,
        # A name in a message need not be of this encoding.
        errors="backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
