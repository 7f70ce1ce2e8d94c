import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from hardmine_jax.training import (
    CheckpointError,
    Checkpoints,
    NonFiniteError,
    create_state,
    fit,
    make_train_step,
    parallelise,
    read_metrics,
)

STEPS = 14


def same_bits(one, two):
    one, two = (state.replace(key=jax.random.key_data(state.key)) for state in (one, two))
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )


def without_time(lines):
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    state, result = tiny.train(workdir, STEPS)
    return workdir, state, result


def test_metrics_lines(uninterrupted, tiny):
    workdir, _, result = uninterrupted
    lines = read_metrics(workdir / "metrics.jsonl")
    # Step 1, every 2nd for the log, every 3rd for a checkpoint.
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 6, 8, 9, 10, 12, 14]
    assert not result.stopped and result.step == STEPS
    for line in lines:
        assert set(line) >= {"step", "seconds", "loss", "grad_norm", "per_output", "learning_rate"}
        assert np.mean(line["per_output"]) == pytest.approx(line["loss"], rel=1e-5)
    assert "images_per_second" not in lines[0] and lines[1]["images_per_second"] > 0
    assert result.images_per_second > 0
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert list((workdir / "tensorboard").glob("events*"))


def test_a_line_is_the_mean_over_its_steps(uninterrupted, tiny):
    step, state, losses = jax.jit(tiny.make_step(None)), tiny.state(STEPS), []
    for i in range(6):
        state, metrics = step(state, tiny.batch(i))
        losses.append(float(metrics["loss"]))
    line = next(line for line in read_metrics(uninterrupted[0] / "metrics.jsonl") if line["step"] == 6)
    assert line["loss"] == pytest.approx(np.mean(losses[4:6]), rel=1e-4)


def test_a_finished_run_started_again_does_nothing(uninterrupted, tiny):
    workdir, state, _ = uninterrupted
    before = (workdir / "metrics.jsonl").read_text()
    again, result = tiny.train(workdir, STEPS)
    assert same_bits(state, again)
    assert (result.step, result.stopped, result.images_per_second) == (STEPS, False, 0.0)
    assert (workdir / "metrics.jsonl").read_text() == before


def start(tiny, workdir):
    arguments = [sys.executable, tiny.__file__, str(workdir), str(STEPS), "0.03"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)


def signal_at_step(process, step, number):
    """Sends the signal when the run tells of this step or a later one; returns what it says afterwards."""
    with process:
        for line in process.stdout:
            if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= step:
                process.send_signal(number)
                break
        else:
            raise AssertionError(f"the run ended before step {step}")
        return process.stdout.read()


def test_killed_and_stopped_runs_end_in_the_same_bits(uninterrupted, tiny, tmp_path):
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    kills = sorted(random.Random(seed).sample(range(1, STEPS - 5), 2))
    for step in kills:
        process = start(tiny, tmp_path)
        signal_at_step(process, step, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    process = start(tiny, tmp_path)
    said = signal_at_step(process, kills[-1] + 1, signal.SIGTERM)
    assert process.returncode == 0
    stopped = int(said.split("stopped ")[1])
    assert kills[-1] < stopped < STEPS
    assert (tmp_path / "checkpoints" / str(stopped)).is_dir()

    expected = without_time(read_metrics(uninterrupted[0] / "metrics.jsonl"))
    lines = without_time(read_metrics(tmp_path / "metrics.jsonl"))
    assert lines[:-1] == [line for line in expected if line["step"] < stopped]
    state, result = tiny.train(tmp_path, STEPS)
    assert result.step == STEPS
    assert same_bits(state, uninterrupted[1])
    seconds = [line["seconds"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert seconds == sorted(seconds)


def batches_with_signal(tiny, at, number):
    class Batches(tiny.CountingBatches):
        def __next__(self):
            if self.index == at:
                os.kill(os.getpid(), number)
            return super().__next__()

    return Batches()


def test_stop_on_8_devices_and_resume(tiny, tmp_path):
    whole, _ = tiny.train(tmp_path / "whole", STEPS, devices=8)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    batches = batches_with_signal(tiny, 7, signal.SIGINT)
    _, result = tiny.train(tmp_path / "parts", STEPS, devices=8, batches=batches)
    assert result.stopped and result.step < STEPS
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    resumed, result = tiny.train(tmp_path / "parts", STEPS, devices=8)
    assert not result.stopped
    assert same_bits(whole, resumed)
    steps = [line["step"] for line in read_metrics(tmp_path / "parts" / "metrics.jsonl")]
    assert steps == sorted(set(steps))


def test_a_terminal_that_is_closed_saves_but_under_nohup(tiny, tmp_path, monkeypatch):
    # What runs the tests may itself have been started by nohup.
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)
    batches = batches_with_signal(tiny, 7, signal.SIGHUP)
    _, result = tiny.train(tmp_path / "hung up", STEPS, batches=batches)
    assert result.stopped and Checkpoints(tmp_path / "hung up").steps()[-1] == result.step < STEPS
    monkeypatch.undo()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        batches = batches_with_signal(tiny, 7, signal.SIGHUP)
        _, result = tiny.train(tmp_path / "nohup", STEPS, batches=batches)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not result.stopped and result.step == STEPS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_the_last_checkpoint_is_being_written_waits_for_it(tmp_path, monkeypatch, number):
    checkpoints, wait = Checkpoints(tmp_path), Checkpoints.wait

    def wait_and_be_stopped(self):
        if self._writing == 6:
            os.kill(os.getpid(), number)
        wait(self)

    monkeypatch.setattr(Checkpoints, "wait", wait_and_be_stopped)
    result = scalar_fit(tmp_path, steps=6, checkpoints=checkpoints)
    assert result.stopped and result.step == 6 and checkpoints.steps() == (6,)
    checkpoints.close()


def scalar_fit(workdir, *, bad_at=None, metric="extra", spoiled_by=None, weight=1.0, **kwargs):
    """Fits one number; at step `bad_at` the metric or the loss is infinite, after `spoiled_by` the number."""

    def loss_fn(params, batch_stats, batch, key, step):
        bad = batch["i"][0] + 1 == (bad_at or -1)
        loss = (params["w"] ** 2).sum()
        extra = np.ones(3, np.float32) + 0 * loss
        if metric == "loss":
            loss = jax.numpy.where(bad, jax.numpy.nan, loss)
        else:
            extra = jax.numpy.where(bad, jax.numpy.inf, extra)
        return loss, (batch_stats, {"extra": extra, "a": loss})

    class Batches:
        index = 0

        def __next__(self):
            self.index += 1
            return {"i": np.full(2, self.index - 1)}

        def get_state(self):
            return self.index

    def rate(count):
        return jax.numpy.where(count + 1 == (spoiled_by or -1), jax.numpy.inf, 0.1)

    state = create_state(
        {"params": {"w": np.float32([weight])}},
        apply_fn=None,
        optimizer=optax.sgd(rate),
        key=jax.random.key(0),
    )
    parallel = parallelise(lambda axis: make_train_step(loss_fn, axis_name=axis), devices=jax.devices()[:1])
    return fit(state, parallel=parallel, batches=Batches(), batch_size=2, workdir=workdir, **kwargs)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_first_loss_of_exactly_zero_is_told_once(tmp_path, capsys, weight):
    scalar_fit(tmp_path, weight=weight, steps=3, log_every=1)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert [note.startswith("note: the loss of the first step is exactly 0") for note in notes] == [True] * (
        not weight
    )


@pytest.mark.parametrize("metric, named", [("loss", "loss is nan"), ("extra", "extra is inf")])
def test_non_finite_metric_stops_and_is_never_saved(tmp_path, metric, named):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(NonFiniteError, match=f"step 7: {named}") as raised:
        scalar_fit(tmp_path, bad_at=7, metric=metric, steps=20, checkpoints=checkpoints, checkpoint_every=4)
    assert (raised.value.step, raised.value.metric) == (7, metric)
    assert checkpoints.steps() == (4,)
    assert max(line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")) == 4
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    checkpoints.close()


def test_a_state_that_the_last_update_spoiled_is_not_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(NonFiniteError, match="step 8: params/w is -inf") as raised:
        scalar_fit(tmp_path, spoiled_by=8, steps=20, checkpoints=checkpoints, checkpoint_every=4)
    assert (raised.value.step, raised.value.metric) == (8, "params/w")
    assert checkpoints.steps() == (4,)
    checkpoints.close()


def test_full_disk_does_not_stop_training_but_its_end_must_be_saved(small_disk, capsys):
    disk = small_disk(2)
    checkpoints = Checkpoints(disk.path)

    def run(happening, **more):
        def evaluate(state):
            checkpoints.wait()
            happening.get(int(state.step), lambda: None)()
            return {}

        return scalar_fit(
            disk.path, steps=8, checkpoints=checkpoints, evaluate=evaluate, evaluate_every=2, log_every=1,
            **more,
        )  # fmt: skip

    with pytest.raises(CheckpointError, match=r"/8 could not be written .* the last one saved is of step 2"):
        run({4: disk.fill})
    assert capsys.readouterr().err.count("could not be written") >= 3
    assert checkpoints.steps()[-1] == 2
    disk.free()
    # Full in the middle only.
    kept = []
    assert run({4: disk.fill, 8: lambda: (kept.append(checkpoints.steps()), disk.free())}).step == 8
    assert kept == [(1, 2)] and checkpoints.steps() == (2, 8)
    # What goes on from here need not be saved here.
    assert run({4: disk.fill}, must_save=False).step == 8
    assert "/8 could not be written" in capsys.readouterr().err
    disk.free()
    assert [line["step"] for line in read_metrics(disk.path / "metrics.jsonl")] == list(range(1, 9))
    checkpoints.close()


def test_evaluation_is_logged_and_picks_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=1, best_metric="score")
    scores = iter([0.05, 0.1, 0.8, 0.3, 0.2])

    def evaluate(state):
        return {"score": next(scores), "per_joint": np.arange(2.0), "undefined": float("nan")}

    result = scalar_fit(
        tmp_path, steps=10, checkpoints=checkpoints, log_every=5, evaluate=evaluate, evaluate_every=3
    )
    assert checkpoints.steps() == (6, 10) and checkpoints.best_step() == 6
    assert result.scores["score"] == 0.2
    lines = {line["step"]: line for line in read_metrics(tmp_path / "metrics.jsonl")}
    assert list(lines) == [1, 3, 5, 6, 9, 10]
    assert lines[1]["validation/score"] == 0.05
    assert lines[6]["validation/score"] == 0.8 and lines[6]["validation/per_joint"] == [0.0, 1.0]
    assert lines[6]["validation/undefined"] is None
    assert "validation/score" not in lines[5]
    checkpoints.close()


def test_without_checkpoints_or_evaluation(tmp_path):
    result = scalar_fit(tmp_path, steps=3)
    assert result.step == 3 and result.scores == {}
    assert not (tmp_path / "checkpoints").exists()


def test_no_step_waits_for_the_host(tmp_path, monkeypatch):
    fetched = []
    original = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(1) or original(tree))
    scalar_fit(tmp_path, steps=40, log_every=20)
    assert len(fetched) == 3


def test_lines_of_json(uninterrupted):
    for line in pathlib.Path(uninterrupted[0] / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
