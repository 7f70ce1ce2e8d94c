"""A training step compiled and run on the devices there are: what it moves, how long it takes."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import collectives
import jax
import numpy as np
import optax
import scaling_claims
import scaling_steps
from jax.experimental.compilation_cache import compilation_cache

from hardmine_jax import training

WARM_UP = 2
OTHER_NETWORK = ("--model", "simple_baseline_18")


def measure(
    name: str, program: scaling_steps.Program, sizes: scaling_steps.Sizes, variation: str = ""
) -> scaling_claims.Measurement:
    """Compiles the step, runs it, and reads what it moves."""
    state, batch = program.parallel.put_state(program.state), program.parallel.put_batch(program.batch)
    start = time.perf_counter()
    lowered = program.parallel.train_step.lower(state, batch)
    with nothing_cached():
        compiled = lowered.compile()
    seconds = time.perf_counter() - start
    _, metrics = lowered.out_info
    # Made of the reduced gradient, on each device alike.
    metrics = [value.size for key, value in metrics.items() if key != "grad_norm"]
    reduced = [leaf.size for leaf in jax.tree.leaves((program.state.params, program.state.batch_stats))]
    found = collectives.parse(compiled.as_text())
    kinds = [one.kind for one in found]
    state, _ = compiled(state, batch)
    return scaling_claims.Measurement(
        program=name,
        variation=variation,
        processes=jax.process_count(),
        devices=jax.device_count(),
        parameters=4 * sum(reduced),
        equal=equal_bytes(program.parallel.get(state)),
        k=sizes.k if program.units else 0,
        units=program.units,
        step=step_seconds(compiled, state, batch, sizes.rounds),
        compile=seconds,
        groups=sorted({one.group for one in found}),
        collectives={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        shares=collectives.purposes(found, gradient=reduced, metrics=metrics),
    )


@contextlib.contextmanager
def nothing_cached() -> Iterator[None]:
    """What compiles within it is compiled, whatever lies in a cache on disk."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    # Whether there is a cache is asked only once.
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def equal_bytes(state: training.TrainState) -> int:
    """Bytes of the first step's gradient that another of its arrays has bit for bit.

    Where several batch norms are added up, as HRNet's branches are, the gradient of each one's bias is the
    same sum, and XLA finds that out. After one step Adam's first moment is a multiple of the gradient.
    """
    leaves = map(np.asarray, jax.tree.leaves(optax.tree.get(state.opt_state, "mu")))
    # Zeros are equal by chance: of a layer that sees one pixel, say, and normalises it to nothing.
    arrays = [array for array in leaves if array.any()]
    different = {(array.shape, array.tobytes()): array.nbytes for array in arrays}
    return sum(array.nbytes for array in arrays) - sum(different.values())


def step_seconds(compiled: Callable, state: Any, batch: Any, rounds: int) -> float:
    """Median time of a step after some that do not count; 0 for no rounds."""
    times = []
    for _ in range(WARM_UP + rounds if rounds else 0):
        start = time.perf_counter()
        # The state is donated: each step takes the last one's.
        state, _ = jax.block_until_ready(compiled(state, batch))
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:]) if rounds else 0.0


def measurements(
    names: tuple[scaling_steps.ProgramName, ...], sizes: scaling_steps.Sizes, *, vary: bool
) -> Iterator[scaling_claims.Measurement]:
    """Each program on the devices there are, and with `vary` what it is compared with."""
    for name in names:
        yield measure(name, scaling_steps.PROGRAMS[name](sizes), sizes)
    if not vary:
        return
    only = dataclasses.replace(sizes, rounds=0)
    images = dataclasses.replace(only, images=2 * sizes.images)
    twice = dataclasses.replace(only, k=2 * sizes.k)
    for name in names:
        if name.endswith("_global"):
            yield measure(name, scaling_steps.PROGRAMS[name](images), images, "images")
        if name == "detection_global":
            yield measure(name, scaling_steps.PROGRAMS[name](twice), twice, "k")
        if name == "pose_own_norm":
            yield measure(
                name, scaling_steps.pose(only, "--no-sync-batch-norm", *OTHER_NETWORK), only, "network"
            )
