"""One process at a time, and none for ever."""

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from hardmine_jax.errors import UserError
from hardmine_jax.job.folder_lock import locked

HOLD = """
import pathlib, sys, time
from hardmine_jax.job.folder_lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_dies_with_its_process(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"run is in use by process {holder.pid} on ") as raised:
            with locked(folder):
                pass
        assert "\n" not in str(raised.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(folder), pytest.raises(UserError, match=f"in use by process {os.getpid()} "), locked(folder):
        pass
    # What was there before stays.
    assert list(folder.iterdir()) == []
    folder.rmdir()


def test_a_folder_that_nothing_has_come_of_is_gone_again(tmp_path):
    with locked(tmp_path / "empty"):
        assert (tmp_path / "empty" / ".lock").exists()
    assert not (tmp_path / "empty").exists()
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_it_goes_on_with_a_note(tmp_path, monkeypatch, capsys, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path), locked(tmp_path):
        pass
    said = capsys.readouterr().err
    assert said.count("could not be locked") == 2 and said.startswith("note: ") and said.count("\n") == 2


def test_a_lock_that_may_not_be_opened_is_nobodys_and_goes_on_with_a_note(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with locked(tmp_path):
        pass
    assert "could not be locked (Permission denied)" in capsys.readouterr().err


def test_children_do_not_hold_it_on(tmp_path):
    context = multiprocessing.get_context("spawn")
    with locked(tmp_path):
        child = context.Process(target=signal.pause, daemon=True)
        child.start()
    with locked(tmp_path):
        assert child.is_alive()
    child.kill()
    child.join()
