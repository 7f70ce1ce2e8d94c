"""How a command ends: 0 done, 1 a restart may mend it, or a bug, 2 after a line about what is the user's, 130
interrupted."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator

import jax

import hardmine_jax
from hardmine_jax.data.problems import printable
from hardmine_jax.errors import UserError
from hardmine_jax.job.ending import is_from_runtime, is_passing, restart_may_mend
from hardmine_jax.job.interrupts import INTERRUPTED


def run_to_exit_code(body: Callable[[], object]) -> int:
    """0 when `body` came to its end, 2 after one line about what is wrong, 1 after the traceback of a bug.

    1 after the line where, unlike of wrong input, a start from the last checkpoint may mend it; 130 after a
    line where Ctrl-C interrupted it.
    """
    try:
        with bugs_marked():
            body()
    except Exception as error:
        line = explain(error)
        if line is None:
            traceback.print_exception(error)
            return 1
        print(f"error: {line}", file=sys.stderr)
        return 1 if restart_may_mend(error) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


@contextlib.contextmanager
def bugs_marked() -> Iterator[None]:
    """Within it the traceback of a bug ends with a line that says so, whoever prints it."""
    try:
        yield
    except Exception as error:
        if explain(error) is None and not is_from_runtime(error):
            error.add_note(_BUG)
        raise


def explain(error: BaseException) -> str | None:
    """The line that a user reads of an error that is theirs to mend, or their machine's; None for a bug.

    None too for what the runtime says of other processes and of devices, which is not for one line.
    """
    if isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    ):
        return "out of memory: lower --batch-size or raise --accumulate"
    if isinstance(error, UserError):
        # Names in it may be a file's.
        return printable(str(error))
    if is_from_runtime(error):
        return None
    # The system's: a full disk, no permission, no such file. One without a number is somebody's code.
    if isinstance(error, OSError) and error.errno is not None:
        return str(error)
    # Of storage that is away; tensorstore's are ValueErrors.
    if isinstance(error, ValueError) and is_passing(error):
        return str(error)
    # The platform that JAX_PLATFORMS names is not there.
    if isinstance(error, RuntimeError) and str(error).startswith("Unable to initialize backend"):
        return str(error)
    return None


_BUG = f"this is a bug in hardmine_jax {hardmine_jax.__version__}: please report it with the lines above"
