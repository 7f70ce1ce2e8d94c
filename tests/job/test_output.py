"""Printing that nobody reads is no error."""

import os
import pty
import subprocess
import sys

import pytest

PRINTS = """
import pathlib, subprocess, sys
from hardmine_jax.job.output import lasting_output
with lasting_output():
    print("first", flush=True)
    sys.stdin.readline()
    for number in range(2000):
        print("x" * 100)
        print("x" * 100, file=sys.stderr)
    print("not of UTF-8: \\udcff")
    # What is not Python writes to the same number.
    subprocess.run(["echo", "of another program"], check=True)
pathlib.Path(sys.argv[1]).write_text("done")
"""


@pytest.mark.parametrize("flags", [[], ["-u"]])
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_it_goes_on_when_its_reader_has_gone(tmp_path, flags, terminal):
    ours, theirs = pty.openpty() if terminal else os.pipe()
    done, command = tmp_path / "done", [sys.executable, *flags, "-c", PRINTS]
    with subprocess.Popen([*command, done], stdin=subprocess.PIPE, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        assert os.read(ours, 5) == b"first"
        os.close(ours)
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(20) == 0
    assert done.read_text() == "done"


def test_what_is_read_arrives_whole(tmp_path):
    command = [sys.executable, "-c", PRINTS, tmp_path / "done"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    run = subprocess.run(command, input=b"\n", capture_output=True, check=True, env=environment)
    lines = run.stdout.decode().splitlines()
    assert lines[0] == "first" and lines[1:2001] == ["x" * 100] * 2000
    assert lines[2001:] == ["not of UTF-8: \\udcff", "of another program"]
    assert run.stderr.decode().splitlines() == ["x" * 100] * 2000
