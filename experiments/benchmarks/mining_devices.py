"""`global_top_k` over a mesh axis against gathering all losses: bytes in collectives, time and memory.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python experiments/benchmarks/mining_devices.py

`mining.py` starts it so. Simulated devices share the processor: their bytes mean something, their times
little.
"""

import dataclasses

import jax
import numpy as np
import rich
import rich.table
from collectives import collective_bytes
from jax.sharding import Mesh, PartitionSpec
from timing import Question, check, cost, host, jax_way, milliseconds

from hardmine_jax.mining import global_top_k, top_k
from hardmine_jax.tasks.flags import parse_flags


@dataclasses.dataclass(frozen=True)
class Devices:
    """What is measured over all devices there are.

    Attributes:
      num_units: on each device.
      k: over all of them.
      rounds: how often each way has its turn.
    """

    num_units: int = 100_000
    k: int = 1000
    rounds: int = 9


def question(config: Devices) -> Question:
    """Each device's share of the k hardest."""
    num_devices = jax.device_count()
    losses = np.random.default_rng(0).permutation(num_devices * config.num_units).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()), ("data",))

    def gather_all(losses):
        everything = jax.lax.all_gather(losses, "data", tiled=True)
        mine = jax.lax.axis_index("data") * len(losses)
        return jax.lax.dynamic_slice_in_dim(top_k(everything, k=config.k), mine, len(losses))

    def gather_sorted(losses):
        return losses >= jax.lax.top_k(jax.lax.all_gather(losses, "data", tiled=True), config.k)[0][-1]

    def over_devices(share):
        spec = PartitionSpec("data")
        return jax_way(jax.shard_map(share, mesh=mesh, in_specs=spec, out_specs=spec), losses)

    ways = {
        "global_top_k": over_devices(lambda losses: global_top_k(losses, k=config.k, axis_name="data")),
        "all_gather, top_k": over_devices(gather_all),
        "all_gather, lax.top_k, >= k-th": over_devices(gather_sorted),
    }
    title = f"global_top_k, {num_devices} devices of {config.num_units:,} units, k={config.k:,}"
    return Question(title, ways)


def table(config: Devices) -> rich.table.Table:
    """A row for each way, with what its collectives move."""
    asked = question(config)
    check(asked)
    times = milliseconds(asked.ways, config.rounds)
    limit = 8 * config.k * jax.device_count()
    made = rich.table.Table(
        "",
        "ms",
        "bytes moved",
        f"of 8 x k x devices = {limit:,}",
        "temporary MB",
        title=asked.title,
        caption=host(),
    )
    for name, way in asked.ways.items():
        _, moved = collective_bytes(way.program.as_text())
        made.add_row(
            name, f"{times[name]:,.2f}", f"{moved:,}", f"{moved / limit:.2f}", f"{cost(way)[1] / 1e6:,.3f}"
        )
    return made


if __name__ == "__main__":
    rich.print(table(parse_flags(Devices)))
