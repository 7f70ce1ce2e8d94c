"""A whole training step of Fast R-CNN for each way to choose regions: time and memory.

Network, loss and step are those of experiments/detection_ohem.py on photographs: trunk, targets, RoIAlign,
head, choice, gradient, clipping and AdamW, of rate 0 so that all turns start from the same weights.
"""

import dataclasses
import functools
import importlib.util

import jax
import numpy as np
import optax
from timing import Question, Way, torch_device, torch_way

from hardmine_jax import training
from hardmine_jax.models import fast_rcnn
from hardmine_jax.tasks.detection import config as detection_config
from hardmine_jax.tasks.detection.loss import make_loss
from hardmine_jax.tasks.detection.networks import init_variables
from hardmine_jax.tasks.detection.presets import defaults
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
    model = detection_config.make_model(defaults("laptop", "voc"), NUM_CLASSES)
    return model.clone(hidden=(hidden, hidden))


def jax_way(model: fast_rcnn.FastRCNN, variables: dict, kind: str, config: Step, arrays: dict) -> Way:
    """A step that overwrites its state, as in training; an answer is the loss and the gradient's norm."""
    batch = jax.device_put(arrays)
    loss = make_loss(model, Mining(kind, config.k, IOU_THRESHOLD))
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adamw(0.0, weight_decay=0.01))
    # A copy: the step overwrites what it is given.
    state = training.create_state(
        jax.tree.map(jax.numpy.copy, variables), apply_fn=None, optimizer=optimizer, key=jax.random.key(1)
    )
    step = jax.jit(training.make_train_step(loss), donate_argnums=0)
    program = step.lower(state, batch).compile()
    states = [state]

    def run():
        states[0], metrics = jax.block_until_ready(program(states[0], batch))
        return metrics["loss"], metrics["grad_norm"]

    # Loops over regions are counted once by the compiler, so its count of operations is left out.
    return Way(run, program, has_loop=True, answer=lambda found: np.array(found, np.float32))


def stepping(config: Step, hidden: int) -> Question:
    """All ways, those that share an answer checked.

    Raises:
      ValueError: they disagree.
    """
    model, arrays = make_model(hidden), draw(config)
    init = functools.partial(init_variables, model, config.image_size)
    variables = jax.jit(init)(jax.random.key(0))
    ways = {ALIKE.get(kind, kind): jax_way(model, variables, kind, config, arrays) for kind in config.kinds}
    if importlib.util.find_spec("torch"):
        ways |= _torch_way(model, variables, config, arrays)
    height, width = config.image_size
    title = (
        f"training step, {config.batch_size} images of {height} x {width}, k={config.k} of"
        f" {config.num_proposals} + {config.num_objects} regions, head {hidden}"
    )
    _check({name: way for name, way in ways.items() if name not in config.kinds})
    return Question(title, ways)


def _check(ways: dict[str, Way]) -> None:
    answers = {name: way.answer(way.run()) for name, way in ways.items()}
    # Sums over a whole network, in another order in PyTorch.
    if not np.allclose(list(answers.values()), next(iter(answers.values())), rtol=1e-3):
        raise ValueError(f"the ways disagree, so their times mean nothing: {answers}")


def _torch_way(model: fast_rcnn.FastRCNN, variables: dict, config: Step, arrays: dict) -> dict[str, Way]:
    import detection_torch

    network = detection_torch.FastRCNN(model.trunk.widths, jax.device_get(variables["params"]))
    step = detection_torch.make_step(
        network.to(torch_device()), arrays, k=config.k, threshold=IOU_THRESHOLD, clip_norm=CLIP_NORM
    )
    kernels = "torchvision" if detection_torch.HAS_TORCHVISION else "grid_sample"
    return {f"PyTorch, masked, {kernels}": torch_way(step, answer=lambda found: np.array(found, np.float32))}
