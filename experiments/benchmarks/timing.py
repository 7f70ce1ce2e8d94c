"""What the benchmarks share: ways to one answer that take turns, and what their compiled programs need.

A way is timed from the call to the finished answer. All ways to an answer take turns, so that a machine that
slows down slows them all; times are medians over rounds.
"""

import dataclasses
import importlib.util
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import rich.table


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to an answer.

    Attributes:
      run: does it once and returns when it is done.
      program: what was compiled; None where it is not JAX.
      has_loop: the compiler counts the work of a loop's body once, so its count is left out.
      answer: what ways have in common, from what `run` returns; not timed.
    """

    run: Callable[[], Any]
    program: jax.stages.Compiled | None = None
    has_loop: bool = False
    answer: Callable[[Any], np.ndarray] = np.asarray


@dataclasses.dataclass(frozen=True)
class Question:
    """Several ways to the same answer. The first is ours."""

    title: str
    ways: dict[str, Way]


def jax_way(function: Callable, *operands, has_loop: bool = False, answer: Callable = np.asarray) -> Way:
    """A function of arrays, compiled."""
    operands = jax.device_put(operands)
    program = jax.jit(function).lower(*operands).compile()
    return Way(lambda: jax.block_until_ready(program(*operands)), program, has_loop, answer)


def torch_device() -> str:
    """Where PyTorch's ways run: on the card where JAX's do, else on the processor."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def torch_way(function: Callable[[], Any], answer: Callable = np.asarray) -> Way:
    """A function that returns PyTorch's tensors, timed until they are there; to `answer` they are numpy's."""
    import torch

    wait = torch.cuda.synchronize if torch_device() == "cuda" else lambda: None

    def run():
        found = function()
        wait()
        return found

    def fetched(leaf):
        return leaf.detach().cpu().numpy() if isinstance(leaf, torch.Tensor) else leaf

    return Way(run, answer=lambda found: answer(jax.tree.map(fetched, found)))


def full_precision(precision: Literal["highest"] | None = "highest") -> None:
    """Products of float32 in float32 on a GPU or TPU too, where they are shortened by default; None: that."""
    if jax.default_backend() == "cpu":
        return
    jax.config.update("jax_default_matmul_precision", precision)
    if importlib.util.find_spec("torch"):
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision is None


def check(question: Question, *, rtol: float = 1e-4) -> None:
    """Refuses to time ways that disagree: floats by more than `rtol`, everything else at all."""
    answers = {name: way.answer(way.run()) for name, way in question.ways.items()}
    ours = next(iter(answers.values()))
    for name, answer in answers.items():
        floats = np.issubdtype(answer.dtype, np.floating)
        if not (np.allclose(answer, ours, rtol=rtol) if floats else np.array_equal(answer, ours)):
            found = f" ({answer} against {ours})" if answer.size < 4 else ""
            raise ValueError(f"{question.title}: {name} disagrees{found}, so its time means nothing")


def milliseconds(ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Median of each over rounds in which all take their turn: once untimed, once timed."""
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            # What ran before leaves other data in the caches, and PyTorch's threads turning for a while.
            way.run()
            start = time.perf_counter()
            way.run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def table(question: Question, times: dict[str, float]) -> rich.table.Table:
    """A row for each way; `times ours` above 1 is slower than ours."""
    made = rich.table.Table(
        "", "ms", "times ours", "MFLOP", "temporary MB", title=question.title, caption=host()
    )
    ours = next(iter(times.values()))
    for name, way in question.ways.items():
        flops, memory = cost(way)
        cells = ["" if value is None else f"{value / 1e6:,.3f}" for value in (flops, memory)]
        made.add_row(name, f"{times[name]:,.3f}", f"{times[name] / ours:.2f}", *cells)
    return made


def cost(way: Way) -> tuple[float | None, float | None]:
    """Floating-point operations and temporary bytes, by the compiler's own account."""
    if way.program is None:
        return None, None
    # Negative where it is unknown.
    flops = way.program.cost_analysis()["flops"]
    return None if way.has_loop or flops < 0 else flops, way.program.memory_analysis().temp_size_in_bytes


def host() -> str:
    """Processor, cores, devices, versions and a precision that is not the default, in one line."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")] or [platform.processor()]
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    precision = jax.config.jax_default_matmul_precision
    products = f", products of float32: {precision} precision" if precision else ""
    return f"{names[0]}, {os.cpu_count()} cores, {devices}, jax {jax.__version__}{products}"
