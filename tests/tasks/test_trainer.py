"""From flags to steps: what --profile-steps traces, what is said of the chip, what a step moves."""

import dataclasses
import functools
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax import training
from hardmine_jax.errors import UserError
from hardmine_jax.models.layers import Conv, ConvNorm
from hardmine_jax.models.resnet import BasicBlock
from hardmine_jax.tasks.compare import _SILENT as SILENT
from hardmine_jax.tasks.compare import flatten
from hardmine_jax.tasks.config_json import change, from_plain, plain
from hardmine_jax.tasks.detection import config as detection_config
from hardmine_jax.tasks.detection import train as detection_train
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose import train as pose_train
from hardmine_jax.tasks.pose.loss import Mining, Supervision, make_loss
from hardmine_jax.tasks.run_config import RunConfig, check_devices
from hardmine_jax.tasks.trainer import Functions, fit, make_trainer
from hardmine_jax.training import flops
from tests.tasks import guarded

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
    assert "note: the run is at step 3: nothing is left of --profile-steps 2:3" in capsys.readouterr().err
    _train(_run(tmp_path / "done", profile_steps="2:3"), step=5)
    assert "note:" not in "".join(capsys.readouterr()) and not (tmp_path / "past" / "profile").exists()


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


@pytest.mark.parametrize("kind", ["jit", "shard_map", "pmap"])
def test_a_guarded_step_refuses_what_is_on_the_host(kind):
    """So the tasks' tests, which train by `guarded.parallelise`, would show one that waits for the host."""

    def make_step(axis):
        return lambda state, batch: (state + batch.mean(), {})

    parallel = guarded.parallelise(make_step, kind=kind, devices=jax.devices()[:2])
    rows = np.ones((4, 3), np.float32)
    state, _ = parallel.train_step(parallel.put_state(jnp.float32(1)), parallel.put_batch(rows))
    assert float(parallel.get(state)) == 2
    on_host = rows.reshape(2, 2, 3) if kind == "pmap" else rows
    with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
        parallel.train_step(state, on_host)


class SmallNetwork(nn.Module):
    """Heatmaps by two strided blocks and a residual one, as the published networks compute."""

    dtype: jax.typing.DTypeLike
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        common = {"train": train, "dtype": self.dtype, "axis_name": self.axis_name}
        features = ConvNorm(8, stride=2, **common, name="stem1")(images)
        features = ConvNorm(16, stride=2, **common, name="stem2")(features)
        features = BasicBlock(16, **common, name="block")(features)
        return Conv(5, 1, use_bias=True, dtype=self.dtype, name="head")(features).astype(jnp.float32)


def _short_training(dtype, steps=30):
    """Losses of OHKM on the same crops, batch statistics and Adam included."""
    model, supervision = SmallNetwork(jnp.dtype(dtype)), Supervision(1.5)
    functions = FUNCTIONS._replace(
        init=lambda key: model.init(key, jnp.zeros((1, 32, 32, 3))),
        loss_for=lambda axis: make_loss(model, Mining("ohkm", lambda step: 3), supervision, axis_name=axis),
    )
    optimizer = training.OptimizerConfig(name="adamw", learning_rate=5e-3, clip_norm=1.0, schedule="constant")
    run = RunConfig(batch_size=8, steps=steps, dtype=dtype, optimizer=optimizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training, "parallelise", functools.partial(training.parallelise, devices=jax.devices()[:1])
        )
        parallel, state = make_trainer(run, functions)
    rng = np.random.default_rng(0)
    batch = parallel.put_batch(
        {
            "image": rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8),
            "keypoints": rng.uniform(0, 32, (8, 5, 2)).astype(np.float32),
            "visibility": np.full((8, 5), 2, np.int32),
            "where": np.ones(8, bool),
            "index": np.arange(8, dtype=np.int32),
        }
    )
    state, losses = parallel.put_state(state), []
    for _ in range(steps):
        state, metrics = parallel.train_step(state, batch)
        losses.append(metrics["loss"])
    return np.array(losses, np.float32), state.params


def test_bfloat16_lands_where_float32_does():
    """Same seeds, same crops: the loss comes down as far, within a twentieth, and weights stay float32."""
    (exact, _), (rounded, params) = _short_training("float32"), _short_training("bfloat16")
    print(exact[[0, -1]], rounded[[0, -1]], np.abs(rounded / exact - 1).max())
    assert exact[-1] < 0.75 * exact[0]
    np.testing.assert_allclose(rounded, exact, rtol=0.05)
    assert not np.array_equal(rounded, exact)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("kind", [pose_config.Config, detection_config.Config], ids=["pose", "detection"])
def test_runs_of_before_these_flags_go_on_and_stay_in_one_row(kind):
    """What they wrote means what it meant, and `hardmine compare` sees no setting that is new."""
    new = ("profile_steps", "remat", "gradient_dtype")
    written = plain(change(kind(), steps=9, profile_steps="2:3", remat="blocks"))
    before = {name: value for name, value in written.items() if name not in new}
    config = from_plain(kind, before)
    assert [getattr(config.run, name) for name in new] == [None, "none", None]
    shown = [
        {n for n, v in flatten(c).items() if n not in SILENT and v is not None} for c in (before, written)
    ]
    assert shown[0] == shown[1]


def test_gradients_that_the_compiler_exchanges_are_not_promised_in_bfloat16(tmp_path):
    assert jax.device_count() > 1
    run = _run(tmp_path, gradient_dtype="bfloat16")
    for parallel in ("auto", "shard_map", "pmap"):
        check_devices(dataclasses.replace(run, parallel=parallel))
    with pytest.raises(UserError, match="--gradient-dtype bfloat16 means nothing to --parallel jit"):
        check_devices(dataclasses.replace(run, parallel="jit"))
