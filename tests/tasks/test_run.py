"""What is the user's to mend ends with 2 and one line; what a restart may mend, and bugs, do not."""

import pytest

from hardmine_jax import training
from hardmine_jax.tasks.exit_codes import run_to_exit_code
from hardmine_jax.tasks.pose import train as pose_train


def _raise(error):
    raise error


def test_mistakes_are_one_line_and_exit_code_2(capsys):
    assert run_to_exit_code(lambda: None) == 0
    assert run_to_exit_code(lambda: _raise(ValueError("--k 0 must be at least 1"))) == 2
    assert run_to_exit_code(lambda: _raise(FileNotFoundError(2, "no such file", "a.json"))) == 2
    assert run_to_exit_code(lambda: _raise(MemoryError())) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)


def test_patience_means_nothing_to_a_single_process(tmp_path, capsys):
    assert pose_train.main(["--patience", "60", "--workdir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said == "error: --patience means nothing without --distributed: add it\n"


@pytest.mark.parametrize(
    "error",
    [training.NonFiniteError(7, "loss", float("nan")), OSError(116, "Stale file handle", "a.jpg")],
    ids=["NaN", "storage"],
)
def test_what_passes_is_one_line_and_exit_code_1_which_launchers_restart(error, capsys):
    assert run_to_exit_code(lambda: _raise(error)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {error}"


@pytest.mark.parametrize(
    "error",
    [
        # As gloo says it when another process of the job has died.
        ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:4711"),
        ValueError("UNAVAILABLE: failed to connect to all addresses"),
        KeyError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_restart_may_mend_and_bugs_are_no_mistake_of_the_users(error, capsys):
    with pytest.raises(type(error)):
        run_to_exit_code(lambda: _raise(error))
    assert capsys.readouterr().err == ""
