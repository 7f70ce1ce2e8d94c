"""The hardest negatives, in proportion to the positives."""

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.order import count, keep_first, order_keys
from hardmine_jax.mining.types import (
    ArrayLike,
    Count,
    Scalar,
    check_choice,
    check_count_a_row,
    check_number,
    check_units,
)


def hard_negatives(
    losses: ArrayLike,
    *,
    positive: ArrayLike,
    ratio: Scalar = 3.0,
    min_negatives: Count = 0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Keeps the hardest negatives of each row: `ratio` for each positive, and at least min_negatives.

    keep = top_k(losses, k=max(floor(ratio * P), min_negatives), where=where & ~positive),
    P = #{i in where: positive_i}

    Negatives only: add the positives with `keep | (where & positive)`, as SSD does. A row without positives
    keeps min_negatives, by default none. Ties go to the lowest index and a NaN that takes part is hardest, as
    in `top_k`. The choice carries no gradient. SSD, 1512.02325, section 2.2, "hard negative mining".

    Args:
      losses: [..., N], larger is harder.
      positive: bool [..., N], True for a unit that shows an object.
      ratio: negatives for each positive, 0 or more; the product is made in float32. May be traced.
      min_negatives: 0 <= min_negatives <= N, a Python int; or an integer array, [] or one a row [...], which
        may be traced.
      where: bool [..., N], True takes part; None for all. A positive that takes no part counts for nothing.

    Returns:
      bool [..., N], a subset of `where & ~positive`.

    Raises:
      ValueError: if the ratio is negative or not finite, a static min_negatives < 0 or > N, `positive` or
        `where` is not bool or of another shape.
      TypeError: if min_negatives is no integer, or losses are complex.

    >>> losses = jnp.array([9.0, 0.1, 0.4, 0.2, 0.3])
    >>> hard_negatives(losses, positive=losses > 5, ratio=2.0)
    Array([False, False,  True, False,  True], dtype=bool)
    """
    losses, where = check_units(losses, where)
    positive = check_choice("positive", positive, losses, "say which show an object, as in `labels > 0`")
    check_number("ratio", ratio)
    if not isinstance(ratio, jax.Array) and not 0 <= ratio < np.inf:
        raise ValueError(f"ratio={ratio} must be finite and 0 or more: the negatives for each positive")
    min_negatives = check_count_a_row("min_negatives", min_negatives, losses, least=0)
    num_positives = count(where & positive)[..., 0]
    wanted = jnp.floor(jnp.asarray(ratio, jnp.float32) * num_positives.astype(jnp.float32))
    # Clipped before the cast, which has no meaning above 2^31.
    wanted = jnp.minimum(wanted, losses.shape[-1]).astype(jnp.int32)
    return keep_first(order_keys(losses), k=jnp.maximum(wanted, min_negatives), where=where & ~positive)
