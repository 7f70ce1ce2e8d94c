"""From flags to steps: what --profile-steps traces, what is said of the chip, what a step moves."""

import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax import training
from hardmine_jax.tasks.detection import train as detection_train
from hardmine_jax.tasks.pose import train as pose_train
from hardmine_jax.tasks.run_config import RunConfig
from hardmine_jax.tasks.trainer import Functions, fit, make_trainer
from hardmine_jax.training import flops

TASKS = pytest.mark.parametrize("task", [pose_train, detection_train], ids=["pose", "detection"])


def _loss(params, batch_stats, batch, key, step):
    loss = jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
    return loss, (batch_stats, {})


FUNCTIONS = Functions(
    apply=lambda *_: None,
    init=lambda key: {"params": {"w": jnp.zeros((8, 2))}},
    loss_for=lambda axis: _loss,
    predict=lambda variables, batch: {},
)


class Batches:
    """The same batch again and again; a signal before the one that is asked for after `stop_after` others."""

    def __init__(self, stop_after=None):
        rng = np.random.default_rng(0)
        self.batch = {"x": rng.random((8, 8), np.float32), "y": rng.random((8, 2), np.float32)}
        self.count, self.stop_after = 0, stop_after

    def __next__(self):
        self.count += 1
        if self.count == self.stop_after:
            signal.raise_signal(signal.SIGTERM)
        return self.batch

    def get_state(self):
        return {"batches": self.count}


def _train(run, *, batches=None, step=0):
    parallelise = functools.partial(training.parallelise, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "parallelise", parallelise)
        parallel, state = make_trainer(run, FUNCTIONS)
    state = state.replace(step=jnp.int32(step))
    checkpoints = training.Checkpoints(run.folder)
    fitted = fit(
        run,
        state,
        parallel=parallel,
        batches=batches or Batches(),
        checkpoints=checkpoints,
        evaluate=lambda s: {},
    )
    checkpoints.close()
    return fitted


def _run(workdir, **fields):
    return RunConfig(workdir=workdir, batch_size=8, log_every=1, **{"steps": 5, **fields})


def _traces(run):
    return list((run.folder / "profile").glob("plugins/profile/*/*.xplane.pb"))


def test_profile_steps_traces_them_and_changes_nothing(tmp_path, capsys):
    run = _run(tmp_path / "traced", profile_steps="2:3")
    traced, plainly = _train(run), _train(_run(tmp_path / "plain"))
    jax.tree.map(np.testing.assert_array_equal, traced.state.params, plainly.state.params)
    assert len(_traces(run)) == 1 and not _traces(_run(tmp_path / "plain"))
    assert f"a trace of steps 2 to 3 is in {run.folder / 'profile'}" in capsys.readouterr().out


def test_a_run_past_them_says_so_and_one_that_is_done_does_not(tmp_path, capsys):
    _train(_run(tmp_path / "past", profile_steps="2:3", steps=6), step=3)
    assert "note: the run is at step 3: nothing is left of --profile-steps 2:3" in capsys.readouterr().out
    _train(_run(tmp_path / "done", profile_steps="2:3"), step=5)
    assert "note:" not in capsys.readouterr().out and not (tmp_path / "past" / "profile").exists()


def test_a_signal_within_them_ends_the_trace_and_saves(tmp_path, capsys):
    run = _run(tmp_path, profile_steps="2:50", steps=50)
    fitted = _train(run, batches=Batches(stop_after=4))
    assert fitted.stopped and 3 <= fitted.step < 50
    assert len(_traces(run)) == 1 and (tmp_path / "checkpoints" / str(fitted.step)).is_dir()
    assert f"a trace of steps 2 to {fitted.step} is in" in capsys.readouterr().out


@TASKS
@pytest.mark.parametrize("given", ["5:4", "0:3", "3", "2:9", "a:b"])
def test_other_ranges_are_refused_in_a_line(task, given, tmp_path, capsys):
    assert task.main(["--workdir", str(tmp_path / "run"), "--steps", "8", "--profile-steps", given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --profile-steps ") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_share_of_the_peak_is_in_the_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(flops, "peak_flops", lambda kind, dtype: 1e9)
    run = _run(tmp_path / "known")
    _train(run)
    _, *lines = training.read_metrics(run.folder / "metrics.jsonl")
    # The product, and its gradient: the inputs have none.
    count = 2 * 2 * 8 * 8 * 2
    for line in lines:
        assert line["mfu"] == pytest.approx(count / 8 * line["images_per_second"] / 1e9, rel=1e-4)
    assert "TFLOP/s a chip, MFU" in capsys.readouterr().out
    monkeypatch.undo()
    _train(_run(tmp_path / "unknown"))
    assert "MFU" not in capsys.readouterr().out + (tmp_path / "unknown" / "metrics.jsonl").read_text()
