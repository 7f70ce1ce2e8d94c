"""The contract of a selector, and the static checks that every selector makes first.

`losses` [..., N] float, one a unit, larger is harder; `where` [..., N] bool, True takes part; `keep`
[..., N] bool, always a subset of `where`. Units lie on the last axis; leading axes are batch.
"""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

# What `jnp.asarray` makes an array of: lists too, which `jax.typing.ArrayLike` leaves out.
ArrayLike: TypeAlias = (
    jax.typing.ArrayLike | Sequence[jax.typing.ArrayLike] | Sequence[Sequence[jax.typing.ArrayLike]]
)
# Where the shape of what is given is read before anything else.
AnyArray: TypeAlias = jax.Array | np.ndarray
# One number for all, which may be traced.
Scalar: TypeAlias = float | np.number | AnyArray
# How many units: a Python int is checked, an array may be traced (`check_count_a_row`).
Count: TypeAlias = int | np.integer | AnyArray


class Selector(Protocol):
    """What every selector is once its own options are bound (`functools.partial(top_k, k=8)`)."""

    def __call__(self, losses: jax.Array, /, *, where: jax.Array | None = None) -> jax.Array:
        """losses [..., N], where bool [..., N] (None: all take part) -> keep bool [..., N], no gradient."""


def check_units(losses: ArrayLike, where: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """`losses` cut off from the gradient, and `where` as an array.

    Raises:
      ValueError: if there is no unit axis, or `where` is not bool or not of the shape of `losses`.
      TypeError: for complex losses.
    """
    losses = jax.lax.stop_gradient(check_real(jnp.asarray(losses)))
    if losses.ndim == 0:
        raise ValueError("losses has no axis: the last axis must be the units, [..., N]")
    return losses, check_where(losses, where)


def check_soft_units(losses: ArrayLike, where: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """As `check_units` for what gives weights: losses as float32 (or float64), with their gradient."""
    _, where = check_units(losses, where)
    losses = jnp.asarray(losses)
    return losses.astype(at_least_single(losses.dtype)), where


def check_real(losses: jax.Array) -> jax.Array:
    """The losses.

    Raises:
      TypeError: if they are complex.
    """
    if jnp.issubdtype(losses.dtype, jnp.complexfloating):
        raise TypeError(f"losses of {losses.dtype} have no order: take the absolute value")
    return losses


def check_number(name: str, number: Scalar) -> Scalar:
    """One number for all units, which may be traced.

    Raises:
      ValueError: if it has axes.
    """
    if jnp.ndim(number):
        raise ValueError(f"{name} of shape {jnp.shape(number)}: give one number for all units")
    return number


def check_integer(name: str, number: int | np.integer, *, least: int) -> int:
    """A number that fixes a shape.

    Raises:
      TypeError: if it is no Python or numpy integer.
      ValueError: if it is below `least`.
    """
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
        raise TypeError(f"{name}={number!r} must be a Python int, known before tracing")
    if number < least:
        raise ValueError(f"{name}={number} < {least}")
    return int(number)


def at_least_single(dtype: jnp.dtype) -> jnp.dtype:
    """float64 for float64, float32 for every other: in what sums and comparisons are made."""
    # `jnp.promote_types` refuses bfloat16 under jax_numpy_dtype_promotion="strict".
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def as_floats(*arrays: ArrayLike) -> list[jax.Array]:
    """The arrays in one dtype: float64 where one of them has it, else float32, whatever they were.

    Differences of small integers and of 16-bit floats wrap around, or lose their digits.

    Raises:
      TypeError: for complex numbers.
    """
    made = [jnp.asarray(array) for array in arrays]
    for array in made:
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise TypeError(f"an array of {array.dtype} and shape {array.shape}: give real numbers")
    wide = any(array.dtype == jnp.float64 for array in made)
    return [array.astype(jnp.float64 if wide else jnp.float32) for array in made]


def check_overlap(name: str, threshold: Scalar) -> None:
    """A threshold of overlaps or similarities, unless it is an array.

    Raises:
      ValueError: if it is not in 0 .. 1: a percentage would suppress nothing.
    """
    if isinstance(threshold, (int, float, np.generic)) and not 0 <= threshold <= 1:
        raise ValueError(f"{name}={threshold} must lie in 0 .. 1: it is an overlap")


def check_where(losses: jax.Array, where: ArrayLike | None) -> jax.Array:
    """`where` as a bool array of the shape of `losses`; all True for None.

    Raises:
      ValueError: if it is not bool, or of another shape.
    """
    if where is None:
        return jnp.ones(losses.shape, bool)
    return check_choice("where", where, losses, "say which units take part, as in `weights > 0`")


def check_indices(indices: ArrayLike) -> jax.Array:
    """Indices of examples of a data set as int32, and -1 for what is negative or too large for it.

    Raises:
      TypeError: if they are no integers.
      ValueError: for one of 2^31 or more, where that can be seen.
    """
    if not isinstance(indices, jax.Array):
        # As numpy has them: JAX would make 32 bits of 64.
        indices = np.asarray(indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"indices of {indices.dtype}: dataset indices are integers")
    most = jnp.iinfo(jnp.int32).max
    if jnp.iinfo(indices.dtype).max <= most:
        return jnp.asarray(indices, jnp.int32)
    if not isinstance(indices, jax.core.Tracer) and (indices > most).any():
        raise ValueError(f"indices up to {indices.max()} do not fit into int32: number examples below 2^31")
    return jnp.where((indices >= 0) & (indices <= most), indices.astype(jnp.int32), -1)


def check_choice(name: str, choice: ArrayLike, losses: jax.Array, advice: str) -> jax.Array:
    """A bool array of the shape of `losses`.

    Raises:
      ValueError: if it is not bool, or of another shape.
    """
    choice = jnp.asarray(choice)
    if choice.dtype != bool:
        raise ValueError(f"{name} must be bool, not {choice.dtype}: {advice}")
    if choice.shape != losses.shape:
        raise ValueError(f"{name} of shape {choice.shape} != losses {losses.shape}: broadcast it first")
    return choice


def check_count(name: str, count: int | np.integer, num_units: int, *, least: int) -> int:
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


def check_count_a_row(name: str, count: Count, losses: jax.Array, *, least: int) -> int | jax.Array:
    """A number of units to keep that may be traced: of an array only dtype and shape can be checked.

    Args:
      count: a Python int, checked as in `check_count`; or an integer array, [] for all rows of losses
        [..., N] or [...] for one a row.

    Returns:
      The Python int; or the array as int32, its values clipped to between 0 and N.

    Raises:
      TypeError: if it is no integer.
      ValueError: if a static count is out of range, or an array has another shape.
    """
    if not isinstance(count, (jax.Array, np.ndarray)):
        return check_count(name, count, losses.shape[-1], least=least)
    if not jnp.issubdtype(count.dtype, jnp.integer):
        raise TypeError(f"{name} of {count.dtype} must be an integer array, or a Python int")
    if count.shape not in ((), losses.shape[:-1]):
        raise ValueError(
            f"{name} of shape {count.shape} for losses {losses.shape}: give one for all rows, [], "
            f"or one a row, {losses.shape[:-1]}"
        )
    # Clipped before the cast, which would make a negative number of a large one.
    most = min(losses.shape[-1], jnp.iinfo(count.dtype).max)
    return jnp.asarray(count.clip(0, most), jnp.int32)
