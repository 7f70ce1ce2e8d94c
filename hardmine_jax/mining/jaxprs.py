"""What is the same in every reading of a jaxpr."""

from collections.abc import Iterator
from typing import Any

import jax

# Primitives that only call what they hold.
CALLS = ("checkpoint", "closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "remat2")


def called(params: dict[str, Any]) -> tuple[Any, list[jax.Array]]:
    """The jaxpr that one of `CALLS` holds, and its constants."""
    inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
    # Of `checkpoint` it comes without constants.
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", [])


def inner(params: dict[str, Any]) -> list[Any]:
    """The jaxprs that an equation holds, whatever it does with them."""
    parts = [part for value in params.values() for part in (value if isinstance(value, tuple) else (value,))]
    return [getattr(part, "jaxpr", part) for part in parts if hasattr(part, "eqns")]


def primitive_names(jaxpr: Any) -> Iterator[str]:
    """Of all equations, those within others too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for held in inner(equation.params):
            yield from primitive_names(held)
