"""How a job of several processes ends for a failure: one says what it was, the others end with it.

What is said first counts. It lies in the runtime's key-value store, where each process's watcher
(`lookout.py`) looks for it.
"""

import contextlib
import errno
import json
import re
import time
import traceback
from typing import NamedTuple, NoReturn

import jax

from hardmine_jax.errors import UserError
from hardmine_jax.job.exchange import client
from hardmine_jax.job.interrupts import INTERRUPTED, Answer, exit_now, say

# A process that is not heard for so many seconds is dead; JAX then ends the others, naming it.
HEARTBEAT_SECONDS = 30
_ACKNOWLEDGE_SECONDS = 10.0
_FAILED, _ACKNOWLEDGED = "hardmine/failed/", "hardmine/heard/"
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED,
            errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH)  # fmt: skip
# How XLA's runtime begins its messages.
_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED|ABORTED|DATA_LOSS)\b")
# What JAX says in a process whose peer or coordinator went away.
_PEER_LOST = ("gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "onnection", "eer ")


class Failure(NamedTuple):
    """Attributes: by (the process that says it), code (that all end with), message (one line)."""

    by: int
    code: int
    message: str


def restart_may_mend(error: BaseException) -> bool:
    """Whether, after an error that is explained in a line, a start from the last checkpoint is worth a try.

    A NaN may come from a broken chip, unless it comes again; storage and its network come back.
    """
    if isinstance(error, NonFiniteError):
        return not error.again
    return any(is_passing(one) for one in (error, error.__cause__))


def is_passing(error: BaseException | None) -> bool:
    """Whether it is about storage or a network that went away, and will be back."""
    # Tensorstore's are ValueErrors, with the number somewhere in their text.
    found = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    return number in _PASSING


def is_from_runtime(error: BaseException) -> bool:
    """Whether XLA's runtime says it, of another process that is gone or of a device: nobody's mistake.

    Gloo's come as ValueErrors. The job can go on when it is started again.
    """
    known = isinstance(error, ValueError) and not isinstance(error, UserError)
    return (known or isinstance(error, jax.errors.JaxRuntimeError)) and bool(_STATUS.match(str(error)))


def end_job(error: BaseException, line: str | None) -> NoReturn:
    """Tells the other processes, and ends this one once they know."""
    number = jax.process_index()
    if isinstance(error, KeyboardInterrupt):
        end_others(Answer("interrupted", INTERRUPTED))
        say(f"process {number}: interrupted")
        exit_now(INTERRUPTED)
    code = 1 if line is None or restart_may_mend(error) else 2
    from_below = isinstance(error, jax.errors.JaxRuntimeError) or is_from_runtime(error)
    if line is None and from_below and any(said in str(error) for said in _PEER_LOST):
        lost = f"process {number}: lost another process ({_first_line(error)})"
        say(lost)
        # Meanwhile the one that failed is heard, or JAX names the one that died, and ends this process.
        time.sleep(HEARTBEAT_SECONDS + 15)
    if isinstance(error, NonFiniteError) and number:
        # All see the same; process 0 alone knows whether it is the second time.
        time.sleep(_ACKNOWLEDGE_SECONDS)
    said = f"process {number}: error: {line}" if line else f"process {number}: {_first_line(error)}"
    if not declare(code, said):
        # Another failed first, most often of the same; the watcher ends this process.
        time.sleep(_ACKNOWLEDGE_SECONDS)
    say(said if line else f"{said}\n{''.join(traceback.format_exception(error))}".rstrip())
    wait_until_acknowledged()
    exit_now(code)


def end_others(answer: Answer) -> None:
    """Tells the other processes to end with this one, which was interrupted; returns when they have heard."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if declare(answer.code, f"process {jax.process_index()}: {answer.line}"):
            wait_until_acknowledged()


def declare(code: int, message: str) -> bool:
    """Tells all processes to end with that code, and why; False where another has told them already."""
    failure = Failure(jax.process_index(), code, message)
    try:
        client().key_value_set(f"{_FAILED}first", json.dumps(failure))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def declared() -> Failure | None:
    """What was declared, if anything."""
    found = client().key_value_dir_get(_FAILED)
    return Failure(*json.loads(found[0][1])) if found else None


def acknowledge() -> None:
    """For whoever declared the failure."""
    client().key_value_set(f"{_ACKNOWLEDGED}{jax.process_index()}", "")


def wait_until_acknowledged(but: int = 0) -> None:
    """Until all other processes have, `but` so many that cannot; not for long."""
    deadline, others = time.monotonic() + _ACKNOWLEDGE_SECONDS, jax.process_count() - 1 - but
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while len(client().key_value_dir_get(_ACKNOWLEDGED)) < others and time.monotonic() < deadline:
            time.sleep(0.1)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


class NonFiniteError(UserError):
    """A metric of a training step, or a weight after it, is NaN or infinite.

    Attributes:
      step, metric: which.
      again: whether a run that was started again for it has come to the same; set by whoever knows.
    """

    again = False

    def __init__(self, step: int, metric: str, value: float):
        super().__init__(
            f"step {step}: {metric} is {value}. Stopped; checkpoints of earlier steps are kept."
            " Lower the learning rate, lengthen the warm-up or clip the gradient"
        )
        self.step, self.metric = step, metric
