"""Machines on paper, and how long their links take for a collective.

With n devices, i = min(n, group) of them in a group that is joined by fast links, and o = n / i groups:

    all-reduce of V bytes    start + 2 hops + 2 (i-1)/i V / fast + 2 (o-1)/o V / (i slow)
    all-gather of S from all start +   hops + (i-1) o S / fast   +   (o-1) S / slow
    hops on a torus          sum over its three sides of side / 2; without wrap-around, side - 1
    hops on switches         (i-1) fast hops and log2(o) slow ones
"""

import dataclasses
import functools
import json
import math
import pathlib

# What tpu_compile.py wrote, and what is taken where it says nothing.
ESTIMATES, ASSUMED = pathlib.Path(__file__).with_name("tpu_compile.jsonl"), 0.3


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What is assumed of the devices and of what joins them; rates are of one device, one way.

    Attributes:
      name: for the tables.
      peak: 10^12 floating-point operations a second, bfloat16 without sparsity.
      utilisation: the share of it that training reaches; None: what the TPU compiler's estimate of that step
        comes to, see `share_of_peak`.
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
    utilisation: float | None
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
    name="TPU v5p", peak=459.0, utilisation=None, memory=2765.0, group=8960, fast=600.0, slow=6.25,
    torus=True, wraps_from=64, fast_hop=1.0, slow_hop=10.0, start=5.0,
)  # fmt: skip
# H100 SXM: 989 TFLOPS dense, 3,350 GB/s, NVLink 900 GB/s both ways among the 8 of a DGX, a ConnectX-7 of
# 400 Gbit/s each (DGX H100 user guide, tables of network modules). NVIDIA/nccl, src/graph/tuning.cc: a small
# reduction by tree takes 4.4 us, 0.52 a NVLink hop and 5.0 a network hop.
H100 = Hardware(
    name="H100", peak=989.0, utilisation=0.3, memory=3350.0, group=8, fast=450.0, slow=50.0, torus=False,
    wraps_from=0, fast_hop=0.52, slow_hop=5.0, start=4.4,
)  # fmt: skip


def share_of_peak(hardware: Hardware, step: str) -> float:
    """What training reaches of the peak.

    Where no share is given, it is that of a training step in `ESTIMATES`, compiled for this generation of
    TPU: its products over the compiler's cycles, collectives aside. What has no estimate is left out, and
    input is.

    Args:
      step: a row's name there.
    """
    if hardware.utilisation is not None:
        return hardware.utilisation
    generation = hardware.name.removeprefix("TPU ")
    return _estimates().get((generation, step), ASSUMED)


@functools.cache
def _estimates() -> dict[tuple[str, str], float]:
    """By generation and step; the last of each."""
    rows = [json.loads(line) for line in ESTIMATES.read_text().splitlines()]
    return {
        (row["topology"].partition(":")[0], row["question"]): row["share_of_peak"]
        for row in rows
        if "share_of_peak" in row
    }


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
