"""The training steps whose collectives are measured: those of `pose_ohkm` and `detection_ohem`, small.

Each is made for shard_map, with a fixed number of images a device. Mining is within an image, as the two
train, or over the whole global batch. What they are fed is drawn at random.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import detection_step
import jax
import numpy as np

from hardmine_jax import training
from hardmine_jax.data.pose.coco import COCO_SKELETON
from hardmine_jax.mining import global_top_k, masked_mean, stats
from hardmine_jax.models import normalise_images
from hardmine_jax.pose import encode_heatmaps, heatmap_mse, image_to_heatmap
from hardmine_jax.tasks.detection import config as detection_config
from hardmine_jax.tasks.detection import train as detection_train
from hardmine_jax.tasks.detection.loss import make_head_losses
from hardmine_jax.tasks.detection.rois import make_rois
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose import train as pose_train
from hardmine_jax.tasks.pose.networks import to_network
from hardmine_jax.tasks.trainer import make_trainer

ProgramName = Literal["pose", "pose_own_norm", "pose_global", "detection", "detection_global"]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the measured steps are.

    Attributes:
      image_size: sides of the images, a multiple of 32.
      images: on each device.
      k: hard units of the whole global batch, where that is mined.
      proposals: regions an image, beside its 4 objects.
      rounds: timed steps; 0 compiles only.
    """

    image_size: int = 64
    images: int = 2
    k: int = 16
    proposals: int = 48
    rounds: int = 7


class Program(NamedTuple):
    """A training step ready to compile.

    Attributes:
      parallel, state: as `make_trainer` gives them.
      batch: what this process feeds.
      units: on a device, of the mining over the global batch; 0 without it.
    """

    parallel: training.Parallel
    state: training.TrainState
    batch: dict[str, np.ndarray]
    units: int = 0


def small_pose(sizes: Sizes, *more: str) -> pose_config.Config:
    """The laptop preset, small."""
    flags = ["--image-size", *2 * [str(sizes.image_size)], "--parallel", "shard_map", *more]
    # Of any size, since no step is made for one; the same for all, so that `pose_trainer` is.
    config = pose_train.parse([*flags, "--batch-size", str(jax.device_count())])
    return pose_config.settle(config, COCO_SKELETON)


@functools.cache
def pose_trainer(config: pose_config.Config) -> tuple[training.Parallel, training.TrainState]:
    # Kept: making the first weights takes as long as compiling the step.
    return make_trainer(config.run, pose_config.build(config, COCO_SKELETON))


def pose_batch(sizes: Sizes) -> dict[str, np.ndarray]:
    """Noise for images, keypoints anywhere in them."""
    rng, count, side = np.random.default_rng(0), sizes.images * jax.local_device_count(), sizes.image_size
    num_keypoints = COCO_SKELETON.num_keypoints
    return {
        "image": rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        "keypoints": rng.uniform(0, side, (count, num_keypoints, 2)).astype(np.float32),
        "visibility": np.full((count, num_keypoints), 2, np.int32),
        "where": np.ones(count, bool),
        "index": np.arange(count, dtype=np.int32),
    }


def pose(sizes: Sizes, *more: str) -> Program:
    """As `pose_ohkm` trains by default: OHKM within each image, synchronised batch norm."""
    return Program(*pose_trainer(small_pose(sizes, *more)), pose_batch(sizes))


def pose_own_norm(sizes: Sizes) -> Program:
    """With the batch statistics of each device."""
    return pose(sizes, "--no-sync-batch-norm")


def pose_global(sizes: Sizes) -> Program:
    """The k hardest keypoints of all images of all devices; batch statistics of each device."""
    config = small_pose(sizes)

    def make_step(axis_name: str):
        model = pose_config.make_model(config, COCO_SKELETON.num_keypoints)

        def loss_function(params, batch_stats, batch, key, step):
            variables = {"params": params, "batch_stats": batch_stats}
            images = to_network(batch["image"], config.inputs)
            heatmaps, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            labelled = (batch["visibility"] > 0) & batch["where"][:, None]
            stride = batch["image"].shape[1] / heatmaps.shape[1]
            keypoints = image_to_heatmap(batch["keypoints"], stride=stride)
            targets = encode_heatmaps(
                keypoints, size=heatmaps.shape[1:3], sigma=config.heatmap_sigma, where=labelled
            )
            losses = heatmap_mse(heatmaps, targets, where=labelled)
            loss, keep = hardest_of_all(losses, labelled, sizes.k, axis_name)
            metrics = stats(losses, keep, labelled, axis_name=axis_name)._asdict()
            return loss, (updated["batch_stats"], metrics)

        return training.make_train_step(loss_function, axis_name=axis_name, ema_decay=config.run.ema_decay)

    _, state = pose_trainer(config)
    units = sizes.images * COCO_SKELETON.num_keypoints
    return Program(training.parallelise(make_step, kind="shard_map"), state, pose_batch(sizes), units)


def small_detection(sizes: Sizes, *more: str) -> detection_config.Config:
    """The laptop preset, small."""
    flags = ["--image-size", *2 * [str(sizes.image_size)], "--parallel", "shard_map", "--k", "8", *more]
    flags += ["--search.max-proposals", str(sizes.proposals)]
    config = detection_train.parse([*flags, "--batch-size", str(jax.device_count())])
    return detection_config.settle(config)


@functools.cache
def detection_trainer(config: detection_config.Config) -> tuple[training.Parallel, training.TrainState]:
    functions = detection_config.build(config, detection_step.NUM_CLASSES)
    return make_trainer(config.run, functions.of_run)


def detection_batch(sizes: Sizes) -> dict[str, np.ndarray]:
    return detection_step.draw(
        detection_step.Step(
            batch_size=sizes.images * jax.local_device_count(),
            image_size=(sizes.image_size, sizes.image_size),
            num_proposals=sizes.proposals,
            num_objects=4,
        )
    )


def detection(sizes: Sizes) -> Program:
    """As `detection_ohem` trains by default: OHEM within each image, synchronised batch norm."""
    return Program(*detection_trainer(small_detection(sizes)), detection_batch(sizes))


def detection_global(sizes: Sizes) -> Program:
    """The k hardest regions of all images of all devices, masked; batch statistics of each device."""
    config = small_detection(sizes)

    def make_step(axis_name: str):
        model = detection_config.make_model(config, detection_step.NUM_CLASSES)
        head_losses = make_head_losses(model, focal=False, train=True)

        def loss_function(params, batch_stats, batch, key, step):
            variables = {"params": params, "batch_stats": batch_stats}
            images = normalise_images(batch["image"])
            features, updated = model.apply(
                variables, images, train=True, method="features", mutable=["batch_stats"]
            )
            rois = make_rois(batch)
            losses = jax.vmap(head_losses, (None, 0, 0, None))(variables, features, rois, None)
            loss, keep = hardest_of_all(losses, rois.where, sizes.k, axis_name)
            return loss, (updated["batch_stats"], {"fraction_kept": keep.mean()})

        return training.make_train_step(loss_function, axis_name=axis_name, ema_decay=config.run.ema_decay)

    _, state = detection_trainer(config)
    batch = detection_batch(sizes)
    units = sizes.images * (batch["proposals"].shape[1] + batch["boxes"].shape[1])
    return Program(training.parallelise(make_step, kind="shard_map"), state, batch, units)


def hardest_of_all(
    losses: jax.Array, where: jax.Array, k: int, axis_name: str
) -> tuple[jax.Array, jax.Array]:
    """This device's part of the mean loss of the k hardest units anywhere, and which they are.

    Args:
      losses: [B, N]; where: bool [B, N]; of this device.

    Returns:
      loss [], whose mean over devices is the sum over the k, divided by k; keep bool [B, N].
    """
    units = losses.reshape(-1)
    keep = global_top_k(units, k=k, axis_name=axis_name, where=where.reshape(-1))
    loss = masked_mean(units, where=keep, denominator=k / jax.lax.axis_size(axis_name))
    return loss, keep.reshape(losses.shape)


PROGRAMS: Mapping[ProgramName, Callable[[Sizes], Program]] = {
    "pose": pose,
    "pose_own_norm": pose_own_norm,
    "pose_global": pose_global,
    "detection": detection,
    "detection_global": detection_global,
}
