"""Parameters, multiply-adds, memory and speed of the published networks.

    python experiments/benchmarks/networks.py
    python experiments/benchmarks/networks.py --networks HRNet-W32 --memory --time --batch 32 --dtype bfloat16

The first takes half a minute and runs nothing; `--memory` and `--time` compile a training pass of each
network, about a minute each on 2 CPU cores. Speeds are medians over calls, of the forward pass and of a
training pass without the optimizer, on the default device.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import network_cost
import rich
import rich.table
import timing
from network_table import NETWORKS, Network

from hardmine_jax.tasks.flags import parse_flags


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
      networks: those whose name contains one of these; all by default.
      memory: compile a training pass and say what memory it needs.
      time: compile and run, and say images per second.
      batch: images at once, of `memory` and `time`.
      dtype: type of the computation, of `memory` and `time`.
      rounds: timed calls of each.
    """

    networks: tuple[str, ...] = ()
    memory: bool = False
    time: bool = False
    batch: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 5


def main(config: Config) -> None:
    """Prints a row for each network as soon as it is known, then the table."""
    if config.batch < 1 or config.rounds < 1:
        raise ValueError(f"--batch {config.batch} and --rounds {config.rounds} must be 1 or more")
    rows = []
    for name, network in chosen(config.networks).items():
        rows.append({"network": name, **row(network, config)})
        rich.print(f"[dim]{'  '.join(f'{key} {value}' for key, value in rows[-1].items())}[/dim]")
    rich.print(table(rows, config))


def chosen(names: tuple[str, ...]) -> dict[str, Network]:
    """The networks asked for.

    Raises:
      ValueError: for a name that none contains.
    """
    for name in names:
        if not any(name in known for known in NETWORKS):
            raise ValueError(f"--networks {name}: none of {', '.join(NETWORKS)} contains it")
    return {k: v for k, v in NETWORKS.items() if not names or any(name in k for name in names)}


def row(network: Network, config: Config) -> dict[str, str]:
    """Column -> cell."""
    model, size, quoted = network
    cells = {
        "parameters": f"{network_cost.parameters(model, size):,}",
        "10^9 multiply-adds": f"{network_cost.forward_multiply_adds(model, size) / 1e9:.2f}",
        "2^30, as published": f"{network_cost.published_multiply_adds(model, size) / 2**30:.2f}",
        "quoted": "" if quoted is None else f"{quoted:.2f}",
    }
    model = model.clone(dtype=jnp.dtype(config.dtype))
    if config.memory:
        memory = network_cost.training_memory(model, size, batch=config.batch)
        cells["training memory, MB"] = f"{memory / 1e6:,.0f}"
    if config.time:
        for name, rate in images_per_second(model, size, config):
            cells[f"{name}, images/s"] = f"{rate:,.2f}"
    return cells


def images_per_second(model: nn.Module, size: tuple[int, int], config: Config) -> Iterator[tuple[str, float]]:
    """Of the forward pass in evaluation, and of a training pass."""
    others = network_cost.random_variables(model, size)
    params = others.pop("params")
    images = jax.random.normal(jax.random.key(0), (config.batch, *size, 3))
    ways = {
        "forward": jax.jit(lambda params, others, images: model.apply({"params": params, **others}, images)),
        "training": jax.jit(network_cost.training_pass(model)),
    }
    for name, way in ways.items():
        program = way.lower(params, others, images).compile()
        yield name, config.batch / seconds(program, (params, others, images), config.rounds)


def seconds(program: Callable, operands: tuple, rounds: int) -> float:
    """Median time of a call, after one that does not count."""
    times = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        jax.block_until_ready(program(*operands))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def table(rows: list[dict[str, str]], config: Config) -> rich.table.Table:
    """All rows; what was compiled is in the title."""
    title = f"batch {config.batch}, {config.dtype}" if config.memory or config.time else None
    made = rich.table.Table(title=title, caption=timing.host())
    for index, name in enumerate(rows[0]):
        made.add_column(name, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for cells in rows:
        made.add_row(*cells.values())
    return made


if __name__ == "__main__":
    try:
        main(parse_flags(Config))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
