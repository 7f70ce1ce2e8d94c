"""Traces of steps: which are in it, and that nothing about a trace ends or changes a training."""

import gzip
import json

import jax
import pytest

from hardmine_jax.errors import UserError
from hardmine_jax.training import profile
from hardmine_jax.training.profile import StepRange, parse_step_range, profiled


def _steps_in(folder):
    """The numbers of the steps that a trace has marked."""
    (path,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return [int(event["args"]["step_num"]) for event in events if event.get("name") == "train"]


class Double:
    """A step that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, state, batch):
        self.calls += 1
        return jax.jit(lambda x: 2 * x)(state), {}


NO_RANGES = (
    "",
    "3",
    ":",
    "3:",
    ":3",
    "a:b",
    "0:1",
    "5:4",
    "1:2:3",
    "-1:2",
    "1.5:2",
    "1 :2",
    "٣:٤",
    f"1:{10**4000}",
)


@pytest.mark.parametrize("text", NO_RANGES, ids=lambda text: text[:9])
def test_what_is_no_range_is_refused_in_a_line(text):
    with pytest.raises(UserError) as refused:
        parse_step_range(text)
    assert "is no range of steps" in str(refused.value) and "\n" not in str(refused.value)


def test_the_trace_has_the_steps_that_were_asked_for(tmp_path, capsys):
    step = Double()
    with profiled(step, at=0, steps=parse_step_range("2:3"), folder=tmp_path / "profile") as traced:
        state = jax.numpy.ones(())
        for _ in range(5):
            state, _ = traced(state, None)
    assert float(state) == 32 and step.calls == 5
    assert _steps_in(tmp_path / "profile") == [2, 3]
    said = capsys.readouterr().out
    assert said.startswith(f"a trace of steps 2 to 3 is in {tmp_path / 'profile'}") and said.count("\n") == 1
    assert f"then xprof {tmp_path / 'profile'} " in said


def test_a_run_that_goes_on_within_them_traces_what_is_left(tmp_path, capsys):
    with profiled(Double(), at=6, steps=StepRange(5, 8), folder=tmp_path) as traced:
        for _ in range(3):
            traced(jax.numpy.ones(()), None)
    assert _steps_in(tmp_path) == [7, 8] and "steps 7 to 8" in capsys.readouterr().out


@pytest.mark.parametrize("ending", [KeyboardInterrupt, None], ids=["error", "stop"])
def test_a_run_that_ends_within_them_ends_the_trace(ending, tmp_path, capsys):
    try:
        with profiled(Double(), at=0, steps=StepRange(1, 9), folder=tmp_path) as traced:
            traced(jax.numpy.ones(()), None)
            if ending is not None:
                raise ending
    except KeyboardInterrupt:
        pass
    assert _steps_in(tmp_path) == [1] and "steps 1 to 1" in capsys.readouterr().out
    # Nothing is left running.
    jax.profiler.start_trace(tmp_path / "other")
    jax.profiler.stop_trace()


def test_the_other_processes_of_a_job_trace_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(profile, "is_main", lambda: False)
    with profiled(Double(), at=0, steps=StepRange(1, 2), folder=tmp_path / "profile") as traced:
        for _ in range(3):
            traced(jax.numpy.ones(()), None)
    assert not (tmp_path / "profile").exists() and capsys.readouterr() == ("", "")


def test_a_trace_that_cannot_be_made_is_a_warning(tmp_path, capsys):
    step = Double()
    jax.profiler.start_trace(tmp_path / "somebody_else_s")
    try:
        with profiled(step, at=0, steps=StepRange(1, 2), folder=tmp_path / "profile") as traced:
            for _ in range(3):
                traced(jax.numpy.ones(()), None)
    finally:
        jax.profiler.stop_trace()
    said = capsys.readouterr()
    assert step.calls == 3 and said.out == ""
    assert said.err.startswith("warning: steps cannot be traced") and said.err.count("\n") == 1


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, capsys):
    stop = jax.profiler.stop_trace

    def fail():
        stop()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax.profiler, "stop_trace", fail)
    with profiled(Double(), at=0, steps=StepRange(1, 1), folder=tmp_path) as traced:
        traced(jax.numpy.ones(()), None)
    assert "could not be written" in capsys.readouterr().err
