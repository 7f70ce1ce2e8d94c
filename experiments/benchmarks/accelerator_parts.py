"""The parts of the accelerator's command: questions, and the rows that their answers make."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import accelerator_steps as steps
import detection_boxes
import detection_ops
import detection_step
import jax
import mining_boxes
import mining_head
import mining_selectors
import timing

from hardmine_jax.training.peak_flops import peak_flops

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is; the defaults are those of README's tables."""

    selectors: int = 1
    boxes: int = 2000
    features: tuple[int, int, int] = (38, 50, 512)
    heatmaps: tuple[int, int, int] = (64, 64, 48)
    head: mining_head.Head = mining_head.Head(k=(64,))
    poses: tuple[steps.PoseName, ...] = ("hrnet_w32", "simple_baseline_50", "cpn_50")
    batch: int = 32
    crop: tuple[int, int] = (256, 192)
    detection: detection_step.Step = detection_step.Step(
        batch_size=2, image_size=(600, 1000), num_proposals=2000, num_objects=10, kinds=("ohem", "masked")
    )
    hidden: int = 4096
    parallel: tuple[int, tuple[int, int]] = (32, (96, 96))


SMALL = Sizes(
    selectors=100, boxes=40, features=(7, 9, 4), heatmaps=(2, 8, 6), poses=("laptop",), batch=2,
    crop=(32, 32),
    head=mining_head.Head(num_units=20, k=(3,), sizes=(8, 8, 4), chunk=5),
    detection=detection_step.Step(
        batch_size=1, image_size=(64, 64), num_proposals=10, num_objects=2, k=4, kinds=("ohem", "masked")
    ),
    hidden=8, parallel=(8, (32, 32)),
)  # fmt: skip


def operations(sizes: Sizes, rounds: int, dtypes: tuple[str, ...]) -> Iterator[list[Row]]:
    """Selection, losses and boxes: rows of one question at a time."""
    drawn, boxes = detection_ops.draw(sizes.boxes, sizes.features), mining_boxes.draw(1, sizes.boxes)
    most, objects = min(128, sizes.boxes), min(20, sizes.boxes)
    questions: list[Callable[[], timing.Question]] = [
        lambda: mining_selectors.heatmaps(*sizes.heatmaps, 17, k=8),
        lambda: mining_selectors.top_k((64, 17), k=8),
        lambda: mining_selectors.top_k((16, 2000 // sizes.selectors), k=128 // min(sizes.selectors, 16)),
        lambda: mining_selectors.top_k((1_000_000 // sizes.selectors,), k=1000),
        lambda: mining_selectors.hard_negatives(32, 8732 // sizes.selectors),
        lambda: mining_selectors.threshold(1_000_000 // sizes.selectors, min_kept=100_000 // sizes.selectors),
        lambda: detection_boxes.suppression(boxes, max_kept=most),
        lambda: detection_boxes.matching(boxes, num_objects=objects),
        lambda: detection_ops.aligning(drawn, backward=False),
        lambda: detection_ops.aligning(drawn, backward=True),
        lambda: detection_ops.pooling(drawn, backward=False),
        lambda: detection_ops.pooling(drawn, backward=True),
    ]
    for ask in questions:
        question = ask()
        timing.check(question)
        yield timed(question, rounds)


def heads(sizes: Sizes, rounds: int, dtypes: tuple[str, ...]) -> Iterator[list[Row]]:
    """Two-pass mining of a head, and PyTorch's."""
    config = sizes.head
    for k in config.k:
        problem = mining_head.make_problem(config)
        ways = mining_head.checked_ways(config, k, problem)
        yield timed(timing.Question(f"mine, {config.num_units} regions, k={k}", ways), rounds)


def pose(sizes: Sizes, rounds: int, dtypes: tuple[str, ...]) -> Iterator[list[Row]]:
    """Training steps of pose networks."""
    for name in sizes.poses:
        for dtype in dtypes:
            yield stepped(steps.pose_step(name, dtype, sizes.batch, sizes.crop), dtype, rounds)


def detection(sizes: Sizes, rounds: int, dtypes: tuple[str, ...]) -> Iterator[list[Row]]:
    """Training steps of Fast R-CNN."""
    for dtype in dtypes:
        yield stepped(steps.detection_step_of(sizes.detection, dtype, sizes.hidden), dtype, rounds)


def parallel(sizes: Sizes, rounds: int, dtypes: tuple[str, ...]) -> Iterator[list[Row]]:
    """What each `--parallel` costs."""
    yield timed(steps.parallel_ways(*sizes.parallel), rounds)


PARTS = {"pose": pose, "operations": operations, "parallel": parallel, "detection": detection, "heads": heads}


def timed(question: timing.Question, rounds: int) -> list[Row]:
    """A row for each way."""
    times = timing.milliseconds(question.ways, rounds)
    ours = next(iter(times.values()))
    rows = []
    for name, way in question.ways.items():
        memory = timing.cost(way)[1]
        rows.append({
            "question": question.title, "way": name, "ms": times[name], "times_ours": times[name] / ours,
            "temporary_mb": None if memory is None else memory / 1e6,
        })  # fmt: skip
    return rows


def stepped(step: steps.Step, dtype: str, rounds: int) -> list[Row]:
    """Rows with images a second, and in the first one the chip's use and mining's part."""
    rows = timed(step.question, rounds)
    for row in rows:
        row["images_per_second"] = 1e3 * step.images / row["ms"]
    rate, peak = step.flops / (1e-3 * rows[0]["ms"]), peak_flops(jax.devices()[0].device_kind, dtype)
    mining = timing.milliseconds({"mining": step.mining}, rounds)["mining"]
    rows[0] |= {
        "tflops": rate / 1e12,
        "mfu": None if peak is None else rate / peak,
        "mining_ms": mining,
        "mining_share": mining / rows[0]["ms"],
    }
    return rows
