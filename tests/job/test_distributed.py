"""Real processes on this machine, collectives by gloo: they compute what one does, and end together."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from hardmine_jax.job.distributed import joined
from hardmine_jax.training import load_variables, read_metrics

STEPS = 14
# As between devices of one process (test_sharding.py): sums in another order, let grow by 20 steps of Adam.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


class Ended:
    def __init__(self, code, output, errors):
        self.code, self.output, self.errors = code, output, errors


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def job(what, workdir, *, steps=STEPS, timeout=300, processes=2):
    """Runs it to its end; what became of each process."""
    script = pathlib.Path(__file__).with_name("run_job.py")
    path = os.pathsep.join([str(script.parent), *sys.path])
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": path}
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    common = [sys.executable, str(script), what, str(workdir), str(steps), f"localhost:{free_port()}"]
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen([*common, str(processes), str(number)], env=environment, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            )
            for number in range(processes)
        ]  # fmt: skip
        for process in started:
            stack.callback(process.kill)
        if what == "hang":
            # Without the parent's help the stopped one would never be collected.
            started[0].wait(timeout)
            started[1].kill()
        outputs = [process.communicate(timeout=timeout) for process in started]
        return [Ended(p.returncode, *texts) for p, texts in zip(started, outputs, strict=True)]


def losses_of(workdir):
    return {line["step"]: line["loss"] for line in read_metrics(workdir / "metrics.jsonl")}


def test_two_processes_compute_what_one_does(tiny, tmp_path):
    ended = job("check", tmp_path)
    assert [process.code for process in ended] == [0, 0], ended[0].errors + ended[1].errors
    found = json.loads((tmp_path / "check.json").read_text())
    step, state, expected = jax.jit(tiny.make_step(None)), tiny.state(20), []
    for i in range(20):
        state, metrics = step(state, tiny.batch(i))
        expected.append(float(metrics["loss"]))
    assert [one["kind"] for one in found["kinds"]] == ["jit", "pmap", "shard_map"]
    for one in found["kinds"]:
        np.testing.assert_allclose(one["losses"], expected, **TOLERANCE, err_msg=one["kind"])
        # Every process's rows, in the order of one process's batch.
        images = tiny.batch(20)["images"]
        np.testing.assert_allclose(one["mean"], images.mean((1, 2, 3)), atol=1e-6)
        assert one["step"] == [20] * tiny.BATCH
    assert found["mined"] == 0
    assert found["exchanged"] == {
        "gathered": [0, 1],
        "main": 0,
        "bits": [True] * 3,
        "differs": "--steps: process 0 has 0, process 1 has 1: start every process with the same flags, code "
        "and data",
        "rows": [0, 0, 1, 1],
    }


@pytest.fixture(scope="module")
def saved_on_8_devices(tiny, tmp_path_factory):
    """A run that stopped at step 8, and the log of how it goes on when one device finishes it."""
    workdir = tmp_path_factory.mktemp("saved")

    class Batches(tiny.CountingBatches):
        def __next__(self):
            if self.index == 8:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__next__()

    _, result = tiny.train(workdir / "begun", STEPS, devices=8, batches=Batches())
    assert result.stopped
    shutil.copytree(workdir / "begun", workdir / "one")
    tiny.train(workdir / "one", STEPS)
    return workdir / "begun", workdir / "one", result.step


def assert_same_end(one, two):
    ends = [jax.tree.leaves(load_variables(workdir, which="latest")) for workdir in (one, two)]
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    one, two = losses_of(one), losses_of(two)
    assert list(one) == list(two)
    np.testing.assert_allclose(list(one.values()), list(two.values()), **TOLERANCE)


def test_saved_on_8_devices_and_finished_by_2_processes(saved_on_8_devices, tmp_path):
    begun, one, _ = saved_on_8_devices
    shutil.copytree(begun, tmp_path / "two")
    ended = job("train", tmp_path / "two")
    assert [process.code for process in ended] == [0, 0], ended[0].errors + ended[1].errors
    # Process 0 alone speaks, and all agree.
    assert f"step {STEPS}/{STEPS}" in ended[0].output and "process 0 at (12, 14), best 14" in ended[0].output
    assert "step" not in ended[1].output and "process 1" not in ended[1].output
    assert [json.loads((tmp_path / "two" / f"{i}.json").read_text()) for i in (0, 1)] == [[STEPS, False]] * 2
    assert_same_end(one, tmp_path / "two")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tiny, tmp_path):
    ended = job("stop", tmp_path)
    assert [process.code for process in ended] == [0, 0], ended[0].errors + ended[1].errors
    (step, stopped), other = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1))
    assert stopped and [step, stopped] == other and 6 <= step < STEPS
    assert (tmp_path / "checkpoints" / str(step)).is_dir()
    # One process goes on from there.
    _, result = tiny.train(tmp_path, STEPS)
    assert result.step == STEPS and not result.stopped
    tiny.train(tmp_path / "whole", STEPS)
    assert_same_end(tmp_path / "whole", tmp_path)


def test_an_input_error_of_one_process_ends_all_and_is_named(tmp_path):
    started = time.monotonic()
    ended = job("fail", tmp_path)
    assert [process.code for process in ended] == [2, 2], ended[0].errors + ended[1].errors
    assert "process 1: error: images/7.jpg is no image" in ended[1].errors
    assert "process 0: ending too, for process 1: error: images/7.jpg is no image" in ended[0].errors
    assert not any("Traceback" in process.errors for process in ended)
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_a_bug_of_one_process_ends_all_with_its_traceback(tmp_path):
    ended = job("crash", tmp_path)
    assert [process.code for process in ended] == [1, 1]
    assert "IndexError" in ended[1].errors and "Traceback" in ended[1].errors
    assert "process 1: IndexError" in ended[0].errors


@pytest.mark.slow
@pytest.mark.parametrize("what", ["kill", "hang"])
def test_a_process_that_dies_or_hangs_ends_the_others_within_a_minute(what, tmp_path):
    started = time.monotonic()
    ended = job(what, tmp_path)
    seconds = time.monotonic() - started
    print(f"{what}: all over after {seconds:.0f} s\n{ended[0].errors}")
    assert ended[1].code == -signal.SIGKILL
    assert ended[0].code not in (0, 2)
    # JAX's own words, the number of the process on a line of its own.
    assert "unhealthy (stopped sending heartbeats):\n1\n" in ended[0].errors
    assert seconds < 90


@pytest.mark.slow
def test_a_process_that_is_stuck_in_python_is_named_and_says_where(tmp_path):
    started = time.monotonic()
    ended = job("stuck", tmp_path)
    assert [process.code for process in ended] == [1, 1], ended[0].errors + ended[1].errors
    assert re.search(r"process 1 hangs: \d\d s in reading a batch, while process 0 waits", ended[1].errors)
    assert "in stuck\n    time.sleep(0.1)" in ended[1].errors
    assert "process 0: ending too, for process 1 hangs: " in ended[0].errors
    assert time.monotonic() - started < 90


@pytest.mark.slow
def test_processes_that_wait_for_each_other_end(tmp_path):
    ended = job("deadlock", tmp_path)
    assert [process.code for process in ended] == [1, 1], ended[0].errors + ended[1].errors
    assert re.search(r"all processes wait for each other, process 1 \d\d s in hardmine/", ended[1].errors)
    assert "in deadlock" in ended[1].errors


@pytest.mark.slow
def test_a_process_whose_python_stands_still_is_named_by_another(tmp_path):
    ended = job("frozen", tmp_path)
    assert ended[0].code == 1 and ended[1].code not in (0, 2)
    assert re.search(r"process 1 hangs or is gone: its Python has stood still for \d\d s", ended[0].errors)


@pytest.mark.slow
def test_a_process_that_is_slow_is_waited_for(tmp_path):
    ended = job("slow", tmp_path)
    assert [process.code for process in ended] == [0, 0], ended[0].errors + ended[1].errors
    assert not any("hangs" in process.errors for process in ended)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("localhost:1", None, None), "give all of"),
        (("localhost", 2, 0), "HOST:PORT"),
        (("localhost:1", 2, 2), "process_id=2 must lie in 0 .. 1"),
    ],
)
def test_senseless_arguments_are_named_before_anything_is_tried(arguments, said):
    with pytest.raises(ValueError, match=said), joined(*arguments):
        pass


@pytest.mark.parametrize("patience", [-1, float("nan"), float("inf"), 1e20])
def test_patience_is_seconds(patience):
    with (
        pytest.raises(ValueError, match=r"must lie in \[0, 1e\+09\]: give seconds, or 0"),
        joined(patience=patience),
    ):
        pass
