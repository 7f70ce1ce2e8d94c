"""What a network costs before anything runs: parameters, multiply-adds, memory of a training step.

Networks are flax modules called as `model.apply(variables, images [B, H, W, 3], train=...)`. Costs are read
from shapes, or from the compiled program; sizes are (height, width).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.models.layers import Conv, DoubleConvTranspose
from hardmine_jax.training.flops import multiply_adds


def parameters(model: nn.Module, size: tuple[int, int]) -> int:
    """Numbers that training changes."""
    return sum(leaf.size for leaf in jax.tree.leaves(_variables(model, size)["params"]))


def forward_multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of convolutions and matrix products for one image of `size` (height, width)."""
    return multiply_adds(lambda v, images: model.apply(v, images), _variables(model, size), _images(1, size))


def published_multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds for one image, counted as HRNet's code and so most pose papers count them.

    The sum over convolutions and linear layers of (weights x output places); the papers' "GFLOPs" are this
    over 2**30. A transposed convolution with stride 2 does a quarter of what it is counted as.
    """
    layers, counts = (Conv, DoubleConvTranspose, nn.Dense), []

    def count(call, args, kwargs, context):
        outputs = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, layers):
            weights = context.module.variables["params"]["kernel"].size
            counts.append(weights * outputs.size // outputs.shape[-1])
        return outputs

    def run(variables, images):
        with nn.intercept_methods(count):
            return model.apply(variables, images)

    jax.eval_shape(run, _variables(model, size), _images(1, size))
    return sum(counts)


def training_pass(model: nn.Module) -> Callable:
    """`(params, others, images) -> ((loss, others), gradients)`, a training step less the optimizer.

    The loss is the sum of squares of all that the network returns; `others` are the batch statistics.
    """

    def loss(params, others, images):
        variables, rngs = {"params": params, **others}, {"dropout": jax.random.key(0)}
        outputs, others = model.apply(variables, images, train=True, mutable=list(others), rngs=rngs)
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(outputs)), others

    return jax.value_and_grad(loss, has_aux=True)


def training_memory(model: nn.Module, size: tuple[int, int], *, batch: int) -> int:
    """Bytes that `training_pass` needs on the default device, parameters and gradients included.

    By the compiler's own account; compiling takes a minute and more.
    """
    others = dict(_variables(model, size))
    params = others.pop("params")
    program = jax.jit(training_pass(model)).lower(params, others, _images(batch, size)).compile()
    memory = program.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def random_variables(model: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    """Numbers to time a network with, faster than compiling its `init`."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        if leaf.ndim < 2:
            return jnp.ones(leaf.shape, leaf.dtype)
        deviation = np.sqrt(2 * leaf.shape[-1] / leaf.size)
        return jnp.asarray(rng.normal(0.0, deviation, leaf.shape), leaf.dtype)

    return jax.tree.map(fill, _variables(model, size))


def _images(batch: int, size: tuple[int, int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)


@functools.cache
def _variables(model: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    return jax.eval_shape(model.init, jax.random.key(0), _images(1, size))
