"""Ctrl-C from the first line of a command on: one line and an exit code, whatever the process is at.

While there is nothing to save (imports, data, compiling) it ends the process at once, by a thread of its own:
the main thread may be in C for a minute, and KeyboardInterrupt comes out of the middle of somebody else's
code, as a traceback or a crash. While training it is `signals.stop_requests` that answers. Python's own
modules only: this is imported before everything else.
"""

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

# 128 + SIGINT, as a shell says it.
INTERRUPTED = 130


class Answer(NamedTuple):
    """What Ctrl-C is answered by. Attributes: line, code (that the process ends with)."""

    line: str
    code: int


_answer: Answer | None = None
_listening = False
_ending = threading.Lock()
# What tells the other processes of a job, while this is one of them; and whether it says nothing itself.
_tell: Callable[[Answer], object] | None = None
_silent = False


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Within it Ctrl-C ends the process as `answer` says; to begin with, in one line and with exit code 130.

    Does nothing outside the main thread, where Python allows no handlers.
    """
    global _answer, _listening
    if _listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    ears, mouth = os.pipe()
    os.set_blocking(mouth, False)
    # A handler of Python's waits for the main thread; what writes to the pipe does not.
    before = signal.signal(signal.SIGINT, _handle), signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(ears,), daemon=True, name="hardmine-interrupts").start()
    _answer, _listening = Answer("interrupted", INTERRUPTED), True
    try:
        yield
    finally:
        _answer, _listening = None, False
        signal.set_wakeup_fd(before[1])
        signal.signal(signal.SIGINT, signal.SIG_DFL if before[0] is None else before[0])
        os.close(mouth)


def is_listening() -> bool:
    """Whether this is a command's own process, within `listening`."""
    return _listening


def answer(line: str, code: int) -> None:
    """From now on Ctrl-C ends the process with that line and code, where anybody is listening."""
    global _answer
    if _listening:
        _answer = Answer(line, code)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within it Ctrl-C is somebody else's to answer."""
    global _answer
    before, _answer = _answer, None
    try:
        yield
    finally:
        _answer = before


@contextlib.contextmanager
def telling(tell: Callable[[Answer], object], *, silent: bool) -> Iterator[None]:
    """Within it `tell(answer)` is called before the process ends, and waited for a little.

    Args:
      silent: whether another process says the line.
    """
    global _tell, _silent
    _tell, _silent = tell, silent
    try:
        yield
    finally:
        _tell, _silent = None, False


def interrupt(line: str) -> None:
    """Ends the process now, with that line; KeyboardInterrupt where nobody is listening."""
    if not _listening:
        raise KeyboardInterrupt
    _end(Answer(line, INTERRUPTED))


def _handle(_number: int, _frame: types.FrameType | None) -> None:
    if _answer is not None:
        _end(_answer)


def _listen(ears: int) -> None:
    with open(ears, "rb", buffering=0) as heard:
        while number := heard.read(1):
            if number[0] == signal.SIGINT and (said := _answer) is not None:
                _end(said)


def _end(said: Answer) -> None:
    # Whoever comes second, the main thread or the other, has nothing to add.
    if not _ending.acquire(blocking=False):
        return
    if not _silent:
        show_cursor()
        say(said.line)
    if _tell is not None:
        teller = threading.Thread(target=_tell, args=(said,), daemon=True)
        teller.start()
        teller.join(2.0)
    exit_now(said.code)


def say(text: str) -> None:
    """On stderr, also where only process 0 speaks; a closed one is no reason not to end."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.__stderr__, flush=True)


def show_cursor() -> None:
    """Again, where a bar of progress has hidden it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if sys.__stdout__.isatty():  # type: ignore[union-attr]  # None under pythonw.
            print("\r\x1b[K\x1b[?25h", end="", file=sys.__stdout__, flush=True)


def exit_now(code: int) -> NoReturn:
    """Ends at once: JAX's own way out waits for processes that will not come."""
    multiprocessing = sys.modules.get("multiprocessing")
    for child in multiprocessing.active_children() if multiprocessing else ():
        child.kill()
    with contextlib.suppress(OSError, ValueError):
        # pythonw has none.
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
    os._exit(code)
