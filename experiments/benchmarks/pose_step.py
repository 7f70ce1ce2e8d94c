"""What a training step of the laptop preset spends on mining, on compiling again, and on waiting for input.

    python experiments/benchmarks/pose_step.py
    python experiments/benchmarks/pose_step.py --data-dir ../shared/data/lspet --steps 100

Two to three minutes on 2 CPU cores. The things compared take turns in short segments, so that a machine that
slows down slows them all; numbers are medians over segments.
"""

import dataclasses
import pathlib
import statistics
import sys

import jax
import rich
import rich.table
import timing
from pose_parts import Loop, drain, mining_alone, seconds

from hardmine_jax.data.problems import DataError
from hardmine_jax.job.host_memory import keep_freed_memory
from hardmine_jax.tasks.flags import parse_flags
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose import datasets as pose_datasets
from hardmine_jax.tasks.pose import train as pose_train
from hardmine_jax.tasks.trainer import make_trainer

SEGMENTS = 4


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and for how long.

    Attributes:
      data_dir: folder of LSP or LSP-extended; synthetic people without one.
      steps: timed steps of each thing measured, over all segments.
    """

    data_dir: pathlib.Path | None = None
    steps: int = 48


def measure(config: pose_config.Config, dataset, steps: int) -> tuple[dict[str, float], int]:
    """Medians over segments (see `main` for the names), and compilations after the first step."""
    parallel, state = make_trainer(config.run, pose_config.build(config, dataset.skeleton))
    batches = pose_train.make_batches(config, dataset)
    loop, constant = Loop(parallel, state), next(batches)
    mining = mining_alone(config, dataset.skeleton, constant, config.run.batch_size // parallel.num_devices)
    mining()
    loop.run(lambda: constant, 1)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compilations.append(name) if name.endswith("backend_compile_duration") else None
    )
    found = {name: [] for name in ("constant", "real", "waited", "input", "mining")}
    for _ in range(SEGMENTS):
        found["constant"].append(loop.run(lambda: constant, steps // SEGMENTS)[0])
        found["mining"].append(seconds(mining, steps))
        real, waited = loop.run(lambda: next(batches), steps // SEGMENTS)
        found["real"].append(real)
        found["waited"].append(waited)
        found["input"].append(drain(batches, steps // SEGMENTS))
    batches.close()
    return {name: statistics.median(values) for name, values in found.items()}, len(compilations)


def main(config: Config) -> None:
    """Prints one table."""
    if config.steps < SEGMENTS:
        raise ValueError(f"--steps {config.steps}: at least {SEGMENTS}, one a segment")
    keep_freed_memory()
    flags = ["--dataset", "lspet", "--data-dir", str(config.data_dir)] if config.data_dir else []
    training = pose_train.parse(flags)
    dataset = pose_datasets.load_dataset(training)
    training = pose_config.settle(training, dataset.skeleton)
    found, compilations = measure(training, dataset, config.steps)
    size, a_step = training.run.batch_size, found["constant"]
    title = (
        f"laptop preset, {dataset.name}, batch {size} of {training.image_size[0]}x{training.image_size[1]}"
    )
    table = rich.table.Table("", "ms a step", "images/s", "share", title=title, caption=timing.host())
    rows = {
        "training, one batch again and again": (a_step, None),
        "training, real input": (found["real"], None),
        "  of that, waiting for input": (found["waited"], found["waited"] / found["real"]),
        "input pipeline alone": (found["input"], None),
        "heatmaps, OHKM, metrics, their gradient alone": (found["mining"], found["mining"] / a_step),
    }
    for name, (value, share) in rows.items():
        rate = "" if share is not None else f"{size / value:,.0f}"
        table.add_row(name, f"{1e3 * value:,.2f}", rate, "" if share is None else f"{100 * share:.2f} %")
    table.add_section()
    table.add_row("compilations after the first step", "", "", str(compilations))
    rich.print(table)


if __name__ == "__main__":
    try:
        main(parse_flags(Config))
    except (DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
