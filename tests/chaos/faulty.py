"""An experiment in which things go wrong on demand: `python faulty.py EXPERIMENT FAULTS FLAGS...`.

EXPERIMENT is pose_ohkm or detection_ohem. FAULTS is a folder: a file in it called `nan1` happens to process
1 at its next step, once, and is gone. nan: its copy of the weights turns to NaN, as by a broken chip. stuck:
the thread that trains waits for ever, in Python, while it reads a batch.
"""

import dataclasses
import importlib
import pathlib
import sys
import time

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "experiments"))

from hardmine_jax import training  # noqa: E402
from hardmine_jax.data.stream import TrainBatches


def happens(faults: pathlib.Path, name: str) -> bool:
    try:
        (faults / f"{name}{jax.process_index()}").unlink()
    except FileNotFoundError:
        return False
    return True


def spoil(x: jax.Array) -> jax.Array:
    """NaN in this process's copies of an array that all hold."""
    if not jax.numpy.issubdtype(x.dtype, jax.numpy.floating):
        return x
    copies = [shard.data * jax.numpy.nan for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, copies)


def install(faults: pathlib.Path) -> None:
    parallelise, read = training.parallelise, TrainBatches.__next__

    def parallelise_faulty(*args, **kwargs):
        parallel = parallelise(*args, **kwargs)

        def train_step(state, batch):
            if happens(faults, "nan"):
                state = state.replace(params=jax.tree.map(spoil, state.params))
            return parallel.train_step(state, batch)

        train_step.lower = parallel.train_step.lower
        return dataclasses.replace(parallel, train_step=train_step)

    def read_faulty(batches):
        while happens(faults, "stuck") or getattr(batches, "is_stuck", False):
            batches.is_stuck = True
            time.sleep(0.1)
        return read(batches)

    training.parallelise, TrainBatches.__next__ = parallelise_faulty, read_faulty


if __name__ == "__main__":
    experiment, folder, *flags = sys.argv[1:]
    install(pathlib.Path(folder))
    sys.exit(importlib.import_module(experiment).main(flags))
