"""A request to stop that training can finish its step for."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Within it SIGTERM and the first Ctrl-C set the event; a second Ctrl-C interrupts at once.

    The handlers of before come back at the end. Outside the main thread, where Python allows no handlers,
    the event is never set.
    """
    stop = threading.Event()

    def handle(number, _frame):
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            # None: set by something other than Python, and not ours to know.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
