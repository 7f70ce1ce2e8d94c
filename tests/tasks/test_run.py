"""What is the user's to mend ends with 2 and one line; a bug with 1, its traceback and a line of its own."""

import json
import sys

import jax
import numpy as np
import pytest

import hardmine_jax
from hardmine_jax import training
from hardmine_jax.data.problems import DataError, UnreadableImage
from hardmine_jax.errors import UserError
from hardmine_jax.job import distributed, ending
from hardmine_jax.models.torch_weights import WeightsError
from hardmine_jax.tasks import run
from hardmine_jax.tasks.exit_codes import explain, run_to_exit_code
from hardmine_jax.tasks.photos import InputError
from hardmine_jax.tasks.pose import train as pose_train
from hardmine_jax.tasks.run_config import RunConfig

BUG = f"this is a bug in hardmine_jax {hardmine_jax.__version__}: please report it with the lines above"


def _raise(error):
    raise error


@pytest.mark.parametrize("kind", [UserError, DataError, UnreadableImage, WeightsError, InputError,
                                  training.CheckpointError])  # fmt: skip
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(kind, capsys):
    def raise_from_another():
        try:
            json.loads("{")
        except ValueError as error:
            raise kind("a.json is no JSON") from error

    assert issubclass(kind, UserError) and issubclass(kind, ValueError)
    assert run_to_exit_code(lambda: _raise(kind("--k 0 must be at least 1"))) == 2
    assert capsys.readouterr().err == "error: --k 0 must be at least 1\n"
    assert run_to_exit_code(raise_from_another) == 2
    assert capsys.readouterr().err == "error: a.json is no JSON\n"


def test_what_the_system_says_is_one_line_and_exit_code_2(capsys):
    assert run_to_exit_code(lambda: None) == 0
    assert run_to_exit_code(lambda: _raise(FileNotFoundError(2, "no such file", "a.json"))) == 2
    assert run_to_exit_code(lambda: _raise(OSError(28, "No space left on device"))) == 2
    assert run_to_exit_code(lambda: _raise(MemoryError())) == 2
    assert run_to_exit_code(lambda: _raise(RuntimeError("Unable to initialize backend 'tpu': none"))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("error: ") for line in lines)


def _unpack():
    first, _ = [1, 2, 3]
    return first


@pytest.mark.parametrize(
    "body, said",
    [
        (lambda: np.zeros(3) + np.zeros(4), "ValueError: operands could not be broadcast"),
        (_unpack, "ValueError: too many values to unpack"),
        (lambda: list(zip([1], [1, 2], strict=True)), "ValueError: zip() argument 2 is longer"),
        (lambda: {}["a"], "KeyError: 'a'"),
        (lambda: _raise(OSError("no number: not of the system")), "OSError: no number"),
    ],
    ids=["broadcast", "unpack", "zip", "KeyError", "OSError"],
)
def test_a_bug_is_its_traceback_and_a_line_that_says_so_and_exit_code_1(body, said, capsys):
    assert run_to_exit_code(body) == 1
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback") and last == BUG
    assert run_to_exit_code(body) == 1
    assert f"\n{said}" in capsys.readouterr().err


def test_a_bug_ends_a_whole_job_with_exit_code_1(monkeypatch, capsys, tmp_path):
    ended = []
    monkeypatch.setattr(distributed, "_initialise", lambda *given: None)
    monkeypatch.setattr(distributed, "watch", lambda *given: None)
    for name, value in {"declare": lambda code, said: ended.append((code, said)) or True, "say": print,
                        "wait_until_acknowledged": lambda: None}.items():  # fmt: skip
        monkeypatch.setattr(ending, name, value)
    monkeypatch.setattr(ending, "exit_now", sys.exit)
    monkeypatch.setattr(run, "check_processes", lambda config: None)
    config = RunConfig(workdir=tmp_path, distributed=True)
    with pytest.raises(SystemExit) as exit_code:
        run.run_training(config, config, lambda: np.zeros(3) + np.zeros(4))
    said = capsys.readouterr().out.splitlines()
    assert exit_code.value.code == 1 and [code for code, _ in ended] == [1]
    assert said[0].startswith("process 0: ValueError: operands") and said[-1] == BUG
    assert said[1].startswith("Traceback")
    with pytest.raises(SystemExit) as exit_code:
        run.run_training(config, config, lambda: _raise(DataError("no file a.json")))
    assert exit_code.value.code == 2
    assert capsys.readouterr().out == "process 0: error: no file a.json\n"


def test_no_resume_starts_anew_once_in_a_launch(tmp_path, monkeypatch, capsys):
    def start():
        """A start with --no-resume; whether it has found the checkpoint of the one before."""
        run.start_anew_once(tmp_path)
        found = (tmp_path / "checkpoints" / "1").exists()
        (tmp_path / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)
        return found

    for name in ("HARDMINE_LAUNCH", "SLURM_JOB_ID", "SKYPILOT_TASK_ID", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdin", None)
    # In a shell nobody says what belongs together.
    assert [start(), start()] == [False, False]
    pod = {"KUBERNETES_SERVICE_HOST": "x", "HOSTNAME": "pod"}
    launchers = {"HARDMINE_LAUNCH": "a"}, {"HARDMINE_LAUNCH": "b"}
    for names in (*launchers, {"SLURM_JOB_ID": "7"}, {"SKYPILOT_TASK_ID": "x"}, pod):
        with monkeypatch.context() as patch:
            for name, value in names.items():
                patch.setenv(name, value)
            assert [start(), start(), start()] == [False, True, True]
            assert capsys.readouterr().err.count("was started anew in this launch already: it goes on") == 2
    # A damaged note is none.
    (tmp_path / "started_anew.json").write_text("{")
    monkeypatch.setenv("HARDMINE_LAUNCH", "b")
    assert [start(), start()] == [False, True]


def test_a_position_that_is_not_the_step_s_is_no_position():
    run.check_position(training.Restored(4, None, {"batches": 4, "round": 1}))
    for position in ({"batches": 5}, {}, None, {"batches": "4"}):
        with pytest.raises(ValueError, match="4 steps made"):
            run.check_position(training.Restored(4, None, position))


def test_a_second_start_in_a_workdir_is_refused_in_one_line(tmp_path, capsys):
    config, codes = RunConfig(workdir=tmp_path / "run"), []

    def start(body):
        codes.append(run.run_training(config, config, body))

    start(lambda: start(lambda: None))
    assert codes == [2, 0]
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'run'} is in use by process ") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_ctrl_c_is_one_line_and_exit_code_130(capsys):
    assert run_to_exit_code(lambda: _raise(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_patience_means_nothing_to_a_single_process(tmp_path, capsys):
    assert pose_train.main(["--patience", "60", "--workdir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said == "error: --patience means nothing without --distributed: add it\n"


def test_a_process_of_a_job_is_named_by_all_three_flags(tmp_path, capsys):
    arguments = ["--distributed", "--coordinator", "localhost:1", "--workdir", str(tmp_path / "run")]
    assert pose_train.main(arguments) == 2
    said = capsys.readouterr().err
    assert said == "error: give all of --coordinator, --num-processes and --process-id, or none of them\n"


@pytest.mark.parametrize(
    "error",
    [
        training.NonFiniteError(7, "loss", float("nan")),
        OSError(116, "Stale file handle", "a.jpg"),
        # As tensorstore says it.
        ValueError("NOT_FOUND: Error reading ... [os_error_code='5'] [source locations='...']"),
    ],
    ids=["NaN", "storage", "tensorstore"],
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
        jax.errors.JaxRuntimeError("INTERNAL: the device is gone"),
    ],
    ids=lambda error: str(error).split(":")[0],
)
def test_what_the_runtime_says_of_others_is_nobodys_mistake_and_no_bug(error, capsys):
    assert explain(error) is None and run_to_exit_code(lambda: _raise(error)) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and str(error) in said and BUG not in said
