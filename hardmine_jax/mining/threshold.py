"""Every unit above a loss."""

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.order import keep_first, order_keys
from hardmine_jax.mining.types import (
    ArrayLike,
    Count,
    Scalar,
    at_least_single,
    check_count_a_row,
    check_units,
)


def threshold(
    losses: ArrayLike, *, min_loss: Scalar, min_kept: Count = 0, where: ArrayLike | None = None
) -> jax.Array:
    """Keeps every unit with loss > min_loss, and at least the min_kept hardest of each row.

    keep_i = where_i and (losses_i > min_loss or i is among the min(min_kept, participating) hardest)

    Compared in float32 (float64 for float64 losses), whatever the dtype of the losses: 0.1 in bfloat16 is
    0.10009766, which is above 0.1. A NaN that takes part is kept, as in `top_k`. The choice carries no
    gradient. As OHEM for segmentation, where min_loss = -log(largest probability still called hard):
    1605.06885, section 2.2.

    Args:
      losses: [..., N], larger is harder.
      min_loss: in the units of the losses, one for all, []; or one a row, [...] or [..., 1]; or one a unit,
        [..., N]. May be traced (a schedule).
      min_kept: 0 <= min_kept <= N, a Python int; or an integer array, [] or one a row [...], which may be
        traced. Ties to the lowest index.
      where: bool [..., N], True takes part; None for all.

    Returns:
      bool [..., N], a subset of `where`.

    Raises:
      ValueError: for a static min_kept < 0 or min_kept > N, a min_loss of another shape or a static NaN, a
        `where` that is not bool or of another shape.
      TypeError: if min_kept is no integer, or losses are complex.

    >>> threshold(jnp.array([0.1, 0.9, 0.3, 0.2]), min_loss=0.5)
    Array([False,  True, False, False], dtype=bool)
    >>> threshold(jnp.array([0.1, 0.9, 0.3, 0.2]), min_loss=0.5, min_kept=2)
    Array([False,  True,  True, False], dtype=bool)
    """
    losses, where = check_units(losses, where)
    min_kept = check_count_a_row("min_kept", min_kept, losses, least=0)
    # A plain `losses > min_loss` would round min_loss to the losses' dtype, and wrap it for unsigned ones.
    single = losses.astype(at_least_single(losses.dtype))
    keep = where & ((single > _least(min_loss, single)) | jnp.isnan(single))
    if isinstance(min_kept, int) and min_kept == 0:
        return keep
    return keep | keep_first(order_keys(losses), k=min_kept, where=where)


def _least(min_loss: Scalar, losses: jax.Array) -> jax.Array:
    """`min_loss` in the dtype of the losses, with an axis for their units where it has others."""
    if isinstance(min_loss, (float, np.floating)) and np.isnan(min_loss):
        raise ValueError("min_loss is NaN: nothing is above it")
    least, rows = jnp.asarray(min_loss, losses.dtype), losses.shape[:-1]
    if least.shape not in ((), rows, (*rows, 1), losses.shape):
        raise ValueError(
            f"min_loss of shape {least.shape} for losses {losses.shape}: give one for all, [], one a row, "
            f"{rows}, or one a unit, {losses.shape}"
        )
    return least[..., None] if least.ndim == len(rows) else least
