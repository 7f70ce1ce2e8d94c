"""Which integers of a program may be positions along the axis of units.

`logits[jnp.arange(N), labels]` leaves rows 0 ... N-1 for its gradient. Gathered for k units they would still
count to N, and point past the k rows there are.
"""

from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

from hardmine_jax.mining.jaxprs import CALLS, called


def may_hold_positions(jaxpr: Any, num_units: int) -> list[bool]:
    """For each output of a jaxpr (not closed) whether it is an integer array that may hold positions.

    They come from `iota`, from arrays worked out before (`np.arange`) and from within loops and branches, and
    are recognised by an axis of size `num_units`. One may be taken for such that is none.
    """
    held = _held(jaxpr, [False] * len(jaxpr.invars), num_units)
    return [
        found and jnp.issubdtype(atom.aval.dtype, jnp.integer)
        for found, atom in zip(held, jaxpr.outvars, strict=True)
    ]


def _held(jaxpr: Any, inputs: list[bool], num_units: int) -> list[bool]:
    def sized(variable: Any) -> bool:
        return num_units in getattr(variable.aval, "shape", ())

    def known(atom: Any) -> bool:
        # A literal is a scalar.
        return not isinstance(atom, jax.extend.core.Literal) and held[atom]

    held = dict(zip(jaxpr.invars, inputs, strict=True)) | {const: sized(const) for const in jaxpr.constvars}
    for equation in jaxpr.eqns:
        arriving = [known(atom) for atom in equation.invars]
        if equation.primitive.name in CALLS:
            leaving = _held(called(equation.params)[0], arriving, num_units)
        elif equation.primitive.name == "iota" or _holds_program(equation.params):
            leaving = [any(arriving) or sized(variable) for variable in equation.outvars]
        else:
            leaving = [any(arriving)] * len(equation.outvars)
        held.update(zip(equation.outvars, leaving, strict=True))
    return [known(atom) for atom in jaxpr.outvars]


def _holds_program(params: dict[str, Any]) -> bool:
    """Whether a primitive has a jaxpr of its own, as loops and branches do, in which anything may be made."""
    parts = [part for value in params.values() for part in (value if isinstance(value, tuple) else (value,))]
    return any(hasattr(part, "eqns") for part in parts)
