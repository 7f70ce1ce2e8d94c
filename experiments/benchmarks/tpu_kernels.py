"""The operations that are compiled for TPU, at the sizes of README's tables, and other ways to each.

Nothing is drawn and nothing runs: operands are shapes. A way to something with a gradient is taken forward
and back to all operands, from a gradient that is an operand, too.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from hardmine_jax import detection, mining, pose

Shape = jax.ShapeDtypeStruct


class Kernel(NamedTuple):
    """A question, the ways to answer it, ours first, and the shapes of their operands."""

    question: str
    ways: dict[str, Callable]
    operands: tuple[Any, ...]


def floats(*sides: int, dtype: Any = jnp.float32) -> Shape:
    return Shape(sides, dtype)


def with_gradient(question: str, ways: dict[str, Callable], *operands: Any) -> Kernel:
    """Forward, and back to the operands."""
    result = jax.eval_shape(next(iter(ways.values())), *operands)

    def pulled(function: Callable, gradient: jax.Array, *operands: jax.Array) -> Any:
        found, pull = jax.vjp(function, *operands)
        return found, pull(gradient)

    both = {name: functools.partial(pulled, function) for name, function in ways.items()}
    return Kernel(f"{question}, with gradient", both, (result, *operands))


def scattered(losses: jax.Array, k: int) -> jax.Array:
    """`lax.top_k` as a mask."""
    indices = jax.lax.top_k(losses, k)[1]
    return jnp.put_along_axis(jnp.zeros(losses.shape, bool), indices, True, axis=-1, inplace=False)


def ranks(losses: jax.Array) -> jax.Array:
    return jnp.argsort(jnp.argsort(-losses, axis=-1), axis=-1)


def selectors() -> Iterator[Kernel]:
    """Which units count."""
    for sides, k in (
        ((128, 17), 8),
        ((16, 2000), 128),
        ((32, 8732), 300),
        ((10**6,), 1000),
        ((10**6,), 10**5),
    ):
        ways = {
            "top_k": functools.partial(mining.top_k, k=k),
            "lax.top_k as a mask": functools.partial(scattered, k=k),
        }
        yield Kernel(f"top_k of {' x '.join(map(str, sides))}, k={k}", ways, (floats(*sides),))
    yield Kernel(
        "threshold, 10^6 units, at least 10^5",
        {
            "threshold": lambda x: mining.threshold(x, min_loss=3.0, min_kept=10**5),
            "sort": lambda x: (x > 3.0) | (x >= jnp.sort(x)[-(10**5)]),
        },
        (floats(10**6),),
    )
    yield Kernel(
        "hard_negatives, 32 x 8732, 3:1",
        {
            "hard_negatives": lambda x, positive: mining.hard_negatives(x, positive=positive),
            "argsort of argsort": lambda x, positive: (
                (ranks(jnp.where(positive, -jnp.inf, x)) < 3 * positive.sum(-1, keepdims=True)) & ~positive
            ),
        },
        (floats(32, 8732), floats(32, 8732, dtype=jnp.bool_)),
    )
    yield Kernel(
        "random_k, 16 x 2000, k=128",
        {"random_k": lambda seed, x: mining.random_k(jax.random.wrap_key_data(seed), x, k=128)},
        (floats(2, dtype=jnp.uint32), floats(16, 2000)),
    )


def boxes() -> Iterator[Kernel]:
    """Regions and what is pooled in them."""
    corners, scores, features = floats(2000, 4), floats(2000), floats(38, 50, 512)
    nms = functools.partial(detection.nms, threshold=0.7, max_kept=128)
    yield Kernel("nms, 2000 boxes, first 128", {"nms": nms}, (corners, scores))
    yield Kernel(
        "nms, the same of 16 images", {"nms": jax.vmap(nms)}, (floats(16, 2000, 4), floats(16, 2000))
    )
    ohem = jax.vmap(functools.partial(detection.ohem, k=64))
    yield Kernel("ohem, 2 x 2000 boxes, k=64", {"ohem": ohem}, (floats(2, 2000), floats(2, 2000, 4)))
    yield Kernel("iou, 2000 x 2000 boxes", {"iou": detection.iou}, (corners, corners))
    yield Kernel(
        "match, 2000 boxes, 20 objects",
        {"match": detection.match},
        (corners, floats(20, 4), floats(20, dtype=jnp.int32)),
    )
    for name in ("roi_align", "roi_pool"):
        pool = functools.partial(getattr(detection, name), stride=16)
        yield Kernel(f"{name}, 2000 boxes on 38 x 50 x 512", {name: pool}, (features, corners))

        def back(gradient, features, corners, pool=pool):
            return jax.vjp(lambda features: pool(features, corners), features)[1](gradient)

        some, all_of_them = (floats(count, 7, 7, 512) for count in (128, 2000))
        yield Kernel(f"{name}, gradient of 2000", {name: back}, (all_of_them, features, corners))
        yield Kernel(f"{name}, gradient of 128", {name: back}, (some, features, floats(128, 4)))


def heatmaps() -> Iterator[Kernel]:
    """Losses over keypoints."""
    maps = floats(64, 64, 48, 17)
    yield Kernel(
        "ohkm, 64 x 64 x 48 x 17, with gradient",
        {
            "ohkm": jax.value_and_grad(lambda p, t: pose.ohkm(p, t, k=8)),
            "plain MSE (another loss)": jax.value_and_grad(lambda p, t: jnp.square(p - t).mean()),
        },
        (maps, maps),
    )
    encode = functools.partial(pose.encode_heatmaps, size=(64, 48), sigma=2.0)
    yield Kernel("encode_heatmaps, 64 x 17 of 64 x 48", {"encode_heatmaps": encode}, (floats(64, 17, 2),))
    decode = {f"by {way}": functools.partial(pose.decode_heatmaps, method=way) for way in ("dark", "quarter")}
    yield Kernel("decode_heatmaps, the same", decode, (maps,))


def kernels() -> Iterator[Kernel]:
    """All of this file."""
    yield from selectors()
    yield from boxes()
    yield from heatmaps()


def lowered(function: Callable, operands: tuple[Any, ...], *, on_cpu: bool = False) -> jax.stages.Lowered:
    """For where the operands lie; `on_cpu` with the branches for XLA:CPU all the same."""
    with _cpu_branches() if on_cpu else contextlib.nullcontext():
        return jax.jit(lambda *operands: function(*operands)).lower(*operands)


def has_cpu_branch(function: Callable, operands: tuple[Any, ...]) -> bool:
    """Whether something in it is written in another way for XLA:CPU."""
    with _cpu_branches() as taken:
        jax.eval_shape(lambda *operands: function(*operands), *operands)
    return bool(taken)


@contextlib.contextmanager
def _cpu_branches() -> Iterator[list[Callable]]:
    """Within it functions are traced with their branches for XLA:CPU; gives those that were."""
    taken: list[Callable] = []

    def choose(*operands: Any, default: Callable | None = None, **branches: Callable) -> Any:
        branch = branches.get("cpu", default)
        assert branch is not None, "neither cpu= nor default="
        if "cpu" in branches:
            taken.append(branch)
        return branch(*operands)

    # What was traced outside must not be taken inside, nor the other way round.
    jax.clear_caches()
    with mock.patch.object(jax.lax, "platform_dependent", choose):
        yield taken
    jax.clear_caches()
