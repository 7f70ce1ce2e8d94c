"""The read-only pass: the losses of all units, in bounded memory, and no gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.cpu_products import cpu_products
from hardmine_jax.mining.unit_axes import UnitArgs, slice_units

# From the arrays of some units (UnitArgs.rebuild puts them into the arguments) to the losses of these units.
LossesOf = Callable[[list[jax.Array]], jax.Array]


def check_losses(losses: jax.Array, num_units: int) -> jax.Array:
    """What a loss function returned for `num_units` units.

    Raises:
      ValueError: if it is not one array with a loss for each unit.
    """
    shape = getattr(losses, "shape", None)
    if shape is None:
        raise ValueError(f"loss_fn must return one array, [N]=[{num_units}], not {type(losses).__name__}")
    if shape != (num_units,):
        raise ValueError(
            f"loss_fn must return a loss for each unit, [N]=[{num_units}], not shape {shape}: reduce what"
            " lies within a unit and nothing over units"
        )
    return losses


def read_only_losses(
    units: UnitArgs, losses_of: LossesOf, *, chunk: int | None, score_dtype: jax.typing.DTypeLike | None
) -> jax.Array:
    """[N], of the dtype that `losses_of` returns when nothing is cast, and cut off from the gradient."""
    num_units = units.num_units
    size = num_units if chunk is None else min(chunk, num_units)
    arrays = [jax.lax.stop_gradient(array) for array in units.arrays]
    first = slice_units(arrays, units.axes, 0, size)
    dtype = None if score_dtype is None else check_losses(jax.eval_shape(losses_of, first), size).dtype
    # The function may have parameters in its closure, where `stop_gradient` on the arguments does not reach:
    # without it the whole pass would be linearised, and its residuals held.
    score, closed_over = jax.closure_convert(losses_of, _cast(first, score_dtype))
    score = cpu_products(score)
    closed_over = [jax.lax.stop_gradient(value) for value in closed_over]
    # What all units share is cast once, not once a chunk.
    arrays = [
        _cast([array], score_dtype)[0] if axis is None else array
        for array, axis in zip(arrays, units.axes, strict=True)
    ]

    def losses_from(start: jax.Array | int) -> jax.Array:
        part = _cast(slice_units(arrays, units.axes, start, size), score_dtype)
        losses = check_losses(score(part, *closed_over), size)
        return losses if dtype is None else losses.astype(dtype)

    if size == num_units:
        return losses_from(0)
    # The last chunk starts early enough to be whole: what it has in common with the one before is cut off.
    starts = np.minimum(np.arange(0, num_units, size), num_units - size).astype(np.int32)
    losses = jax.lax.map(losses_from, jnp.asarray(starts))
    rest = num_units - size * (len(starts) - 1)
    return jnp.concatenate([losses[:-1].reshape(-1), losses[-1, size - rest :]])


def _cast(arrays: list[jax.Array], dtype: jax.typing.DTypeLike | None) -> list[jax.Array]:
    if dtype is None:
        return arrays
    arrays = [jnp.asarray(array) for array in arrays]
    return [array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array for array in arrays]
