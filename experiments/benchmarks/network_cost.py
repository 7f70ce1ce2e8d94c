"""What a network costs before anything runs: parameters, multiply-adds, memory of a training step.

Networks are flax modules called as `model.apply(variables, images [B, H, W, 3], train=...)`. Costs are read
from shapes, or from the compiled program; sizes are (height, width).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from hardmine_jax.models.layers import Conv, DoubleConvTranspose


def parameters(model: nn.Module, size: tuple[int, int]) -> int:
    """Numbers that training changes."""
    return sum(leaf.size for leaf in jax.tree.leaves(_variables(model, size)["params"]))


def forward_multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of convolutions and matrix products for one image of `size` (height, width)."""
    return multiply_adds(lambda v, images: model.apply(v, images), _variables(model, size), _images(1, size))


def multiply_adds(function: Callable, *operands: Any) -> int:
    """Multiply-adds of the convolutions and matrix products that `function` does on such operands.

    Read from its jaxpr; a product with padding counts. `operands` may be shapes only.

    Raises:
      ValueError: for a loop whose length is not known.

    >>> multiply_adds(lambda a, b: a @ b, jax.ShapeDtypeStruct((2, 3), "float32"), jnp.ones((3, 5)))
    30
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*operands).jaxpr)


def _of_jaxpr(jaxpr: jax.extend.core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: jax.extend.core.JaxprEqn) -> int:
    name, parameters = equation.primitive.name, equation.params
    outputs = sum(variable.aval.size for variable in equation.outvars)
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return outputs * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
        # Of an image with gaps only one in so many products is with a pixel.
        return outputs * (kernel.size // features) // math.prod(parameters["lhs_dilation"])
    inner = [_of_jaxpr(jaxpr) for jaxpr in _jaxprs(parameters)]
    if name == "while" and any(inner):
        raise ValueError("a while loop holds products, and how often it turns is not known: write a scan")
    if name == "cond":
        # What a platform does in more products than another it does for speed alone.
        return min(inner) if parameters.get("branches_platforms") else max(inner)
    return sum(inner) * parameters.get("length", 1)


def _jaxprs(parameters: dict[str, Any]) -> list[jax.extend.core.Jaxpr]:
    """Those that an equation holds: bodies of loops, branches, functions called."""
    values = [v for value in parameters.values() for v in (value if isinstance(value, tuple) else (value,))]
    jaxprs = [getattr(value, "jaxpr", value) for value in values]
    return [jaxpr for jaxpr in jaxprs if isinstance(jaxpr, jax.extend.core.Jaxpr)]


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
