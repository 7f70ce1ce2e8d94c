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
import time

import jax
import jax.numpy as jnp
import rich
import rich.table
import timing
import tyro

from hardmine_jax.data.problems import DataError
from hardmine_jax.data.stream import TrainBatches
from hardmine_jax.job.host_memory import keep_freed_memory
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose import datasets as pose_datasets
from hardmine_jax.tasks.pose import train as pose_train
from hardmine_jax.tasks.pose.loss import mined_loss
from hardmine_jax.tasks.trainer import make_trainer

SEGMENTS = 4
# Untimed at the head of a segment: what the segment before left in the buffers is used up by then.
LEAD_IN = 6


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and for how long.

    Attributes:
      data_dir: folder of LSP or LSP-extended; synthetic people without one.
      steps: timed steps of each thing measured, over all segments.
    """

    data_dir: pathlib.Path | None = None
    steps: int = 48


class Loop:
    """The order of things of `training.fit`: the next batch is fetched while the step runs."""

    def __init__(self, parallel, state):
        self._parallel, self._state = parallel, parallel.put_state(state)

    def run(self, take, steps: int) -> tuple[float, float]:
        """(seconds a step, of these spent in `take()`)."""
        started = waited = 0.0
        batch = self._parallel.put_batch(take())
        metrics = [None, None]
        for step in range(LEAD_IN + steps):
            if step == LEAD_IN:
                jax.block_until_ready(metrics)
                started, waited = time.perf_counter(), 0.0
            self._state, new = self._parallel.train_step(self._state, batch)
            before = time.perf_counter()
            following = take()
            waited += time.perf_counter() - before
            batch = self._parallel.put_batch(following)
            jax.block_until_ready(metrics[0])
            metrics = [metrics[1], new]
        jax.block_until_ready(metrics)
        return (time.perf_counter() - started) / steps, waited / steps


def mining_alone(config: pose_config.Config, batch: dict, rows: int):
    """A call of encoding, losses, choice, metrics and the gradient to the heatmaps, for a device's rows."""
    part = {name: jnp.asarray(value[:rows]) for name, value in batch.items()}
    # Heatmaps of the laptop preset.
    height, width = (side // 4 for side in config.image_size)
    num_keypoints = batch["visibility"].shape[-1]
    heatmaps = jax.random.normal(jax.random.key(0), (rows, height, width, num_keypoints))
    mining, supervision = pose_config.mining_of(config, num_keypoints), pose_config.supervision_of(config)

    def loss(heatmaps, batch, key):
        return mined_loss(heatmaps, batch, key, jnp.int32(0), mining, supervision)

    # Arguments, or the compiler would work out the targets once and for all.
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    key = jax.random.key(1)
    return lambda: jax.block_until_ready(run(heatmaps, part, key))


def seconds(function, repeats: int) -> float:
    """Median time of a call, after a few that do not count."""
    times = []
    for _ in range(LEAD_IN + repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[LEAD_IN:])


def drain(batches: TrainBatches, steps: int) -> float:
    """Seconds a batch of the pipeline with nothing beside it."""
    for _ in range(LEAD_IN):
        next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return (time.perf_counter() - start) / steps


def measure(config: pose_config.Config, dataset, steps: int) -> tuple[dict[str, float], int]:
    """Medians over segments (see `main` for the names), and compilations after the first step."""
    parallel, state = make_trainer(config.run, pose_config.build(config, dataset.skeleton))
    batches = pose_train.make_batches(config, dataset)
    loop, constant = Loop(parallel, state), next(batches)
    mining = mining_alone(config, constant, config.run.batch_size // parallel.num_devices)
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
        main(tyro.cli(Config))
    except (DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
