"""What people plot to see whether mining works."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hardmine_jax.mining.layout import for_export
from hardmine_jax.mining.types import ArrayLike, at_least_single, check_choice, check_units


@for_export
class Stats(NamedTuple):
    """What a selector kept, over all rows. Everything is 0 where nothing takes part, or nothing is kept.

    Attributes:
      fraction_kept: [], of the units that take part.
      loss_captured: [], the kept units' part of the sum of the participating losses: far above fraction_kept
        where few units carry the loss, equal to it where all are alike.
      entropy: [], in nats, of the index of a kept unit: log(N) when all are kept equally often, 0 when it is
        always the same one; exp(entropy) is how many different ones are kept in effect.
      unit_rate: [N], how often each unit index was kept, of the rows in which it takes part.
    """

    fraction_kept: jax.Array
    loss_captured: jax.Array
    entropy: jax.Array
    unit_rate: jax.Array


def stats(
    losses: ArrayLike,
    keep: ArrayLike,
    where: ArrayLike | None = None,
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Stats:
    """Describes a choice: how much of the units and of the loss it kept, and which units.

    Means of these over batches and devices are what training logs. The entropy of a mean `unit_rate` says
    more than the mean entropy of small batches.

    Args:
      losses: [..., N].
      keep: bool [..., N], what a selector returned.
      where: bool [..., N], what the selector was given; None for all.
      axis_name: inside pmap or shard_map the mapped axis: the rows of all its devices are described together,
        which moves 2N + 2 numbers. A mean of each device's ratios would be another number.

    Returns:
      `Stats`, float32 (float64 for float64 losses), no gradient.

    Raises:
      ValueError: if there is no unit axis, or `keep` or `where` is not bool or of another shape.

    >>> losses = jnp.array([[4.0, 0.5, 0.5], [2.0, 2.0, 1.0]])
    >>> described = stats(losses, losses >= 2)
    >>> described.fraction_kept, described.loss_captured, described.unit_rate
    (Array(0.5, dtype=float32), Array(0.8, dtype=float32), Array([1. , 0.5, 0. ], dtype=float32))
    """
    losses, where = check_units(losses, where)
    keep = check_choice("keep", keep, losses, "give what the selector returned") & where
    dtype = at_least_single(losses.dtype)
    rows = tuple(range(losses.ndim - 1))
    kept, present = keep.sum(axis=rows, dtype=dtype), where.sum(axis=rows, dtype=dtype)
    kept_loss, whole_loss = (jnp.where(chosen, losses, 0).sum(dtype=dtype) for chosen in (keep, where))
    if axis_name is not None:
        sums = jax.lax.psum((kept, present, kept_loss, whole_loss), axis_name)
        kept, present, kept_loss, whole_loss = sums
    portion = _over(kept, kept.sum())
    return Stats(
        fraction_kept=_over(kept.sum(), present.sum()),
        loss_captured=_over(kept_loss, whole_loss),
        entropy=-jnp.where(portion > 0, portion * jnp.log(jnp.where(portion > 0, portion, 1)), 0).sum(),
        unit_rate=_over(kept, present),
    )


def _over(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """0 where the denominator is."""
    return jnp.where(denominator == 0, 0, numerator / jnp.where(denominator == 0, 1, denominator))
