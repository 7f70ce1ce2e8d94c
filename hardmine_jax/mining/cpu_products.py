"""Matrix products as XLA's CPU compiler has fast kernels for them, in a pass without gradient.

Of 16-bit floats: accumulated in float32 and rounded after. It has kernels for bfloat16 x bfloat16 -> float32
and none for -> bfloat16, which it computes from operands cast to float32: slower than float32 from the start.

Of float32: each by itself. It makes one kernel of a chain of products and what lies between them, which
takes a tenth longer than its kernels for one product.

Accelerators need neither.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

from hardmine_jax.mining.jaxprs import CALLS, called


def cpu_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` (pytrees of arrays to another) with such products on CPU; on all else as it is.

    Loops and branches are left as they are. Not for differentiation: custom rules inside are lost.
    """

    def with_products(*args: Any) -> Any:
        closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out), leaves)

    return lambda *args: jax.lax.platform_dependent(*args, cpu=with_products, default=function)


def _evaluate(jaxpr: Any, consts: list[jax.Array], args: list[jax.Array]) -> list[jax.Array]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for equation in jaxpr.eqns:
        inputs = [_read(values, atom) for atom in equation.invars]
        values.update(zip(equation.outvars, _outputs(equation, inputs), strict=True))
    return [_read(values, atom) for atom in jaxpr.outvars]


def _read(values: dict[Any, jax.Array], atom: Any) -> jax.Array:
    return atom.val if isinstance(atom, jax.extend.core.Literal) else values[atom]


def _outputs(equation: Any, inputs: list[jax.Array]) -> list[jax.Array]:
    primitive, params = equation.primitive, equation.params
    if primitive.name in CALLS:
        return _evaluate(*called(params), inputs)
    if primitive.name == "dot_general":
        return [_product(equation, inputs)]
    outputs = primitive.bind(*inputs, **primitive.get_bind_params(params))
    return outputs if primitive.multiple_results else [outputs]


def _product(equation: Any, inputs: list[jax.Array]) -> jax.Array:
    primitive, params = equation.primitive, equation.params
    dtypes = {atom.aval.dtype for atom in (*equation.invars, *equation.outvars)}
    if dtypes in ({jnp.dtype(jnp.bfloat16)}, {jnp.dtype(jnp.float16)}):
        wide = primitive.bind(*inputs, **{**params, "preferred_element_type": jnp.dtype(jnp.float32)})
        return wide.astype(dtypes.pop())
    product = primitive.bind(*inputs, **params)
    if dtypes == {jnp.dtype(jnp.float32)}:
        # Changes no number. An optimisation barrier would be gone by the time kernels are made.
        return jax.lax.reduce_precision(product, exponent_bits=8, mantissa_bits=23)
    return product
