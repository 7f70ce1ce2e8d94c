"""What a training step costs on 8 to 4096 devices, on paper: compute, and communication part by part.

    all-reduce, all-gather   see scaling_hardware.py
    compute                  2 flops x multiply-adds / (peak x utilisation); training is 3 forward passes
    utilisation              given, or of the step as compiled for TPU: see scaling_hardware.share_of_peak
    top-k of K keys          64 K bytes through the device's memory: see TOP_K_BYTES
    efficiency               compute / (compute + everything that is not hidden behind it)

The choice itself is exact `global_top_k`: every device sends its min(k, N) hardest keys, and looks through
those of all. Where k grows with the devices, soon every device sends all of its N units, and what each
receives, and looks through, is O(N x devices): small in bytes, but the one part that grows without end.
"""

import dataclasses
import functools
import math

import jax
import network_cost
from scaling_hardware import Hardware, all_gather, all_reduce, share_of_peak, split

from hardmine_jax.models import HRNet
from hardmine_jax.tasks.detection import config as detection_config
from hardmine_jax.tasks.detection.networks import init_variables
from hardmine_jax.tasks.detection.presets import defaults

# `keep_first` makes 32 counting passes over single bytes of the keys, and for each of the 4 bytes reads the
# keys once and writes that byte; about 3 passes over the keys finish. Each from memory: an upper bound.
TOP_K_BYTES = 32 + 4 * (4 + 1) + 3 * 4
# A training step of `pose_ohkm` or `detection_ohem`, as scaling.py measures its metrics.
NUM_KEYPOINTS = 17


@dataclasses.dataclass(frozen=True)
class Paper:
    """What is trained, and on how many devices. The number of images a device stays the same.

    Attributes:
      devices: one row each.
      pose_images: a device, of 256x192 and 17 keypoints, for HRNet-W32.
      pose_k: hard keypoints an image.
      detection_images: a device, for Fast R-CNN with VGG16.
      detection_size: height and width of these; 600 is the published short side.
      proposals: an image.
      detection_k: hard regions an image.
      fixed_k: over all devices, where k does not grow with them.
    """

    devices: tuple[int, ...] = (8, 64, 512, 4096)
    pose_images: int = 16
    pose_k: int = 8
    detection_images: int = 2
    detection_size: tuple[int, int] = (600, 1000)
    proposals: int = 2000
    detection_k: int = 64
    fixed_k: int = 128


@dataclasses.dataclass(frozen=True)
class Work:
    """What one device does in a step and tells the others.

    Attributes:
      name: of the network.
      step: of its training, as tpu_compile.py names it.
      multiply_adds: of the whole step.
      gradient: bytes, batch statistics included.
      norms: bytes that a synchronised batch norm reduces in each direction, one a layer.
      metrics: bytes of each reduction for metrics.
      units: that the choice is among, on this device.
      hard: how many of them are trained on, on average.
    """

    name: str
    step: str
    multiply_adds: int
    gradient: int
    norms: tuple[int, ...]
    metrics: tuple[int, ...]
    units: int
    hard: int


@dataclasses.dataclass(frozen=True)
class Mining:
    """One `global_top_k`: bytes that a device sends and receives, seconds to move them and to choose."""

    sent: int
    received: int
    moving: float
    choosing: float

    @property
    def seconds(self) -> float:
        return self.moving + self.choosing


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds of a step, part by part; `mining` with k growing with the devices, `fixed` with k fixed."""

    compute: float
    gradient: float
    metrics: float
    norms: float
    mining: Mining
    fixed: Mining

    def efficiency(self, *, overlap: bool, synchronised: bool = False) -> float:
        """Compute's share of the step. With overlap the gradient travels during the backward pass, which is
        two thirds of the compute; nothing else can."""
        hidden = min(self.gradient, 2 / 3 * self.compute) if overlap else 0.0
        rest = self.gradient - hidden + self.metrics + self.mining.seconds + synchronised * self.norms
        return self.compute / (self.compute + rest)


def mine(k: int, units: int, num_devices: int, hardware: Hardware) -> Mining:
    """`global_top_k` of k among `units` a device: each chooses among its own twice, and once among all."""
    sent = 4 * min(k, units)
    received = sent * num_devices
    looked_through = TOP_K_BYTES * (received // 4 + 2 * units)
    moving = all_gather(sent, num_devices, hardware)
    return Mining(sent, received, moving, looked_through / (1e9 * hardware.memory))


def costs(work: Work, num_devices: int, fixed_k: int, hardware: Hardware) -> Costs:
    """All parts of a step on so many devices."""
    reduce = functools.partial(all_reduce, num_devices=num_devices, hardware=hardware)
    # A whole batch may have fewer units than the fixed k.
    fixed = min(fixed_k, work.units * num_devices)
    return Costs(
        compute=2 * work.multiply_adds / (1e12 * hardware.peak * share_of_peak(hardware, work.step)),
        gradient=reduce(work.gradient),
        metrics=sum(reduce(nbytes) for nbytes in work.metrics),
        norms=2 * sum(reduce(nbytes) for nbytes in work.norms),
        mining=mine(work.hard * num_devices, work.units, num_devices, hardware),
        fixed=mine(fixed, work.units, num_devices, hardware),
    )


def pose(paper: Paper) -> Work:
    """HRNet-W32 at 256x192: every unit's loss comes from one forward pass, so mining saves no compute."""
    model, size = HRNet(32), (256, 192)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *size, 3), "float32"))
    statistics = jax.tree.leaves(variables["batch_stats"])
    # Mean and mean of squares travel together, as do their gradients.
    norms = tuple(8 * leaf.size for leaf in statistics[::2])
    numbers = network_cost.parameters(model, size) + sum(leaf.size for leaf in statistics)
    sums, means = 2 * NUM_KEYPOINTS + 2, NUM_KEYPOINTS + 5
    return Work(
        name="HRNet-W32 256x192",
        step="pose hrnet_w32, own batch norm",
        multiply_adds=3 * paper.pose_images * network_cost.forward_multiply_adds(model, size),
        gradient=4 * numbers,
        norms=norms,
        metrics=(4 * sums, 4 * means),
        units=NUM_KEYPOINTS * paper.pose_images,
        hard=paper.pose_k * paper.pose_images,
    )


def detection(paper: Paper) -> Work:
    """Fast R-CNN, VGG16, 20 classes, two passes: the head runs forward on all regions, then trains on k."""
    model, size = detection_config.make_model(defaults("vgg16", "voc"), 20), paper.detection_size
    init = functools.partial(init_variables, model, size)
    variables = jax.eval_shape(init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *size, 3), "float32")
    features = functools.partial(model.apply, method="features")
    maps = jax.eval_shape(features, variables, image).shape[-1]
    region = jax.ShapeDtypeStruct((1, 7, 7, maps), "float32")
    trunk = network_cost.multiply_adds(features, variables, image)
    head = network_cost.multiply_adds(functools.partial(model.apply, method="head"), variables, region)
    units, hard = paper.detection_images * paper.proposals, paper.detection_images * paper.detection_k
    return Work(
        name=f"Fast R-CNN VGG16 {size[0]}x{size[1]}",
        step="detection vgg16",
        multiply_adds=3 * paper.detection_images * trunk + (units + 3 * hard) * head,
        gradient=4 * sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        norms=(),
        metrics=(4 * 4,),
        units=units,
        hard=hard,
    )


def check(paper: Paper, machines: dict[str, Hardware]) -> None:
    """Raises ValueError for a flag that makes no sense, before anything is counted."""
    counts = {name: value for name, value in vars(paper).items() if name not in ("devices", "detection_size")}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"--paper.{name.replace('_', '-')} {value} must be at least 1")
    if any(side < 16 for side in paper.detection_size):
        raise ValueError(f"--paper.detection-size {paper.detection_size}: both sides must be 16 or more")
    if paper.pose_k > NUM_KEYPOINTS:
        raise ValueError(f"--paper.pose-k {paper.pose_k}: there are {NUM_KEYPOINTS} keypoints")
    if paper.detection_k > paper.proposals:
        raise ValueError(f"--paper.detection-k {paper.detection_k}: more than --paper.proposals")
    for name, hardware in machines.items():
        for key in ("peak", "utilisation", "memory", "group", "fast", "slow"):
            value = getattr(hardware, key)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name}.{key} {value} must be above 0")
        for key in ("wraps_from", "fast_hop", "slow_hop", "start"):
            if not 0 <= getattr(hardware, key) < math.inf:
                flag = f"--{name}.{key.replace('_', '-')}"
                raise ValueError(f"{flag} {getattr(hardware, key)} must be at least 0")
        if hardware.utilisation is not None and hardware.utilisation > 1:
            raise ValueError(f"--{name}.utilisation {hardware.utilisation} is a share: at most 1")
        for num_devices in paper.devices:
            split(num_devices, hardware)
