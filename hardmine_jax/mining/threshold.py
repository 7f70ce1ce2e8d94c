"""Every unit above a loss."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining.order import keep_first, order_keys
from hardmine_jax.mining.types import ArrayLike, Count, Scalar, check_count_a_row, check_units


def threshold(
    losses: ArrayLike, *, min_loss: Scalar, min_kept: Count = 0, where: ArrayLike | None = None
) -> jax.Array:
    """Keeps every unit with loss > min_loss, and at least the min_kept hardest of each row.

    keep_i = where_i and (losses_i > min_loss or i is among the min(min_kept, participating) hardest)

    A NaN that takes part is kept, as in `top_k`. The choice carries no gradient. As OHEM for
    segmentation, where min_loss = -log(largest probability still called hard): 1605.06885, section 2.2.

    Args:
      losses: [..., N], larger is harder.
      min_loss: a number, in the units of the losses; may be traced (a schedule).
      min_kept: 0 <= min_kept <= N, a Python int; or an integer array, [] or one a row [...], which may be
        traced. Ties to the lowest index.
      where: bool [..., N], True takes part; None for all.

    Returns:
      bool [..., N], a subset of `where`.

    Raises:
      ValueError: for a static min_kept < 0 or min_kept > N, a `where` that is not bool or of another shape.
      TypeError: if min_kept is no integer, or above 0 with complex losses.

    >>> threshold(jnp.array([0.1, 0.9, 0.3, 0.2]), min_loss=0.5)
    Array([False,  True, False, False], dtype=bool)
    >>> threshold(jnp.array([0.1, 0.9, 0.3, 0.2]), min_loss=0.5, min_kept=2)
    Array([False,  True,  True, False], dtype=bool)
    """
    losses, where = check_units(losses, where)
    min_kept = check_count_a_row("min_kept", min_kept, losses, least=0)
    keep = where & ((losses > min_loss) | jnp.isnan(losses))
    if isinstance(min_kept, int) and min_kept == 0:
        return keep
    return keep | keep_first(order_keys(losses), k=min_kept, where=where)
