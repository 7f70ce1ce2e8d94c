"""The training steps that are compiled for TPU: of `hardmine pose train` and `hardmine detection train`.

They are made by the project's own trainers for devices that are not there. State and batch are shapes with
the places where their numbers would lie: parameters and optimizer on every device, images divided.
"""

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import collectives
import jax
import jax.numpy as jnp
import network_cost
from jax.sharding import NamedSharding, PartitionSpec

from hardmine_jax import training
from hardmine_jax.data.pose.coco import COCO_SKELETON
from hardmine_jax.data.pose.mpii import MPII_SKELETON
from hardmine_jax.tasks.config_json import change
from hardmine_jax.tasks.detection import config as detection_config
from hardmine_jax.tasks.detection.presets import defaults
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose.presets import PRESETS
from hardmine_jax.tasks.trainer import Functions, make_trainer
from hardmine_jax.training.sharding import AXIS

Shape = jax.ShapeDtypeStruct
NUM_CLASSES, MOST_OBJECTS = 20, 20


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
      task: "pose" or "detection".
      preset: of pose training; of detection training the network.
      images: on each device, as published.
      changes: of the preset's config.
    """

    task: str
    preset: str
    images: int
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        own = "" if self.changes.get("sync_batch_norm", True) else ", own batch norm"
        return f"{self.task} {self.preset}{own}"


# As published: HRNet and SimpleBaseline on four devices, CPN and Fast R-CNN on one. All mine.
_OHKM = {"mining": "ohkm"}
_OWN = {"sync_batch_norm": False}
STEPS = (
    Step("pose", "laptop", 32),
    Step("pose", "simple_baseline_50", 32, _OHKM),
    Step("pose", "cpn_50", 32),
    Step("detection", "resnet50", 2),
    Step("detection", "vgg16", 2),
    Step("pose", "laptop", 32, _OWN),
    Step("pose", "hrnet_w32", 32, _OHKM),
    Step("pose", "hrnet_w32", 32, _OHKM | _OWN),
)


class Made(NamedTuple):
    """A step ready to be lowered: shapes with their places."""

    parallel: training.Parallel
    state: training.TrainState
    batch: dict[str, Shape]

    def lower(self) -> jax.stages.Lowered:
        return self.parallel.train_step.lower(self.state, self.batch)

    def flops(self) -> float:
        """Floating-point operations of the products of one device."""
        return 2.0 * network_cost.multiply_adds(
            self.parallel.train_step, self.state, self.batch, platform="tpu"
        )

    def moved(self, text: str) -> dict[str, dict[str, list[int]]]:
        """What the collectives in the compiled text are for: of each purpose how many, and bytes sent."""
        metrics = jax.eval_shape(self.parallel.train_step, self.state, self.batch)[1]
        gradient = (self.state.params, self.state.batch_stats)
        sizes = {"gradient": gradient, "metrics": metrics}
        shares = collectives.purposes(
            collectives.parse(text),
            **{name: [leaf.size for leaf in jax.tree.leaves(tree)] for name, tree in sizes.items()},
        )
        found = {name: [share.collectives, share.sent] for name, share in shares.items() if share.collectives}
        return {"purposes": found}


def make(step: Step, devices: Sequence[jax.Device], images: int | None = None) -> Made:
    """The step on these devices; `images` on each where it is not as published."""
    count = len(devices) * (step.images if images is None else images)
    changes = step.changes | {"batch_size": count, "steps": 100_000, "workdir": ""}
    build = _pose if step.task == "pose" else _detection
    run, functions, batch = build(step.preset, changes)
    parallels = []

    def begin() -> training.TrainState:
        parallel, state = make_trainer(run, functions, devices=devices)
        parallels.append(parallel)
        return state

    with contextlib.redirect_stdout(io.StringIO()):
        state = jax.eval_shape(begin)
    parallel = parallels[0]
    return Made(
        parallel, _placed(state, parallel, PartitionSpec()), _placed(batch, parallel, PartitionSpec(AXIS))
    )


def _placed(tree: Any, parallel: training.Parallel, spec: PartitionSpec) -> Any:
    sharding = NamedSharding(parallel.mesh, spec)
    return jax.tree.map(lambda leaf: Shape(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _pose(preset: str, changes: dict[str, Any]) -> tuple[Any, Functions, dict[str, Shape]]:
    skeleton = MPII_SKELETON if PRESETS[preset].dataset == "mpii" else COCO_SKELETON
    config = pose_config.check_config(change(PRESETS[preset], **changes), skeleton)
    count, places = config.run.batch_size, (config.run.batch_size, skeleton.num_keypoints)
    batch = {
        "image": Shape((count, *config.image_size, 3), jnp.uint8),
        "keypoints": Shape((*places, 2), jnp.float32),
        "visibility": Shape(places, jnp.int32),
        "index": Shape((count,), jnp.int32),
        "where": Shape((count,), jnp.bool_),
    }
    return config.run, pose_config.build(config, skeleton), batch


def _detection(model: str, changes: dict[str, Any]) -> tuple[Any, Functions, dict[str, Shape]]:
    config = defaults("laptop" if model == "laptop" else "vgg16", "voc")
    config = change(config, model=model, max_boxes=MOST_OBJECTS, **changes)
    detection_config.check_config(config)
    count = config.run.batch_size
    objects, proposals = (count, MOST_OBJECTS), (count, config.search.max_proposals)
    batch = {
        "image": Shape((count, *config.image_size, 3), jnp.uint8),
        "boxes": Shape((*objects, 4), jnp.float32),
        "labels": Shape(objects, jnp.int32),
        "difficult": Shape(objects, jnp.bool_),
        "boxes_where": Shape(objects, jnp.bool_),
        "proposals": Shape((*proposals, 4), jnp.float32),
        "proposals_where": Shape(proposals, jnp.bool_),
        "index": Shape((count,), jnp.int32),
        "where": Shape((count,), jnp.bool_),
    }
    return config.run, detection_config.build(config, NUM_CLASSES).of_run, batch
