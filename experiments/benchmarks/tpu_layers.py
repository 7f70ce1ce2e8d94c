"""Layers of the networks that are compiled for TPU, two-pass mining of a head, and mining over devices.

Layers compute in bfloat16, as the published presets do, and are taken forward and back.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import mining_head
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tpu_kernels import Kernel, Shape, floats, with_gradient

from hardmine_jax.mining import global_top_k, top_k
from hardmine_jax.models import layers, vgg
from hardmine_jax.training.sharding import AXIS

half = functools.partial(floats, dtype=jnp.bfloat16)


def convolution(images: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """XLA's own, no padding."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(images, kernel, (stride, stride), "VALID", dimension_numbers=numbers)


def dilated(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 4x4 transposed convolution of stride 2, padding 1, as XLA has it: zeros between the pixels."""
    return jax.lax.conv_general_dilated(
        images,
        kernel[::-1, ::-1],
        (1, 1),
        ((2, 2), (2, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def of_module(module: Any) -> Callable:
    """A layer with one kernel, as a function of images and kernel."""
    return lambda images, kernel: module.apply({"params": {"kernel": kernel}}, images)


def yardsticks() -> Iterator[Kernel]:
    """What a chip's peak and its memory's rate say of: how far the compiler's estimates are from these."""
    square, long = half(8192, 8192), floats(8192, 8192)
    yield Kernel("product of 8192 x 8192, bfloat16", {"a @ b": jnp.matmul}, (square, square))
    yield Kernel("sum of 8192 x 8192, float32", {"a + b": jnp.add}, (long, long))


def networks() -> Iterator[Kernel]:
    """Layers, and how one would otherwise write them."""
    for side, inputs in (((32, 24), 256), ((8, 6), 2048)):
        ours = of_module(layers.DoubleConvTranspose(256, dtype=jnp.bfloat16))
        yield with_gradient(
            f"transposed convolution, 32 x {side[0]} x {side[1]} x {inputs} to 256",
            {"DoubleConvTranspose": ours, "dilated convolution": dilated},
            half(32, *side, inputs),
            half(4, 4, inputs, 256),
        )
    for inputs, outputs, stride in ((64, 256, 1), (256, 512, 2), (32, 17, 1)):
        ours = of_module(layers.Conv(outputs, 1, stride, dtype=jnp.bfloat16))
        yield with_gradient(
            f"1x1 convolution, 32 x 64 x 48 x {inputs} to {outputs}, stride {stride}",
            {"Conv, a product": ours, "convolution": functools.partial(convolution, stride=stride)},
            half(32, 64, 48, inputs),
            half(1, 1, inputs, outputs),
        )
    flax_pool = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
    ways = {"max_pool": vgg.max_pool, "nn.max_pool": flax_pool}
    yield with_gradient("2x2 max pool, float32 2 x 512 x 512 x 64", ways, floats(2, 512, 512, 64))
    for name in ("nearest", "bilinear"):
        up = functools.partial(getattr(layers, f"upsample_{name}"), factor=2)
        yield with_gradient(f"upsampling, {name}, 32 x 32 x 24 x 64", {name: up}, half(32, 32, 24, 64))


def heads() -> Iterator[Kernel]:
    """Two-pass mining of Fast R-CNN's head, narrowed, as in mining_head."""
    config = mining_head.Head()
    params, features, labels = jax.eval_shape(lambda: mining_head.make_problem(config))
    for k in config.k:
        ways = mining_head.functions(config, k)
        title = f"head {'-'.join(map(str, config.sizes))} of {config.num_units} regions, k={k}, with gradient"
        yield Kernel(title, ways, (params, features, labels))


def over_devices(devices: Sequence[jax.Device]) -> Iterator[Kernel]:
    """The hardest of all devices: ours communicates O(k)."""
    mesh = Mesh(np.array(devices), (AXIS,))
    split = NamedSharding(mesh, PartitionSpec(AXIS))

    def ours(losses: jax.Array) -> jax.Array:
        choose = functools.partial(global_top_k, k=1000, axis_name=AXIS)
        return jax.shard_map(choose, mesh=mesh, in_specs=split.spec, out_specs=split.spec)(losses)

    def gathered(losses: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(top_k(losses, k=1000), split)

    operand = Shape((10**5 * len(devices),), jnp.float32, sharding=split)
    ways = {"global_top_k": ours, "top_k of an array over all": gathered}
    yield Kernel(f"the 1000 hardest on {len(devices)} devices of 10^5 units", ways, (operand,))


def kernels(devices: Sequence[jax.Device]) -> Iterator[Kernel]:
    """All of this file."""
    yield from yardsticks()
    yield from networks()
    yield from heads()
    yield from over_devices(devices)
