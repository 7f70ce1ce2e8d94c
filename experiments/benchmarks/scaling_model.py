"""What a training step costs on 8 to 4096 devices, on paper: compute, and communication part by part.

With n devices, i = min(n, group) of them in a group that is joined by fast links, and o = n / i groups:

    all-reduce of V bytes    start + 2 hops + 2 (i-1)/i V / fast + 2 (o-1)/o V / (i slow)
    all-gather of S from all start +   hops + (i-1) o S / fast   +   (o-1) S / slow
    hops on a torus          sum over its three sides of side / 2; without wrap-around, side - 1
    hops on switches         (i-1) fast hops and log2(o) slow ones
    compute                  2 flops x multiply-adds / (peak x utilisation); training is 3 forward passes
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
import rich.table

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
class Hardware:
    """What is assumed of the devices and of what joins them; rates are of one device, one way.

    Attributes:
      name: for the tables.
      peak: 10^12 floating-point operations a second, bfloat16 without sparsity.
      utilisation: the share of it that training reaches.
      memory: GB/s of the device's own memory.
      group: devices that fast links join.
      fast: GB/s out of a device over all of its fast links.
      slow: GB/s out of a device to other groups.
      torus: the fast links make a three-dimensional torus, not a switch.
      wraps_from: devices from which the torus closes; in a smaller block half of the links lead nowhere.
      fast_hop: microseconds from a device to the next over a fast link.
      slow_hop: the same between groups.
      start: microseconds before a collective does anything.
    """

    name: str
    peak: float
    utilisation: float
    memory: float
    group: int
    fast: float
    slow: float
    torus: bool
    wraps_from: int
    fast_hop: float
    slow_hop: float
    start: float


# docs.cloud.google.com/tpu/docs/v5p-training: 459 TFLOPS, 2765 GB/s, 4,800 Gbit/s of links (now given as
# 1,200 GB/s both ways), 3D torus, 8,960 chips, 50 Gbit/s a chip to other pods. jax-ml/scaling-book,
# sharding.md: about 1 us a hop, and 8 us measured where 3 hops would take 3, which leaves 5 to start.
TPU_V5P = Hardware(
    name="TPU v5p", peak=459.0, utilisation=0.3, memory=2765.0, group=8960, fast=600.0, slow=6.25, torus=True,
    wraps_from=64, fast_hop=1.0, slow_hop=10.0, start=5.0,
)  # fmt: skip
# H100 SXM: 989 TFLOPS dense, 3,350 GB/s, NVLink 900 GB/s both ways among the 8 of a DGX, a ConnectX-7 of
# 400 Gbit/s each (DGX H100 user guide, tables of network modules). NVIDIA/nccl, src/graph/tuning.cc: a small
# reduction by tree takes 4.4 us, 0.52 a NVLink hop and 5.0 a network hop.
H100 = Hardware(
    name="H100", peak=989.0, utilisation=0.3, memory=3350.0, group=8, fast=450.0, slow=50.0, torus=False,
    wraps_from=0, fast_hop=0.52, slow_hop=5.0, start=4.4,
)  # fmt: skip


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
      multiply_adds: of the whole step.
      gradient: bytes, batch statistics included.
      norms: bytes that a synchronised batch norm reduces in each direction, one a layer.
      metrics: bytes of each reduction for metrics.
      units: that the choice is among, on this device.
      hard: how many of them are trained on, on average.
    """

    name: str
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


def sides(num_devices: int) -> tuple[int, int, int]:
    """The most cubic block of so many devices.

    >>> sides(8), sides(32), sides(512)
    ((2, 2, 2), (2, 4, 4), (8, 8, 8))
    """
    found, rest, factor = [1, 1, 1], num_devices, 2
    factors = []
    while rest > 1:
        while rest % factor == 0:
            factors.append(factor)
            rest //= factor
        factor += 1
    for factor in reversed(factors):
        found[found.index(min(found))] *= factor
    return tuple(sorted(found))


def split(num_devices: int, hardware: Hardware) -> tuple[int, int]:
    """Devices in a group, and groups.

    Raises:
      ValueError: they do not fill the groups.
    """
    inside = min(num_devices, hardware.group)
    if num_devices < 1 or num_devices % inside:
        raise ValueError(f"--paper.devices {num_devices}: at least 1, and whole groups of {hardware.group}")
    return inside, num_devices // inside


def hops(num_devices: int, hardware: Hardware) -> float:
    """Seconds in which a word reaches every device."""
    inside, outside = split(num_devices, hardware)
    number = inside - 1
    if hardware.torus:
        open_ended = inside < hardware.wraps_from
        number = sum(side - 1 if open_ended else side // 2 for side in sides(inside))
    far = math.ceil(math.log2(outside))
    return 1e-6 * (number * hardware.fast_hop + far * hardware.slow_hop)


def all_reduce(nbytes: float, num_devices: int, hardware: Hardware) -> float:
    """Seconds; 0 on one device."""
    if num_devices == 1:
        return 0.0
    inside, outside = split(num_devices, hardware)
    moving = (inside - 1) / inside * nbytes / _fast(inside, hardware)
    moving += (outside - 1) / outside * nbytes / inside / (1e9 * hardware.slow)
    return 1e-6 * hardware.start + 2 * hops(num_devices, hardware) + 2 * moving


def all_gather(sent: float, num_devices: int, hardware: Hardware) -> float:
    """Seconds until every device has what each of them sent; 0 on one device."""
    if num_devices == 1:
        return 0.0
    inside, outside = split(num_devices, hardware)
    moving = (inside - 1) * outside * sent / _fast(inside, hardware)
    moving += (outside - 1) * sent / (1e9 * hardware.slow)
    return 1e-6 * hardware.start + hops(num_devices, hardware) + moving


def _fast(inside: int, hardware: Hardware) -> float:
    """Bytes a second over fast links."""
    half = hardware.torus and inside < hardware.wraps_from
    return 1e9 * hardware.fast * (0.5 if half else 1.0)


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
        compute=2 * work.multiply_adds / (1e12 * hardware.peak * hardware.utilisation),
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
            if not 0 < getattr(hardware, key) < math.inf:
                raise ValueError(f"--{name}.{key} {getattr(hardware, key)} must be above 0")
        for key in ("wraps_from", "fast_hop", "slow_hop", "start"):
            if not 0 <= getattr(hardware, key) < math.inf:
                flag = f"--{name}.{key.replace('_', '-')}"
                raise ValueError(f"{flag} {getattr(hardware, key)} must be at least 0")
        if hardware.utilisation > 1:
            raise ValueError(f"--{name}.utilisation {hardware.utilisation} is a share: at most 1")
        for num_devices in paper.devices:
            split(num_devices, hardware)


def tables(paper: Paper, machines: dict[str, Hardware]) -> list[rich.table.Table]:
    """For each machine and network a table of the step's parts, and one of what mining does."""
    made = []
    works = [pose(paper), detection(paper)]
    for hardware in machines.values():
        for work in works:
            rows = {count: costs(work, count, paper.fixed_k, hardware) for count in paper.devices}
            made.append(_parts(f"On paper: {work.name} on {hardware.name}", work, rows))
            made.append(
                _mining(f"Its mining, {work.units:,} units on each device", work, rows, paper.fixed_k)
            )
    return made


def _parts(title: str, work: Work, rows: dict[int, Costs]) -> rich.table.Table:
    made = rich.table.Table(title=title, caption=_caption(work), caption_justify="left")
    columns = (
        "devices", "compute ms", "gradient ms", "mining ms", "metrics ms", "efficiency, no overlap",
        "gradient behind backward", "sync. batch norm ms", "efficiency with it",
    )  # fmt: skip
    for column in columns:
        made.add_column(column, justify="right")
    for count, cost in rows.items():
        seconds = (cost.compute, cost.gradient, cost.mining.seconds, cost.metrics)
        shares = [_percent(cost.efficiency(overlap=overlap)) for overlap in (False, True)]
        norms = ["none", ""]
        if work.norms:
            both = cost.efficiency(overlap=True, synchronised=True)
            norms = [_milliseconds(cost.norms), _percent(both)]
        made.add_row(f"{count:,}", *map(_milliseconds, seconds), *shares, *norms)
    return made


def _mining(title: str, work: Work, rows: dict[int, Costs], fixed_k: int) -> rich.table.Table:
    made = rich.table.Table(title=title)
    columns = ("devices", "k", "kB sent by each", "kB received", "all-gather ms", "top-k over them ms")
    for column in columns:
        made.add_column(column, justify="right")
    for name, cell in (("grows", "mining"), ("fixed", "fixed")):
        for count, cost in rows.items():
            one = getattr(cost, cell)
            k = work.hard * count if cell == "mining" else min(fixed_k, work.units * count)
            moved = (f"{one.sent / 1e3:,.2f}", f"{one.received / 1e3:,.1f}")
            times = map(_milliseconds, (one.moving, one.choosing))
            made.add_row(f"{count:,}", f"{k:,}, {name}", *moved, *times)
        made.add_section()
    return made


def _caption(work: Work) -> str:
    return (
        f"a device: {work.multiply_adds / 1e9:,.0f} 10^9 multiply-adds, {work.gradient / 1e6:,.1f} MB of "
        f"float32 gradient and batch statistics, {work.hard:,} hard of {work.units:,} units, "
        f"{len(work.norms)} layers of batch norm"
    )


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def assumptions(paper: Paper, machines: dict[str, Hardware]) -> str:
    """Everything that the tables rest on, and where they are weak."""
    lines = [
        ", ".join(f"{key} {value}" for key, value in vars(hardware).items()) for hardware in machines.values()
    ]
    lines += [
        "Units: peak TFLOP/s, memory and links GB/s one way of one device, hops and start in microseconds.",
        f"Weak scaling, on each device: {paper.pose_images} crops of 256x192, or {paper.detection_images} "
        f"pictures of {paper.detection_size[0]}x{paper.detection_size[1]} with {paper.proposals:,} regions.",
        "Compute is multiply-adds of convolutions and matrix products in bfloat16 alone; RoI pooling, "
        "optimizer, input and the gradient to the image are left out. Training is 3 forward passes; of Fast "
        "R-CNN's head one over all regions and 3 over the hard ones.",
        "One all-reduce of all gradients in float32, one all-gather for mining, 1 or 2 all-reduces for "
        "metrics; synchronised batch norm 2 all-reduces a layer (XLA merges some of parallel branches).",
        "Gradient hidden behind the backward pass: at most two thirds of the compute; XLA merged into one "
        "reduction, as measured above, it starts at the end and nothing is hidden.",
        "Mining in the table of parts is with k growing: --paper.pose-k, --paper.detection-k an image, times "
        "images, times devices. Once k exceeds a device's units, each sends all: what is received and looked "
        "through is O(units x devices). With k fixed (--paper.fixed-k) it is O(k x devices).",
        "Two passes over the hard regions need a buffer of fixed length on each device; here it is exactly "
        "the average share of k. The hardest of a global batch are not spread evenly: a longer buffer costs "
        "compute, a shorter one drops regions.",
        "No stragglers, no other traffic; every step waits for its slowest device.",
    ]
    return "\n".join(f"- {line}" for line in lines)
