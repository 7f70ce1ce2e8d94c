"""Input processes that are killed, orphaned, or have no shared memory."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from hardmine_jax.data.workers import explain_worker

SCRIPT = pathlib.Path(__file__).with_name("input_processes.py")


def run(what, *before):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # A worker imports what takes whom it pleases to warn of.
    environment.pop("PYTHONWARNINGS", None)
    command = [*before, sys.executable, str(SCRIPT), what]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def has_ended(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_they_end_with_a_parent_that_is_killed():
    ended = run("orphans")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    pids, deadline = ended.stdout.split(), time.monotonic() + 20
    assert len(pids) == 2
    while not all(map(has_ended, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "Traceback" not in ended.stderr


def test_one_that_is_killed_costs_no_batch_and_signals_for_the_trainer_end_none():
    ended = run("killed")
    assert ended.returncode == 0 and not ended.stdout, ended.stderr
    assert ended.stderr.count("was killed, as when memory runs out: all input processes start again") == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_killed_again_and_again_they_are_given_up_in_one_line():
    ended = run("killed again and again")
    said = "DataError: an input process was killed, as when memory runs out; or read with fewer"
    assert ended.stdout.startswith(said) and "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("size", ["64k", "600k"])
def test_shared_memory_that_is_too_small_is_named(size):
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"]).returncode:
        pytest.skip("no file system can be mounted here")
    ended = run("nothing", "unshare", "-m", "bash", "-c", mount, "bash")
    size = size.replace("k", " kB")
    assert ended.stdout.startswith(f"DataError: /dev/shm ({size}) has no room for"), ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_an_error_says_of_them():
    def line(error):
        problem = explain_worker(error)
        return None if problem is None else (problem.line, problem.sure)

    died = "Worker process was terminated unexpectedly with exit code {}. Search the logs above"
    text, sure = line(RuntimeError(died.format(-signal.SIGBUS)))
    assert text.startswith("/dev/shm") and "has no room for the batches" in text and sure
    killed = "an input process was killed, as when memory runs out"
    assert line(RuntimeError(died.format(-9))) == (killed, False)
    assert line(RuntimeError(died.format(3))) == ("an input process ended with exit code 3", False)
    text, sure = line(OSError(errno.ENOSPC, "No space left on device"))
    assert text.startswith("/dev/shm") and "has no room for input processes" in text and sure
    for error in (OSError(errno.ENOENT, "No such file", "a.jpg"), RuntimeError("shapes differ")):
        assert line(error) is None
