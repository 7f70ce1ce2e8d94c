"""How a command ends: 0 done, 1 a restart may mend it, 2 after one line about what is the user's to mend."""

import re
import sys
from collections.abc import Callable

import jax

from hardmine_jax.job.ending import restart_may_mend


def run_to_exit_code(body: Callable[[], object]) -> int:
    """0 when `body` came to its end, 2 after one line about what is wrong; bugs stay exceptions.

    1 after the line where, unlike of wrong input, a start from the last checkpoint may mend it.
    """
    try:
        body()
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1 if restart_may_mend(error) else 2
    return 0


def explain(error: BaseException) -> str | None:
    """The line that a user reads of an error that is theirs to mend; None for a bug."""
    if isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    ):
        return "out of memory: lower --batch-size or raise --accumulate"
    if _STATUS.match(str(error)):
        # Gloo's, when another process is gone, comes as a ValueError; the job can go on when started again.
        return None
    # DataError, CheckpointError, NonFiniteError and the checks of arguments: ValueErrors of one line.
    return str(error) if isinstance(error, (ValueError, OSError)) else None


# How XLA's runtime begins its messages.
_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED|ABORTED|DATA_LOSS)\b")
