"""What is the same in every reading of a jaxpr."""

from typing import Any

import jax

# Primitives that only call what they hold.
CALLS = ("checkpoint", "closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "remat2")


def called(params: dict[str, Any]) -> tuple[Any, list[jax.Array]]:
    """The jaxpr that one of `CALLS` holds, and its constants."""
    inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
    # Of `checkpoint` it comes without constants.
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", [])
