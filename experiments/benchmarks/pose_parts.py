"""The parts of a pose training step, each timed alone: the loop of steps, mining, the input pipeline."""

import statistics
import time

import jax
import jax.numpy as jnp

from hardmine_jax.data.stream import TrainBatches
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose.loss import mined_loss
from hardmine_jax.tasks.pose.mining import mining_of

# Untimed at the head of a segment: what the segment before left in the buffers is used up by then.
LEAD_IN = 6


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


def mining_alone(config: pose_config.Config, skeleton: Skeleton, batch: dict, rows: int):
    """A call of encoding, losses, choice, metrics and the gradient to the heatmaps, for a device's rows."""
    part = {name: jnp.asarray(value[:rows]) for name, value in batch.items()}
    # Heatmaps of the laptop preset.
    height, width = (side // 4 for side in config.image_size)
    heatmaps = jax.random.normal(jax.random.key(0), (rows, height, width, skeleton.num_keypoints))
    mining, supervision = mining_of(config, skeleton), pose_config.supervision_of(config)

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
