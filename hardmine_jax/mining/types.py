"""The contract of a selector, and the static checks that every selector makes first.

`losses` [..., N] float, one a unit, larger is harder; `where` [..., N] bool, True takes part; `keep`
[..., N] bool, always a subset of `where`. Units lie on the last axis; leading axes are batch.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np


class Selector(Protocol):
    """What every selector is once its own options are bound (`functools.partial(top_k, k=8)`)."""

    def __call__(self, losses: jax.Array, *args: Any, where: jax.Array | None = None) -> jax.Array:
        """losses [..., N], where bool [..., N] (None: all take part) -> keep bool [..., N], no gradient."""


def check_units(losses: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """`losses` cut off from the gradient, and `where` as an array.

    Raises:
      ValueError: if there is no unit axis, or `where` is not bool or not of the shape of `losses`.
    """
    losses = jax.lax.stop_gradient(jnp.asarray(losses))
    if losses.ndim == 0:
        raise ValueError("losses has no axis: the last axis must be the units, [..., N]")
    return losses, check_where(losses, where)


def check_where(losses: jax.Array, where: jax.Array | None) -> jax.Array:
    """`where` as a bool array of the shape of `losses`; all True for None.

    Raises:
      ValueError: if it is not bool, or of another shape.
    """
    where = jnp.ones(losses.shape, bool) if where is None else jnp.asarray(where)
    if where.dtype != bool:
        raise ValueError(
            f"where must be bool, not {where.dtype}: say which units take part, as in `weights > 0`"
        )
    if where.shape != losses.shape:
        raise ValueError(f"where of shape {where.shape} != losses {losses.shape}: broadcast it first")
    return where


def check_count(name: str, count: int, num_units: int, *, least: int) -> int:
    """A static number of units to keep, `least` <= count <= N.

    Raises:
      TypeError: if it is no Python or numpy integer (a traced number would change shapes).
      ValueError: if it is out of range, naming both numbers.
    """
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
        raise TypeError(f"{name}={count!r} must be a Python int, known before tracing")
    if count < least:
        raise ValueError(f"{name}={count} < {least}, with N={num_units} units: keep at least {least}")
    if count > num_units:
        raise ValueError(f"{name}={count} > N={num_units}: no more units lie on the last axis of losses")
    return int(count)
