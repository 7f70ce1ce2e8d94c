"""What is left where orbax could not write or read a checkpoint, kept from complaining about it later.

Tensorstore's threads go on for a while after an error was raised, and Python reports what is left of them
wherever it happens to be freed: tracebacks about an error that `Checkpoints` tells in one line.
"""

import functools
import logging
import pathlib
import sys
from collections.abc import Callable

# In the name of what orbax has not finished, and so in the errors about it.
_UNFINISHED = "orbax-checkpoint-tmp"


def keep_quiet() -> None:
    """Sets what holds for the whole process: call it before orbax is used."""
    # Adding them again changes nothing.
    logging.getLogger("absl").addFilter(_is_not_orbax)
    logging.getLogger("asyncio").addFilter(_is_of_others)
    if getattr(sys.unraisablehook, "func", None) is not _report_others:
        sys.unraisablehook = functools.partial(_report_others, sys.unraisablehook)


def _is_not_orbax(record: logging.LogRecord) -> bool:
    # It logs every stage of every save, and errors, which it raises too, with tracebacks.
    return "orbax" not in pathlib.PurePath(record.pathname).parts


def _is_of_others(record: logging.LogRecord) -> bool:
    # "Task exception was never retrieved", and the exception.
    return not (record.exc_info and _UNFINISHED in str(record.exc_info[1]))


def _report_others(
    report: "Callable[[sys.UnraisableHookArgs], object]", unraisable: "sys.UnraisableHookArgs"
) -> None:
    # Answers of tensorstore to an event loop that orbax has closed.
    if str(unraisable.exc_value) != "Event loop is closed":
        report(unraisable)
