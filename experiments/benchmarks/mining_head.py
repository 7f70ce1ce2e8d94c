"""Two-pass mining against what one would otherwise write: time, memory and work of a loss and its gradient.

The units are regions, the loss the cross-entropy of a head of three layers (Fast R-CNN's, narrowed), the
gradient that to its parameters and to the features.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import rich.table
from timing import Way, cost, host, milliseconds, torch_device, torch_way

from hardmine_jax.mining.masked_mean import masked_mean
from hardmine_jax.mining.mine import mine
from hardmine_jax.mining.top_k import top_k

MASKED = "masked path"


@dataclasses.dataclass(frozen=True)
class Head:
    """What is measured of `mine`, and for how long.

    Attributes:
      num_units: regions, N.
      k: how many of them are hard; a table for each.
      sizes: widths of the head, features first, classes last.
      chunk: units at a time, in the row with chunks.
      rounds: how often each way has its turn.
    """

    num_units: int = 2000
    k: tuple[int, ...] = (64, 500)
    sizes: tuple[int, ...] = (6272, 1024, 1024, 21)
    chunk: int = 256
    rounds: int = 9


def make_problem(config: Head) -> tuple[list, np.ndarray, np.ndarray]:
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


def functions(config: Head, k: int) -> dict[str, Callable]:
    """Masked, and `mine` with each of its options; of parameters, features and labels."""

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

    return {
        MASKED: jax.value_and_grad(masked, argnums=(0, 1)),
        "mine": with_options()[1],
        "mine, gradient to features as rows": rows(),
        f"mine, chunk={config.chunk}": with_options(chunk=config.chunk)[1],
        "mine, score_dtype=bfloat16": with_options(score_dtype=jnp.bfloat16)[1],
        "mine, score_dtype=bfloat16, rows": rows(score_dtype=jnp.bfloat16),
        "mine, reuse=True": with_options(reuse=True)[1],
    }


def jax_ways(config: Head, k: int, problem) -> dict[str, Way]:
    """Those of `functions`."""
    operands = jax.device_put(problem)
    ways = functions(config, k).items()
    return {name: _jax_way(function, operands, "chunk" in name) for name, function in ways}


def _jax_way(function, operands, has_loop: bool) -> Way:
    program = jax.jit(function).lower(*operands).compile()
    return Way(lambda: float(jax.block_until_ready(program(*operands))[0]), program, has_loop)


def torch_ways(k: int, problem) -> dict[str, Way]:
    """The same two ways written in PyTorch."""
    import torch

    params, features, labels = problem

    def leaf(array):
        return torch.tensor(array, device=torch_device(), requires_grad=True)

    params, features = [tuple(map(leaf, layer)) for layer in params], leaf(features)
    labels = torch.tensor(labels, device=torch_device()).long()
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

    return {"PyTorch, masked path": torch_way(masked), "PyTorch, two-pass": torch_way(two_pass)}


def table(config: Head, k: int, ways: dict[str, Way], times: dict[str, float]) -> rich.table.Table:
    """A row for each way; ratios are against the masked path in JAX, more is better."""
    title = f"{config.num_units} units, k={k}, head {'-'.join(map(str, config.sizes))}, loss + gradient"
    made = rich.table.Table(
        "", "ms", "faster", "GFLOP", "fewer", "temporary MB", "smaller", title=title, caption=host()
    )
    reference = _gigaflop_and_megabytes(ways[MASKED])
    for name, way in ways.items():
        cells = [f"{times[name]:,.1f}", f"{times[MASKED] / times[name]:.2f}"]
        for value, against in zip(_gigaflop_and_megabytes(way), reference, strict=True):
            cells += ["", ""] if value is None else [f"{value:,.1f}", f"{against / value:.2f}"]
        made.add_row(name, *cells)
    return made


def _gigaflop_and_megabytes(way: Way) -> tuple[float | None, float | None]:
    flops, memory = cost(way)
    return flops and flops / 1e9, memory and memory / 1e6


def tables(config: Head) -> Iterator[rich.table.Table]:
    """Yields a table for each k."""
    problem = make_problem(config)
    for k in config.k:
        ways = checked_ways(config, k, problem)
        yield table(config, k, ways, milliseconds(ways, config.rounds))


def checked_ways(config: Head, k: int, problem) -> dict[str, Way]:
    """All ways, PyTorch's too where it is installed.

    Raises:
      ValueError: they disagree.
    """
    ways = jax_ways(config, k, problem)
    if importlib.util.find_spec("torch"):
        ways |= torch_ways(k, problem)
    values = {name: way.run() for name, way in ways.items()}
    if not np.allclose(list(values.values()), values[MASKED], rtol=0.02):
        raise ValueError(f"the ways disagree, so their times mean nothing: {values}")
    return ways
