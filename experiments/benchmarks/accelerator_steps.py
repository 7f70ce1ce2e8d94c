"""Whole training steps of the published networks, as this package and as PyTorch take them.

A pose step: uint8 images, targets, network, OHKM with k = 8, gradient, Adam, new batch statistics. PyTorch is
handed normalised images and targets that are made already, channels last, and autocasts for bfloat16. A
detection step is `detection_step`'s, with VGG16's widths. First answers are losses from the same weights.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import detection_step
import jax
import jax.numpy as jnp
import network_cost
import numpy as np
from timing import Question, Way, check, jax_way, torch_device, torch_way

from hardmine_jax import detection, training
from hardmine_jax.models import fast_rcnn, hrnet, simple_baseline, vgg
from hardmine_jax.models.images import DEVIATION, MEAN
from hardmine_jax.pose import encode_heatmaps, image_to_heatmap
from hardmine_jax.tasks.pose.loss import Mining, Supervision, make_loss, mined_loss
from hardmine_jax.tasks.pose.networks import NETWORKS

HAS_TORCH = importlib.util.find_spec("torch") is not None
PoseName = Literal["hrnet_w32", "simple_baseline_50", "cpn_50", "laptop"]
DTypeName = Literal["float32", "bfloat16"]
NUM_KEYPOINTS, SIGMA = 17, 2.0
OHKM = Mining("ohkm", lambda step: 8)
# Those whose training PyTorch repeats here, with the way from its weights to ours.
FROM_TORCH: dict[str, Callable[[Any], Any]] = {
    "hrnet_w32": hrnet.from_torch,
    "simple_baseline_50": simple_baseline.from_torch,
}


@dataclasses.dataclass(frozen=True)
class Step:
    """A step to be timed.

    Attributes:
      question: the ways to it, ours first.
      images: in a batch.
      flops: floating-point operations of our step's products, counted before the compiler changes them.
      mining: what the choice takes, timed alone.
    """

    question: Question
    images: int
    flops: float
    mining: Way


def draw_pose(batch: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """A batch as the input pipeline makes it, every keypoint visible."""
    rng = np.random.default_rng(0)
    extent = np.array(size[::-1], np.float32)
    return {
        "image": rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8),
        "keypoints": (rng.random((batch, NUM_KEYPOINTS, 2), np.float32) * extent).astype(np.float32),
        "visibility": np.full((batch, NUM_KEYPOINTS), 2, np.int32),
        "index": np.arange(batch, dtype=np.int32),
        "where": np.ones(batch, bool),
    }


def _supervision(name: PoseName) -> Supervision:
    return Supervision(SIGMA, NETWORKS[name].early(SIGMA))


def _state(variables: Any) -> training.TrainState:
    optimizer = training.make_optimizer(training.OptimizerConfig(learning_rate=1e-4), steps=1_000_000)
    # A copy: the step overwrites what it is given.
    variables = jax.tree.map(jnp.array, dict(variables))
    return training.create_state(variables, apply_fn=None, optimizer=optimizer, key=jax.random.key(1))


def trained_way(parallel: training.Parallel, state: training.TrainState, arrays: dict) -> Way:
    """A step that overwrites its state, as in training; an answer is the loss."""
    state, batch = parallel.put_state(state), parallel.put_batch(arrays)
    program = parallel.train_step.lower(state, batch).compile()
    states = [state]

    def run():
        states[0], metrics = jax.block_until_ready(program(states[0], batch))
        return parallel.get(metrics)["loss"]

    return Way(run, program, answer=lambda loss: np.asarray(loss, np.float32))


def pose_step(name: PoseName, dtype: DTypeName, batch: int, size: tuple[int, int]) -> Step:
    """A published pose network, PyTorch's beside it where there is one."""
    arrays = draw_pose(batch, size)
    model = NETWORKS[name].make(num_keypoints=NUM_KEYPOINTS, dtype=jnp.dtype(dtype), axis_name=None)
    ways, network = {}, None
    if HAS_TORCH and name in FROM_TORCH:
        network = _torch_network(name)
        variables = FROM_TORCH[name](network.state_dict())
    else:
        variables = network_cost.random_variables(model, size)
    make_step = _pose_step_maker(name, model)
    state = _state(variables)
    flops = 2.0 * network_cost.multiply_adds(make_step(None), state, arrays)
    ways[f"{name}, {dtype}"] = trained_way(training.parallelise(make_step, kind="jit"), state, arrays)
    if network is not None:
        ways["PyTorch"] = torch_way(_torch_pose_step(network, arrays, dtype), answer=np.float32)
    title = f"training step of {name}, {dtype}, {batch} images of {size[0]} x {size[1]}, OHKM"
    question = Question(title, ways)
    # First losses, from the same weights: TF32 is a thousandth off in every product, bfloat16 a hundredth.
    check(question, rtol=1e-2 if dtype == "float32" else 0.1)
    return Step(question, batch, flops, pose_mining(arrays, size))


def _pose_step_maker(name: PoseName, model: Any) -> Callable[[str | None], training.Step]:
    def make_step(axis_name: str | None) -> training.Step:
        loss = make_loss(model.clone(axis_name=axis_name), OHKM, _supervision(name), axis_name=axis_name)
        return training.make_train_step(loss, axis_name=axis_name)

    return make_step


def pose_mining(arrays: dict, size: tuple[int, int]) -> Way:
    """What lies between the last heatmaps and their gradient: targets, losses, choice, mean and metrics."""
    shape = (len(arrays["image"]), size[0] // 4, size[1] // 4, NUM_KEYPOINTS)
    heatmaps = jax.random.normal(jax.random.key(0), shape)

    # Arguments, or the compiler would work out the targets once and for all.
    def loss(heatmaps, batch, key):
        return mined_loss(heatmaps, batch, key, jnp.int32(0), OHKM, Supervision(SIGMA))[0]

    return jax_way(jax.value_and_grad(loss), heatmaps, arrays, jax.random.key(1))


def _torch_network(name: PoseName) -> Any:
    import torch_networks

    make = {"hrnet_w32": torch_networks.HRNet, "simple_baseline_50": torch_networks.SimpleBaseline}
    return torch_networks.randomise(make[name]())


def _torch_pose_step(network: Any, arrays: dict, dtype: DTypeName) -> Callable[[], Any]:
    """A step of Adam as training code in PyTorch takes it: OHKM in a loop over images."""
    import torch

    device = torch_device()
    torch.backends.cudnn.benchmark = True
    network = network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    images, targets = (torch.tensor(array, device=device) for array in _torch_inputs(arrays))
    images = images.contiguous(memory_format=torch.channels_last)
    half = torch.bfloat16 if dtype == "bfloat16" else None

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, half, enabled=half is not None):
            heatmaps = network(images)
        errors = ((heatmaps.float() - targets) ** 2).mean((2, 3))
        total = 0.0
        for row in errors:
            total = total + row[torch.topk(row, 8, sorted=False).indices].sum() / 8
        loss = total / len(errors)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _torch_inputs(arrays: dict) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images and target heatmaps, NCHW."""
    images = (arrays["image"].astype(np.float32) / 255 - MEAN) / DEVIATION
    height, width = (side // 4 for side in arrays["image"].shape[1:3])
    places = image_to_heatmap(jnp.asarray(arrays["keypoints"]), stride=4)
    targets = np.asarray(encode_heatmaps(places, size=(height, width), sigma=SIGMA))
    return tuple(np.ascontiguousarray(np.moveaxis(x, -1, 1)) for x in (images, targets))


def detection_step_of(config: detection_step.Step, dtype: DTypeName, hidden: int) -> Step:
    """Fast R-CNN with VGG16's widths, batch normalisation and RoIAlign, and OHEM."""
    trunk = vgg.VGGTrunk(norm="batch", dtype=jnp.dtype(dtype))
    model = fast_rcnn.FastRCNN(
        detection_step.NUM_CLASSES,
        trunk,
        (hidden, hidden),
        dropout=0.0,
        pooling="align",
        dtype=jnp.dtype(dtype),
    )
    question = detection_step.stepping(config, model, dtype)
    flops = detection_step.step_flops(model, config.kinds[0], config)
    return Step(question, config.batch_size, flops, _detection_mining(config))


def _detection_mining(config: detection_step.Step) -> Way:
    """The choice alone, by losses that are there."""
    arrays = detection_step.draw(config)
    boxes = np.concatenate([arrays["proposals"], arrays["boxes"]], axis=1)
    losses = np.random.default_rng(0).random(boxes.shape[:2], np.float32)
    choose = jax.vmap(lambda losses, boxes: detection.ohem(losses, boxes, k=config.k))
    return jax_way(choose, losses, boxes)


def parallel_ways(batch: int, size: tuple[int, int]) -> Question:
    """The laptop pose step by each `--parallel`, over all devices."""
    model = NETWORKS["laptop"].make(num_keypoints=NUM_KEYPOINTS, dtype=jnp.float32, axis_name=None)
    arrays = draw_pose(batch, size)
    state = _state(network_cost.random_variables(model, size))
    make_step = _pose_step_maker("laptop", model)
    kinds: tuple[Literal["jit", "shard_map", "pmap"], ...] = ("jit", "shard_map", "pmap")
    ways = {kind: trained_way(training.parallelise(make_step, kind=kind), state, arrays) for kind in kinds}
    return Question(f"laptop pose step, {batch} images, {jax.device_count()} device(s), by --parallel", ways)
