"""One process of a job: `python run_job.py WHAT WORKDIR STEPS COORDINATOR PROCESSES NUMBER`; see `main`."""

import ctypes
import json
import os
import pathlib
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hardmine_jax.mining import global_top_k, top_k

# pytest, which looks into every file for doctests, would not find it there by itself.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "training"))
import run_tiny as tiny  # noqa: E402

from hardmine_jax.job import distributed, exchange, lookout
from hardmine_jax.training import Checkpoints, fit, make_schedule, parallelise

PATIENCE = 12.0


class SharedBatches(tiny.CountingBatches):
    """Of each of the tiny run's batches this process's rows; at batch `at` process 1 calls `happen()`."""

    def __init__(self, at=None, happen=None):
        super().__init__()
        self.at, self.happen = at, happen

    def __next__(self):
        if self.index == self.at and jax.process_index() == 1:
            self.happen()
        rows = tiny.BATCH // jax.process_count()
        first = rows * jax.process_index()
        return {name: value[first : first + rows] for name, value in super().__next__().items()}


def losses(kind):
    parallel, values, batches = parallelise(tiny.make_step, kind=kind), [], SharedBatches()
    state = parallel.put_state(tiny.state(20))
    for _ in range(20):
        state, metrics = parallel.train_step(state, parallel.put_batch(next(batches)))
        values.append(float(parallel.get(metrics)["loss"]))

    def rows(state, batch):
        return {"mean": batch["images"].mean((1, 2, 3)), "step": jnp.full(len(batch["images"]), state.step)}

    outputs = parallel.evaluate_step(rows)(state, {"images": next(batches)["images"]})
    return {"kind": parallel.kind, "losses": values, **{name: x.tolist() for name, x in outputs.items()}}


def mined():
    """How often `global_top_k` over all processes chose otherwise than `top_k` of one."""
    mesh, wrong = Mesh(np.array(jax.devices()), ("data",)), 0
    spec = PartitionSpec("data")
    for k in (1, 5, 40):
        select = jax.jit(
            jax.shard_map(
                lambda x, where, k=k: global_top_k(x, k=k, axis_name="data", where=where),
                mesh=mesh, in_specs=(spec, spec), out_specs=spec,
            ),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )  # fmt: skip
        for seed in range(5):
            rng = np.random.default_rng(seed)
            whole = rng.integers(0, 5, 48).astype(np.float32), rng.random(48) < 0.7
            own = (x.reshape(jax.process_count(), -1)[jax.process_index()] for x in whole)
            placed = (jax.make_array_from_process_local_data(NamedSharding(mesh, spec), x) for x in own)
            keep = np.asarray(select(*placed).addressable_data(0))
            wrong += int((keep != np.asarray(top_k(whole[0], k=k, where=whole[1]))).sum())
    return wrong


def exchanged():
    number = jax.process_index()
    zeros = {"a": np.float32([-0.0, 1.5, np.nan]), "b": np.bool_([True, False]), "c": np.zeros((2, 0), int)}
    given = zeros if exchange.is_main() else {name: np.zeros_like(x) for name, x in zeros.items()}
    received = exchange.broadcast_arrays(given)
    same = [received[name].tobytes() == zeros[name].tobytes() for name in zeros]
    try:
        exchange.check_same({"equal": 1, "--steps": number})
    except ValueError as error:
        said = str(error)
    with exchange.first_of_host():
        pass
    return {
        "gathered": exchange.gather({"number": number, "bytes": bytes([number])}["number"], "test"),
        "main": exchange.from_main(lambda: number, "test"),
        "bits": same,
        "differs": said,
        "rows": exchange.all_rows({"x": np.full(2, number)})["x"].tolist(),
    }


def train(workdir, steps, **happening):
    checkpoints, start = Checkpoints(workdir), tiny.state(steps)
    parallel, batches = parallelise(tiny.make_step), SharedBatches(**happening)
    restored = checkpoints.restore_latest(start)
    if restored is not None:
        start = restored.state
        batches.set_state(restored.iterator_state)
    result = fit(
        start, parallel=parallel, batches=batches, batch_size=tiny.BATCH, steps=steps, workdir=workdir,
        checkpoints=checkpoints, learning_rate=make_schedule(tiny.CONFIG, steps=steps), log_every=2,
        checkpoint_every=3,
    )  # fmt: skip
    print(f"process {jax.process_index()} at {checkpoints.steps()}, best {checkpoints.best_step()}")
    checkpoints.close()
    # What only process 0 prints is no proof of what the others did.
    pathlib.Path(workdir, f"{jax.process_index()}.json").write_text(json.dumps([result.step, result.stopped]))


def fail():
    raise ValueError("images/7.jpg is no image")


def stuck():
    while True:
        time.sleep(0.1)


def deadlock():
    # Process 0 is in its step, which needs this one, and this one waits for process 0.
    lookout.ALL_WAIT_SLACK = 1.0
    exchange.barrier("nobody else comes")


def frozen():
    # By this way of calling C no other thread of Python runs meanwhile.
    ctypes.PyDLL(None).sleep(1000)


def main(what, workdir, steps):
    """check: all that is told and computed; train: to the end; else what happens to process 1 at batch 6."""
    if what == "check":
        kinds = [losses(kind) for kind in ("jit", "pmap", "auto")]
        found = {"kinds": kinds, "mined": mined(), "exchanged": exchanged()}
        if exchange.is_main():
            pathlib.Path(workdir, "check.json").write_text(json.dumps(found))
    elif what == "train":
        train(workdir, steps)
    else:
        happen = {
            "stop": lambda: os.kill(os.getpid(), signal.SIGTERM),
            "fail": fail,
            "crash": lambda: [][0],
            "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "hang": lambda: os.kill(os.getpid(), signal.SIGSTOP),
            "stuck": stuck,
            "deadlock": deadlock,
            "frozen": frozen,
            # Longer than a tick and shorter than the patience.
            "slow": lambda: time.sleep(8),
        }[what]
        train(workdir, steps, at=6, happen=happen)


def explain(error):
    return str(error) if isinstance(error, ValueError) else None


if __name__ == "__main__":
    what, workdir, steps, coordinator, processes, number = sys.argv[1:]
    # What JAX's own heartbeat finds, it finds before the default patience is over.
    patience = distributed.PATIENCE_SECONDS if what in ("kill", "hang") else PATIENCE
    with distributed.joined(coordinator, int(processes), int(number), patience=patience, explain=explain):
        main(what, workdir, int(steps))
