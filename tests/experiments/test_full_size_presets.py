"""Every preset at its published size: one step of training with one image. Minutes of compilation."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from hardmine_jax import training
from hardmine_jax.tasks.config_json import change
from hardmine_jax.tasks.detection import config as detection_config
from hardmine_jax.tasks.detection import train as detection_train
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose import datasets as pose_datasets
from hardmine_jax.tasks.pose import train as pose_train
from hardmine_jax.tasks.pose.presets import PRESETS
from hardmine_jax.tasks.trainer import make_trainer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    parallelise = functools.partial(training.parallelise, devices=jax.devices()[:1])
    monkeypatch.setattr(training, "parallelise", parallelise)


def _check_step(parallel: training.Parallel, state: training.TrainState, batch: dict) -> dict:
    before = jax.tree.map(np.array, jax.device_get(state.params))
    state, metrics = parallel.train_step(parallel.put_state(state), parallel.put_batch(batch))
    state, metrics = parallel.get(state), parallel.get(metrics)
    assert np.isfinite(metrics["loss"]) and metrics["loss"] > 0
    assert np.isfinite(metrics["grad_norm"]) and metrics["grad_norm"] > 0
    # Every weight has a gradient, and every one is finite.
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True):
        assert np.isfinite(new).all() and (old != new).any()
    return metrics


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "laptop"])
def test_a_pose_preset_trains(preset):
    skeleton = pose_datasets.DATASETS["mpii" if preset.startswith("hourglass") else "synthetic"].skeleton
    config = pose_config.settle(pose_train.parse(["--preset", preset, "--batch-size", "8"]), skeleton)
    config = change(config, batch_size=1, dtype="float32", parallel="jit")
    parallel, state = make_trainer(config.run, pose_config.build(config, skeleton))
    height, width = config.image_size
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 255, (1, height, width, 3), np.uint8),
        "keypoints": rng.uniform(0, width, (1, skeleton.num_keypoints, 2)).astype(np.float32),
        "visibility": np.full((1, skeleton.num_keypoints), 2, np.int32),
        "where": np.ones(1, bool),
        "index": np.zeros(1, np.int32),
    }
    metrics = _check_step(parallel, state, batch)
    assert ("global_loss" in metrics) == preset.startswith(("cpn", "hourglass"))


@pytest.mark.parametrize("model", ["vgg16", "resnet50"])
def test_a_detection_preset_trains(model):
    config = detection_train.parse(["--preset", "vgg16", "--model", model, "--dataset", "voc"])
    # Half as many proposals and a shorter side than on an accelerator, for the memory of a CPU machine.
    search = dataclasses.replace(config.search, max_proposals=1000)
    config = change(config, batch_size=1, parallel="jit", image_size=(608, 1024), search=search, max_boxes=10)
    parallel, state = make_trainer(config.run, detection_config.build(config, 20).of_run)
    rng = np.random.default_rng(0)
    boxes = [np.sort(rng.uniform(0, 600, (1, count, 2, 2)), 2).reshape(1, count, 4) for count in (1000, 10)]
    batch = {
        "image": rng.integers(0, 255, (1, *config.image_size, 3), np.uint8),
        "image_size": np.array([config.image_size], np.int32),
        "scale": np.ones(1, np.float32),
        "proposals": boxes[0].astype(np.float32),
        "proposals_where": np.ones((1, 1000), bool),
        "boxes": boxes[1].astype(np.float32),
        "labels": rng.integers(1, 21, (1, 10)).astype(np.int32),
        "boxes_where": np.ones((1, 10), bool),
        "difficult": np.zeros((1, 10), bool),
        "where": np.ones(1, bool),
        "index": np.zeros(1, np.int32),
    }
    metrics = _check_step(parallel, state, batch)
    assert 0 < metrics["fraction_kept"] < 0.1
