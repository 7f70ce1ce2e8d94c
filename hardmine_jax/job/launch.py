"""Which launch a start belongs to: what a launcher or a scheduler starts again is one launch."""

import os
import sys

# Set by launch/*, and by whoever wants to; the same at every restart.
VARIABLE = "HARDMINE_LAUNCH"
# Numbers of jobs that stay the same when a job is queued again.
_SCHEDULERS = ("SKYPILOT_TASK_ID", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "AWS_BATCH_JOB_ID")


def launch_name() -> str | None:
    """A name that this start shares with its restarts; None where nobody gives one, as in a shell."""
    given = os.environ.get(VARIABLE)
    if given:
        return given
    if sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty():
        # Somebody types commands, in a job as in a pod.
        return None
    for name in _SCHEDULERS:
        if number := os.environ.get(name):
            return f"{name}={number}"
    if "KUBERNETES_SERVICE_HOST" in os.environ and (pod := os.environ.get("HOSTNAME")):
        return f"pod {pod}"
    return None
