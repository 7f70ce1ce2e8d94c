"""Two-pass mining against what one would otherwise write: time, memory and work of a loss and its gradient.

    python experiments/benchmarks/mining.py
    python experiments/benchmarks/mining.py --num-units 2000 --k 64 500 --rounds 9

About two minutes on 2 CPU cores. The units are regions, the loss the cross-entropy of a head of three layers
(Fast R-CNN's, narrowed), the gradient that to its parameters and to the features. All ways take turns, so
that a machine that slows down slows them all; times are medians over rounds, temporary memory and
floating-point operations the compiler's own account. PyTorch takes part where it is installed.
"""

import dataclasses
import importlib.util
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import rich
import rich.table
import tyro

from hardmine_jax.mining.masked_mean import masked_mean
from hardmine_jax.mining.mine import mine
from hardmine_jax.mining.top_k import top_k

MASKED = "masked path"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and for how long.

    Attributes:
      num_units: regions, N.
      k: how many of them are hard; a table for each.
      sizes: widths of the head, features first, classes last.
      chunk: units at a time, in the row with chunks.
      rounds: how often each way has its turn, after one that does not count.
    """

    num_units: int = 2000
    k: tuple[int, ...] = (64, 500)
    sizes: tuple[int, ...] = (6272, 1024, 1024, 21)
    chunk: int = 256
    rounds: int = 9


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to the same loss and gradient.

    Attributes:
      run: does it once and returns the loss.
      program: what was compiled; None where it is not JAX.
      has_loop: the compiler counts the work of a loop's body once, so its count is left out.
    """

    run: Callable[[], float]
    program: jax.stages.Compiled | None = None
    has_loop: bool = False


def make_problem(config: Config) -> tuple[list, np.ndarray, np.ndarray]:
    """Parameters, features and labels in numpy."""
    rng = np.random.default_rng(0)
    pairs = list(zip(config.sizes[:-1], config.sizes[1:], strict=True))
    params = [
        (
            rng.normal(size=pair).astype(np.float32) / np.float32(np.sqrt(pair[0])),
            np.zeros(pair[1], np.float32),
        )
        for pair in pairs
    ]
    features = rng.normal(size=(config.num_units, config.sizes[0])).astype(np.float32)
    return params, features, rng.integers(0, config.sizes[-1], config.num_units).astype(np.int32)


def head_losses(params, features, labels):
    """[N], cross-entropy."""
    x = features
    for weight, bias in params[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    logits = jax.nn.log_softmax(x @ params[-1][0] + params[-1][1])
    return -jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


def jax_ways(config: Config, k: int, problem) -> dict[str, Way]:
    """Masked, and `mine` with each of its options."""

    def select(losses, *_):
        return top_k(losses, k=k)

    def masked(params, features, labels):
        losses = head_losses(params, features, labels)
        return masked_mean(losses, where=select(losses))

    def with_options(**options):
        hard = mine(head_losses, select, capacity=k, in_axes=(None, 0, 0), **options)

        def loss(params, features, labels):
            mined = hard(params, features, labels)
            return masked_mean(mined.losses, where=mined.keep)

        return hard, jax.value_and_grad(loss, argnums=(0, 1))

    def rows(**options):
        hard, _ = with_options(**options)

        def run(params, features, labels):
            mined = hard(params, features, labels)
            rows, theirs = features[mined.indices], labels[mined.indices]

            def loss(params, rows):
                return masked_mean(head_losses(params, rows, theirs), where=mined.keep)

            return (*jax.value_and_grad(loss, argnums=(0, 1))(params, rows), mined.indices)

        return run

    functions = {
        MASKED: jax.value_and_grad(masked, argnums=(0, 1)),
        "mine": with_options()[1],
        "mine, gradient to features as rows": rows(),
        f"mine, chunk={config.chunk}": with_options(chunk=config.chunk)[1],
        "mine, score_dtype=bfloat16": with_options(score_dtype=jnp.bfloat16)[1],
        "mine, score_dtype=bfloat16, rows": rows(score_dtype=jnp.bfloat16),
        "mine, reuse=True": with_options(reuse=True)[1],
    }
    operands = jax.device_put(problem)
    return {name: _jax_way(function, operands, "chunk" in name) for name, function in functions.items()}


def _jax_way(function, operands, has_loop: bool) -> Way:
    program = jax.jit(function).lower(*operands).compile()
    return Way(lambda: float(jax.block_until_ready(program(*operands))[0]), program, has_loop)


def torch_ways(k: int, problem) -> dict[str, Way]:
    """The same two ways written in PyTorch."""
    import torch

    params, features, labels = problem
    params = [tuple(torch.tensor(array, requires_grad=True) for array in layer) for layer in params]
    features, labels = torch.tensor(features, requires_grad=True), torch.tensor(labels).long()
    leaves = [features, *(array for layer in params for array in layer)]

    def losses_of(x, y):
        for weight, bias in params[:-1]:
            x = torch.relu(torch.addmm(bias, x, weight))
        logits = torch.addmm(params[-1][1], x, params[-1][0])
        return torch.nn.functional.cross_entropy(logits, y, reduction="none")

    def backward(loss) -> float:
        for leaf in leaves:
            leaf.grad = None
        loss.backward()
        return float(loss.detach())

    def masked() -> float:
        losses = losses_of(features, labels)
        keep = torch.zeros_like(losses)
        keep[losses.detach().topk(k).indices] = 1.0
        return backward((losses * keep).sum() / k)

    def two_pass() -> float:
        with torch.no_grad():
            indices = losses_of(features, labels).topk(k).indices
        return backward(losses_of(features[indices], labels[indices]).mean())

    return {"PyTorch, masked path": Way(masked), "PyTorch, two-pass": Way(two_pass)}


def milliseconds(ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Median of each over rounds in which all take their turn."""
    times = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way.run()
            if number:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def table(config: Config, k: int, ways: dict[str, Way], times: dict[str, float]) -> rich.table.Table:
    """A row for each way; ratios are against the masked path in JAX, more is better."""
    title = f"{config.num_units} units, k={k}, head {'-'.join(map(str, config.sizes))}, loss + gradient"
    made = rich.table.Table(
        "", "ms", "faster", "GFLOP", "fewer", "temporary MB", "smaller", title=title, caption=host()
    )
    reference = _cost(ways[MASKED])
    for name, way in ways.items():
        cells = [f"{times[name]:,.1f}", f"{times[MASKED] / times[name]:.2f}"]
        for cost, against in zip(_cost(way), reference, strict=True):
            cells += ["", ""] if cost is None else [f"{cost:,.1f}", f"{against / cost:.2f}"]
        made.add_row(name, *cells)
    return made


def _cost(way: Way) -> tuple[float | None, float | None]:
    """GFLOP and temporary megabytes."""
    if way.program is None:
        return None, None
    flops = None if way.has_loop else way.program.cost_analysis()["flops"] / 1e9
    return flops, way.program.memory_analysis().temp_size_in_bytes / 1e6


def host() -> str:
    """Processor, cores, devices and versions in one line."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")] or [platform.processor()]
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    return f"{names[0]}, {os.cpu_count()} cores, {devices}, jax {jax.__version__}"


def main(config: Config) -> None:
    """Prints a table for each k."""
    problem = make_problem(config)
    for k in config.k:
        ways = jax_ways(config, k, problem)
        if importlib.util.find_spec("torch"):
            ways |= torch_ways(k, problem)
        values = {name: way.run() for name, way in ways.items()}
        if not np.allclose(list(values.values()), values[MASKED], rtol=0.02):
            raise ValueError(f"the ways disagree, so their times mean nothing: {values}")
        rich.print(table(config, k, ways, milliseconds(ways, config.rounds)))


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
