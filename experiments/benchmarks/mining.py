"""Mining against what one would otherwise write or pick: a table for each question.

    python experiments/benchmarks/mining.py
    python experiments/benchmarks/mining.py --only boxes heatmaps
    python experiments/benchmarks/mining.py --only head --head.num-units 2000 --head.k 64 500 --head.rounds 9

About four minutes on 2 CPU cores, half of it for `mine`. Ways to one answer are checked to be equal, then
take turns; times are medians, temporary memory and floating-point operations the compiler's own account.
PyTorch, torchvision and OpenCV take part where they are installed. On a GPU PyTorch's ways run there, too,
and products of float32 are in float32 on both sides; numpy and OpenCV stay on the processor.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Literal

import mining_boxes
import mining_devices
import mining_head
import mining_selectors
import rich
from timing import Question, check, full_precision, milliseconds, table

from hardmine_jax.tasks.flags import parse_flags

Part = Literal["selectors", "pixels", "heatmaps", "boxes", "devices", "head"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and for how long.

    Attributes:
      only: the parts to run; all by default.
      rounds: how often each way has its turn; the last two parts have their own.
      num_devices: simulated for `global_top_k`, in a process of their own.
      devices: the size of `global_top_k`'s problem.
      head: the size of `mine`'s problem.
    """

    only: tuple[Part, ...] = ("selectors", "pixels", "heatmaps", "boxes", "devices", "head")
    rounds: int = 25
    num_devices: int = 8
    devices: mining_devices.Devices = mining_devices.Devices()
    head: mining_head.Head = mining_head.Head()


def selectors() -> Iterator[Question]:
    """Rows of the size of an image's keypoints, anchors or regions."""
    yield mining_selectors.top_k((64, 17), k=8)
    yield mining_selectors.top_k((16, 2000), k=128)
    yield mining_selectors.hard_negatives(32, 8732)
    yield mining_selectors.harder_than_easiest(64, 17)
    yield mining_selectors.random_k(16, 2000, k=128)


def pixels() -> Iterator[Question]:
    """A megapixel."""
    yield mining_selectors.top_k((1_000_000,), k=1000)
    yield mining_selectors.top_k((1_000_000,), k=100_000)
    yield mining_selectors.threshold(1_000_000, min_kept=100_000)


def heatmaps() -> Iterator[Question]:
    yield mining_selectors.heatmaps(64, 64, 48, 17, k=8)


def boxes() -> Iterator[Question]:
    for num_images in (1, 16):
        yield mining_boxes.suppression(mining_boxes.draw(num_images, 2000), max_kept=128)


QUESTIONS: dict[str, Callable[[], Iterator[Question]]] = {
    "selectors": selectors,
    "pixels": pixels,
    "heatmaps": heatmaps,
    "boxes": boxes,
}


def simulate_devices(config: Config) -> None:
    """Devices are counted when JAX starts, so that this needs a process of its own."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={config.num_devices}"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in vars(config.devices).items()]
    subprocess.run(
        [sys.executable, mining_devices.__file__, *options],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
    )


def main(config: Config) -> None:
    """Prints a table for each question."""
    full_precision()
    for part in config.only:
        if part == "devices":
            simulate_devices(config)
        elif part == "head":
            for made in mining_head.tables(config.head):
                rich.print(made)
        else:
            for question in QUESTIONS[part]():
                check(question)
                rich.print(table(question, milliseconds(question.ways, config.rounds)))


if __name__ == "__main__":
    try:
        main(parse_flags(Config))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except subprocess.CalledProcessError as error:
        print(f"error: the simulated devices stopped with status {error.returncode}", file=sys.stderr)
        sys.exit(2)
