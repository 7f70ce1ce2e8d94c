"""The k hardest units of each row."""

import jax

from hardmine_jax.mining.order import keep_first, order_keys
from hardmine_jax.mining.types import ArrayLike, Count, check_count_a_row, check_units


def top_k(losses: ArrayLike, *, k: Count, where: ArrayLike | None = None) -> jax.Array:
    """Keeps the k hardest units of each row: exactly min(k, participating), ties to the lowest index.

    keep_i = where_i and #{j in where: losses_j > losses_i, or losses_j = losses_i and j < i} < k

    A NaN in a slot that takes part counts as the hardest of all, so that it reaches the loss and the run
    can stop there, instead of training on around it. Whatever lies in slots that take no part is never
    looked at. The choice carries no gradient.

    Online hard keypoint mining: CPN, 1711.07319, section 3.2.2. OHEM: 1604.03540, section 4.1.

    Args:
      losses: [..., N], larger is harder.
      k: how many to keep, 1 <= k <= N, a Python int; or an integer array, [] or one a row [...], which may
        be traced (a `schedule`) and is clipped to what takes part, 0 keeping nothing.
      where: bool [..., N], True takes part; None for all.

    Returns:
      bool [..., N], a subset of `where`.

    Raises:
      ValueError: for a static k < 1 or k > N, or a `where` that is not bool or of another shape.
      TypeError: if k is no integer, or losses are complex.

    >>> import jax.numpy as jnp
    >>> top_k(jnp.array([3.0, 1.0, 3.0, 2.0]), k=2)
    Array([ True, False,  True, False], dtype=bool)
    >>> top_k(jnp.array([3.0, 1.0, 3.0, 2.0]), k=2, where=jnp.array([False, True, False, False]))
    Array([False,  True, False, False], dtype=bool)
    """
    losses, where = check_units(losses, where)
    k = check_count_a_row("k", k, losses, least=1)
    return keep_first(order_keys(losses), k=k, where=where)
