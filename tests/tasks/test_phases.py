"""What a run is busy with is said when it begins, and in the end with its seconds; by one process alone."""

import re

import numpy as np
import pytest

from hardmine_jax.tasks import phases


def test_a_phase_is_said_before_it_and_after_it(capsys):
    with phases.phase("preparing the data", "prepared the data"):
        assert capsys.readouterr().out == "preparing the data ...\n"
    assert re.fullmatch(r"prepared the data in \d+\.\d s\n", capsys.readouterr().out)


def test_one_that_fails_has_no_end(capsys):
    with pytest.raises(KeyError), phases.phase("a", "b"):
        raise KeyError
    assert capsys.readouterr().out == "a ...\n"


def test_the_first_call_alone_is_the_compilation(capsys):
    double = phases.first_in_phase(lambda x: 2 * x, "compiling", "compiled it")
    assert [double(x) for x in range(3)] == [0, 2, 4]
    assert capsys.readouterr().out.splitlines()[0] == "compiling ..."
    double(3)
    assert capsys.readouterr().out == ""


def test_the_other_processes_of_a_job_say_nothing(monkeypatch, capsys):
    monkeypatch.setattr(phases, "is_main", lambda: False)
    with phases.phase("a", "b"):
        phases.tell_scores(3, {"map": np.float32(0.5)}, 1.0)
    assert capsys.readouterr().out == ""
