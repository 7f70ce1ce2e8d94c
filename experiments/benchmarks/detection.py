"""Detection against what one would otherwise call or write: a table for each question.

    python experiments/benchmarks/detection.py
    python experiments/benchmarks/detection.py --only regions boxes
    python experiments/benchmarks/detection.py --only step --step.hidden 256 --step.rounds 15 --step.k 32

For 2 CPU cores with nothing else running: PyTorch's threads wait for one another, so that its rows suffer
most from company. Ways to one answer are checked to be equal, then take turns; times are medians. More than 1
`times ours` is slower than the first row. Temporary memory and floating-point operations are the compiler's
account, the latter only where no loop hides some. PyTorch, torchvision and OpenCV take part where installed.
On a GPU PyTorch's ways run there, too, and products of float32 are in float32 on both sides.

What to expect: two passes take less time and memory than the masked path, the more so the wider the head, and
our pooling, suppression and matching less time than the others'.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Literal

import detection_boxes
import detection_ops
import detection_step
import mining_boxes
import rich
from timing import Question, check, full_precision, milliseconds, table

from hardmine_jax.job.host_memory import keep_freed_memory
from hardmine_jax.tasks.flags import parse_flags

Part = Literal["regions", "boxes", "step"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and for how long.

    Attributes:
      only: the parts to run; all by default.
      num_boxes: of one image, for pooling, suppression and matching.
      features: height, width and channels of the map they are pooled from.
      rounds: how often each way of pooling has its turn.
      box_rounds: the same of suppression and matching, which take less.
      step: the size of the training step, with rounds of its own.
    """

    only: tuple[Part, ...] = ("regions", "boxes", "step")
    num_boxes: int = 2000
    features: tuple[int, int, int] = (38, 50, 512)
    rounds: int = 5
    box_rounds: int = 25
    step: detection_step.Step = detection_step.Step()


def regions(config: Config) -> Iterator[tuple[Question, int]]:
    """Pooling, forward and with its gradient."""
    drawn = detection_ops.draw(config.num_boxes, config.features)
    for ask in (detection_ops.pooling, detection_ops.aligning):
        for backward in (False, True):
            question = ask(drawn, backward=backward)
            check(question)
            yield question, config.rounds


def boxes(config: Config) -> Iterator[tuple[Question, int]]:
    """Suppression and matching."""
    drawn = mining_boxes.draw(1, config.num_boxes)
    suppressed = detection_boxes.suppression(drawn, max_kept=min(128, config.num_boxes))
    matched = detection_boxes.matching(drawn, num_objects=min(20, config.num_boxes))
    for question in (suppressed, matched):
        check(question)
        yield question, config.box_rounds


def step(config: Config) -> Iterator[tuple[Question, int]]:
    """The training step, for each width of the head."""
    sizes = config.step.hidden, config.step.rounds
    if len(sizes[0]) != len(sizes[1]):
        raise ValueError(f"--step.hidden {sizes[0]} and --step.rounds {sizes[1]}: give as many of both")
    for hidden, rounds in zip(*sizes, strict=True):
        yield detection_step.stepping(config.step, detection_step.make_model(hidden)), rounds


PARTS: dict[str, Callable[[Config], Iterator[tuple[Question, int]]]] = {
    "regions": regions,
    "boxes": boxes,
    "step": step,
}


def main(config: Config) -> None:
    """Prints a table for each question."""
    # As in training.
    keep_freed_memory()
    full_precision()
    for part in config.only:
        for question, rounds in PARTS[part](config):
            rich.print(table(question, milliseconds(question.ways, rounds)))


if __name__ == "__main__":
    try:
        main(parse_flags(Config))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
