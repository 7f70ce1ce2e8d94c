"""The hard units weighted up, the easy ones kept."""

import jax
import jax.numpy as jnp

from hardmine_jax.mining.types import ArrayLike, Scalar, check_units


def emphasis_weights(
    keep: ArrayLike, where: ArrayLike | None, *, hard: Scalar, easy: Scalar = 1.0
) -> jax.Array:
    """Weights under which the mean over all is the mean over all plus a multiple of that over the hard ones.

    weights_i = where_i * (easy + hard * keep_i * P / K),  P = #where,  K = #(where and keep)

    `masked_mean(losses, where=where, weights=weights)` is then
    `easy * masked_mean(losses, where=where) + hard * masked_mean(losses, where=keep)`: easy units keep their
    gradient. Both numbers are of the whole arrays, as those of `masked_mean` are; with a fixed denominator
    there, its two terms keep this ratio. Nothing kept leaves the easy part.

    SLEAP (Pereira et al. 2022, doi:10.1038/s41592-022-01426-1) trains so, with what `harder_than_easiest`
    keeps of a batch's keypoints and a scale of 5.

    Args:
      keep: bool [...], what a selector returned.
      where: bool [...], True takes part; None for all.
      hard: factor of the mean over what is kept; may be traced.
      easy: factor of the mean over all; may be traced.

    Returns:
      float32 [...]. No gradient.

    Raises:
      ValueError: if `keep` or `where` is not bool, or they differ in shape.

    >>> keep = jnp.array([False, True, False, False])
    >>> emphasis_weights(keep, None, hard=2.0)
    Array([1., 9., 1., 1.], dtype=float32)
    """
    keep = jnp.asarray(keep)
    if keep.dtype != bool:
        raise ValueError(f"keep must be bool, not {keep.dtype}: hand over what a selector returned")
    _, where = check_units(keep, where)
    keep = keep & where
    ratio = where.sum(dtype=jnp.float32) / jnp.maximum(keep.sum(dtype=jnp.float32), 1)
    hard, easy = jnp.asarray(hard, jnp.float32), jnp.asarray(easy, jnp.float32)
    return jnp.where(where, easy + jnp.where(keep, hard * ratio, 0.0), 0.0)
