"""Ctrl-C as a process meets it: one line, an exit code, and no traceback."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BEGIN = """
import ctypes, threading, time
from hardmine_jax.job import interrupts

def ready():
    print("ready", flush=True)

with interrupts.listening():
"""


def interrupted(body, times=1):
    """What a process that runs `body` while it is listening says once it is ready, and its exit code."""
    command = [sys.executable, "-c", BEGIN + textwrap.indent(textwrap.dedent(body), "    ")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        for _ in range(times):
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=20)
    return process.returncode, out, said


BODIES = {
    "in Python": "ready(); time.sleep(30)",
    # Python's own handlers would wait for half a minute.
    "in C": "ready(); list(map(ctypes.CDLL(None).sleep, [30]))",
    # KeyboardInterrupt would be lost.
    "in code that swallows exceptions": """
        ready()
        while True:
            try:
                time.sleep(1)
            except BaseException:
                pass
    """,
    "beside a thread that goes on": """
        threading.Thread(target=time.sleep, args=(30,)).start()
        ready(); time.sleep(30)
    """,
}


@pytest.mark.parametrize("body", BODIES)
def test_one_line_and_an_exit_code(body):
    assert interrupted(BODIES[body]) == (130, "", "interrupted\n")


def test_what_is_saved_is_told():
    body = "interrupts.answer('step 3 is saved', 0); ready(); time.sleep(30)"
    assert interrupted(body) == (0, "", "step 3 is saved\n")


def test_while_it_is_held_somebody_else_answers():
    body = """
        with interrupts.held():
            ready(); time.sleep(1)
        print("went on")
    """
    assert interrupted(body) == (0, "went on\n", "")


def test_a_second_ctrl_c_ends_training_at_once_but_a_checkpoint_only_at_the_third():
    training = """
        from hardmine_jax.job.activity import working
        from hardmine_jax.job.signals import stop_requests
        with interrupts.held(), stop_requests() as stop, working({what!r}):
            ready()
            while True:
                time.sleep(0.01)
    """
    again = "interrupted again: ended at once; checkpoints of earlier steps are kept\n"
    assert interrupted(training.format(what="training"), times=2) == (130, "", again)
    code, _, said = interrupted(training.format(what="saving a checkpoint"), times=3)
    assert code == 130 and said == f"a checkpoint is being written: Ctrl-C once more gives it up\n{again}"


@pytest.mark.parametrize("command", ["-m hardmine_jax pose train", "experiments/detection_ohem.py"])
@pytest.mark.parametrize("seconds", [1.0, 2.5])
def test_of_a_command_from_its_first_line_on(command, seconds, tmp_path):
    # One device, whose batches are of any size.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "XLA_FLAGS": ""}
    process = subprocess.Popen(
        [sys.executable, *command.split(), "--workdir", str(tmp_path / "run")], cwd=ROOT, env=environment,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    out, said = process.communicate(timeout=20)
    assert process.returncode == 130 and said.splitlines()[-1:] == ["interrupted"], said
    assert "Traceback" not in said + out
    assert not (tmp_path / "run/checkpoints").exists()
