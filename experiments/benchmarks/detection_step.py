"""A whole training step of Fast R-CNN for each way to choose regions: time and memory.

Network, loss and step are those of experiments/detection_ohem.py on photographs: trunk, targets, RoIAlign,
head, choice, gradient, clipping and AdamW, of rate 0 so that all turns start from the same weights.
"""

import dataclasses
import functools
import importlib.util
from typing import Literal

import jax
import network_cost
import numpy as np
import optax
from timing import Question, Way, check, torch_device, torch_way

from hardmine_jax import training
from hardmine_jax.models import fast_rcnn
from hardmine_jax.tasks.detection import networks
from hardmine_jax.tasks.detection.loss import make_loss
from hardmine_jax.tasks.detection.rois import Mining, MiningName

IOU_THRESHOLD = 0.7
CLIP_NORM = 5.0
NUM_CLASSES = 3
# These choose alike, and so does PyTorch here: the same loss and gradient.
ALIKE = {"ohem": "ohem, two passes", "masked": "masked, one pass"}


@dataclasses.dataclass(frozen=True)
class Step:
    """What is measured of the training step, and for how long.

    Attributes:
      batch_size: images.
      image_size: height and width, multiples of 4.
      num_proposals: an image.
      num_objects: an image; their boxes are regions too.
      k: hard regions an image.
      kinds: the ways to choose regions, the one that the others are compared with first.
      hidden: width of fc6 and fc7; a table for each. 256 is the laptop preset's, 4096 VGG16's.
      rounds: how often each way has its turn; a table for each number, as in `hidden`.
    """

    batch_size: int = 4
    image_size: tuple[int, int] = (240, 320)
    num_proposals: int = 600
    num_objects: int = 30
    k: int = 64
    kinds: tuple[MiningName, ...] = ("ohem", "masked", "random", "all")
    hidden: tuple[int, ...] = (256, 4096)
    rounds: tuple[int, ...] = (9, 3)


def draw(config: Step) -> dict[str, np.ndarray]:
    """A batch as the input pipeline makes it, without padding."""
    rng = np.random.default_rng(0)
    objects, proposals = _draw_boxes(config, rng)
    images, labels = (*config.image_size, 3), objects.shape[:2]
    return {
        "image": rng.integers(0, 256, (config.batch_size, *images), dtype=np.uint8),
        "boxes": objects,
        "labels": rng.integers(1, NUM_CLASSES + 1, labels).astype(np.int32),
        "difficult": np.zeros(labels, bool),
        "boxes_where": np.ones(labels, bool),
        "proposals": proposals,
        "proposals_where": np.ones(proposals.shape[:2], bool),
        "pool": np.ones(proposals.shape[:2], bool),
        "index": np.arange(config.batch_size, dtype=np.int32),
        "where": np.ones(config.batch_size, bool),
    }


def _draw_boxes(config: Step, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Objects, and proposals of which half lie about objects and half anywhere."""
    extent = np.array(config.image_size[::-1], np.float64)

    def boxes(centres, sizes):
        corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1)
        return np.clip(corners, 0, np.tile(extent, 2)).astype(np.float32)

    def anywhere(count):
        shape = config.batch_size, count, 2
        return rng.uniform(0.05, 0.95, shape) * extent, rng.uniform(0.15, 0.3, shape) * extent.min()

    centres, sizes = anywhere(config.num_objects)
    near = rng.integers(config.num_objects, size=config.num_proposals // 2)
    some = sizes[:, near]
    # Not so far that nothing of it lies inside.
    moved = centres[:, near] + rng.uniform(-0.2, 0.2, some.shape) * some
    about = boxes(moved, some * rng.uniform(0.7, 1.4, some.shape))
    rest = boxes(*anywhere(config.num_proposals - len(near)))
    return boxes(centres, sizes), np.concatenate([about, rest], axis=1)


def make_model(hidden: int) -> fast_rcnn.FastRCNN:
    """The laptop preset's, with other widths of its head."""
    model = networks.make_model("laptop", NUM_CLASSES, dtype="float32", axis_name=None, frozen_norm=False)
    return model.clone(hidden=(hidden, hidden))


def make_step(model: fast_rcnn.FastRCNN, kind: MiningName, config: Step) -> training.Step:
    """The training step of one way to choose regions."""
    return training.make_train_step(make_loss(model, Mining(kind, config.k, IOU_THRESHOLD)))


def make_state(variables: dict) -> training.TrainState:
    """A state of its own: the step overwrites what it is given."""
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adamw(0.0, weight_decay=0.01))
    copied = jax.tree.map(jax.numpy.copy, variables)
    return training.create_state(copied, apply_fn=None, optimizer=optimizer, key=jax.random.key(1))


def step_flops(model: fast_rcnn.FastRCNN, kind: MiningName, config: Step) -> float:
    """Floating-point operations of the products in a step, by its program; nothing runs."""
    state = jax.eval_shape(lambda: make_state(_init(model, config)))
    return 2.0 * network_cost.multiply_adds(make_step(model, kind, config), state, draw(config))


def jax_way(model: fast_rcnn.FastRCNN, variables: dict, kind: MiningName, config: Step, arrays: dict) -> Way:
    """A step that overwrites its state, as in training; an answer is the loss and the gradient's norm."""
    batch, state = jax.device_put(arrays), make_state(variables)
    program = jax.jit(make_step(model, kind, config), donate_argnums=0).lower(state, batch).compile()
    states = [state]

    def run():
        states[0], metrics = jax.block_until_ready(program(states[0], batch))
        return metrics["loss"], metrics["grad_norm"]

    # Loops over regions are counted once by the compiler, so its count of operations is left out.
    return Way(run, program, has_loop=True, answer=lambda found: np.array(found, np.float32))


def stepping(
    config: Step, model: fast_rcnn.FastRCNN, dtype: Literal["float32", "bfloat16"] = "float32"
) -> Question:
    """All ways, those that share an answer checked.

    Args:
      dtype: of the model's computation, and of PyTorch's.

    Raises:
      ValueError: they disagree.
    """
    variables, arrays = jax.jit(functools.partial(_init, model, config))(), draw(config)
    ways = {ALIKE.get(kind, kind): jax_way(model, variables, kind, config, arrays) for kind in config.kinds}
    if importlib.util.find_spec("torch"):
        ways |= _torch_way(model, variables, config, arrays, dtype)
    height, width = config.image_size
    title = (
        f"training step, {dtype}, {config.batch_size} images of {height} x {width}, k={config.k} of"
        f" {config.num_proposals} + {config.num_objects} regions, head {model.hidden[0]}"
    )
    alike = {name: way for name, way in ways.items() if name not in config.kinds}
    # Sums over a whole network, in another order in PyTorch; in bfloat16 other regions are the hardest.
    check(Question(title, alike), rtol=1e-3 if dtype == "float32" else 0.1)
    return Question(title, ways)


def _init(model: fast_rcnn.FastRCNN, config: Step) -> dict:
    return networks.init_variables(model, config.image_size, jax.random.key(0))


def _torch_way(
    model: fast_rcnn.FastRCNN, variables: dict, config: Step, arrays: dict, dtype: str
) -> dict[str, Way]:
    import detection_torch

    network = detection_torch.FastRCNN(model.trunk.widths, jax.device_get(variables["params"]))
    step = detection_torch.make_step(
        network.to(torch_device()),
        arrays,
        k=config.k,
        threshold=IOU_THRESHOLD,
        clip_norm=CLIP_NORM,
        dtype=dtype,
    )
    kernels = "torchvision" if detection_torch.HAS_TORCHVISION else "grid_sample"
    return {f"PyTorch, masked, {kernels}": torch_way(step, answer=lambda found: np.array(found, np.float32))}
