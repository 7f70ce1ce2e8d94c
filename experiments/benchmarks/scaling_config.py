"""The flags of scaling.py, and which of them make no sense."""

import dataclasses
import pathlib
from typing import Literal

import scaling_hardware
import scaling_model
import scaling_steps

from hardmine_jax.data.pose.coco import COCO_SKELETON

Part = Literal["devices", "processes", "paper"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured and reckoned.

    Attributes:
      parts: simulated devices, processes, the model on paper.
      programs: the training steps measured on simulated devices.
      num_devices: how many are simulated, each number in a process of its own.
      process_programs: the training steps measured in several processes.
      processes: how many, two by two with the simulated devices of each.
      vary: also compile at twice the images, twice the k and for another network, and compare.
      sizes: of the measured steps.
      paper: what is reckoned on paper.
      tpu: the first machine of the paper, TPU v5p.
      gpu: the second, H100 with NVLink and InfiniBand.
      worker: used by itself: measure on the devices there are and write that file.
      distributed: used by itself, and the next three, as launch/local.py appends them.
    """

    parts: tuple[Part, ...] = ("devices", "processes", "paper")
    programs: tuple[scaling_steps.ProgramName, ...] = (
        "pose", "pose_own_norm", "pose_global", "detection", "detection_global",
    )  # fmt: skip
    num_devices: tuple[int, ...] = (1, 2, 4, 8)
    process_programs: tuple[scaling_steps.ProgramName, ...] = ("pose_global", "detection")
    processes: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (2, 4))
    vary: bool = True
    sizes: scaling_steps.Sizes = scaling_steps.Sizes()
    paper: scaling_model.Paper = scaling_model.Paper()
    tpu: scaling_hardware.Hardware = scaling_hardware.TPU_V5P
    gpu: scaling_hardware.Hardware = scaling_hardware.H100
    worker: pathlib.Path | None = None
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def check_config(config: Config) -> None:
    """Raises ValueError for a flag that makes no sense, before anything is started."""
    sizes = config.sizes
    if sizes.image_size < 32 or sizes.image_size % 32:
        raise ValueError(f"--sizes.image-size {sizes.image_size} must be a multiple of 32")
    least = {"images": 1, "k": 1, "proposals": 8, "rounds": 0}
    for name, low in least.items():
        if getattr(sizes, name) < low:
            raise ValueError(f"--sizes.{name} {getattr(sizes, name)} must be at least {low}")
    # Also at twice the k, on one device, there must be as many to choose from.
    most = sizes.images * min(COCO_SKELETON.num_keypoints, sizes.proposals) // 2
    if sizes.k > most:
        raise ValueError(f"--sizes.k {sizes.k}: at most {most}, half of a device's units: lower it")
    for name in ("parts", "programs", "num_devices", "process_programs", "processes"):
        if not getattr(config, name):
            raise ValueError(f"--{name.replace('_', '-')} needs at least one")
    if min(config.num_devices) < 1 or min(map(min, config.processes)) < 1:
        raise ValueError("--num-devices and --processes must be 1 or more")
    scaling_model.check(config.paper, machines(config))


def machines(config: Config) -> dict[str, scaling_hardware.Hardware]:
    return {"tpu": config.tpu, "gpu": config.gpu}
