"""Matrix products of 16-bit floats, accumulated in float32 and rounded after.

XLA's CPU compiler has fast kernels for bfloat16 x bfloat16 -> float32, and none for -> bfloat16, which it
computes from operands cast to float32: slower than float32 from the start. Accelerators have both.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

from hardmine_jax.mining.jaxprs import CALLS, called


def wide_products(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`function` (arrays, in any pytree -> one array) with such products; on CPU only.

    Loops and branches are left as they are. Not for differentiation: custom rules inside are lost.
    """

    def wide(*args):
        closed = jax.make_jaxpr(function)(*args)
        (out,) = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return out

    return lambda *args: jax.lax.platform_dependent(*args, cpu=wide, default=function)


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
    dtypes = {atom.aval.dtype for atom in (*equation.invars, *equation.outvars)}
    if primitive.name == "dot_general" and dtypes in ({jnp.dtype(jnp.bfloat16)}, {jnp.dtype(jnp.float16)}):
        wide = primitive.bind(*inputs, **{**params, "preferred_element_type": jnp.dtype(jnp.float32)})
        return [wide.astype(dtypes.pop())]
    outputs = primitive.bind(*inputs, **primitive.get_bind_params(params))
    return outputs if primitive.multiple_results else [outputs]
