"""Every strength of gradient gets the same say: gradient harmonising."""

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.types import ArrayLike, check_integer, check_soft_units


def gradient_histogram(
    gradient_norms: ArrayLike, *, num_bins: int = 30, where: ArrayLike | None = None
) -> jax.Array:
    """How many participating units of each row have a gradient norm in each of num_bins equal bins of [0, 1].

    Args:
      gradient_norms: [..., N], from 0 to 1 (beyond counts as the end); NaN counts as 1.
      num_bins: a Python int, 1 or more.
      where: bool [..., N], True takes part; None for all.

    Returns:
      float32 [..., num_bins], no gradient.

    Raises:
      ValueError: for num_bins < 1, or a `where` that is not bool or of another shape.
      TypeError: if num_bins is no integer.

    >>> gradient_histogram(jnp.array([0.0, 0.1, 0.5, 1.0]), num_bins=4)
    Array([2., 0., 1., 1.], dtype=float32)
    """
    gradient_norms, where = check_soft_units(gradient_norms, where)
    in_bin = _bins(gradient_norms, num_bins)[..., None] == _bin_numbers(num_bins, gradient_norms.ndim)
    return (in_bin & where[..., None]).sum(axis=-2, dtype=jnp.float32)


def ghm_weights(
    gradient_norms: ArrayLike,
    *,
    num_bins: int = 30,
    counts: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Weights inverse to the gradient density: units as common as the many easy ones count less each.

    weights_i = where_i * sum(counts) / (counts[bin of i] * number of bins that are not empty)

    so that every bin that is not empty has the same total and the mean over participating units is 1:
    finish with `masked_mean(weights * losses, where=where)`. The paper divides by all bins; its code, and
    this, by those that are not empty. The gradient norm is |d loss / d logit|: for a binary cross-entropy
    |sigmoid(logit) - target| = 1 - exp(-loss), for the authors' smooth L1 |d| / sqrt(d^2 + mu^2).
    1811.05181, "Unit Region Approximation" and equation 9.

    The counts may be those of more units than these: `jax.lax.psum(gradient_histogram(...), axis_name)` over
    devices, or a moving average over steps that the caller keeps ("EMA" in the paper).

    Args:
      gradient_norms: [..., N], from 0 to 1.
      num_bins: a Python int, 1 or more.
      counts: [..., num_bins], of `gradient_histogram`, fewer than 1 counting as 1; None for that of each row.
      where: bool [..., N], True takes part; None for all.

    Returns:
      [..., N], float32 (float64 for float64 norms), 0 where a unit takes no part. No gradient.

    Raises:
      ValueError: for num_bins < 1, counts of another shape, a `where` that is not bool or of another shape.
      TypeError: if num_bins is no integer.

    >>> ghm_weights(jnp.array([0.1, 0.1, 0.2, 0.9]), num_bins=2)
    Array([0.6666667, 0.6666667, 0.6666667, 2.       ], dtype=float32)
    """
    norms, where = check_soft_units(gradient_norms, where)
    bins = _bins(norms, num_bins)
    if counts is None:
        counts = gradient_histogram(norms, num_bins=num_bins, where=where)
    counts = jnp.asarray(counts)
    if counts.shape != (*norms.shape[:-1], num_bins):
        raise ValueError(f"counts of shape {counts.shape} != {(*norms.shape[:-1], num_bins)}, one set a row")
    counts = jax.lax.stop_gradient(counts).astype(norms.dtype)
    occupied = jnp.maximum((counts > 0).sum(axis=-1, keepdims=True, dtype=norms.dtype), 1)
    weights = counts.sum(axis=-1, keepdims=True) / (jnp.maximum(counts, 1) * occupied)
    return jnp.where(where, jnp.take_along_axis(weights, bins, axis=-1), 0)


def _bins(norms: jax.Array, num_bins: int) -> jax.Array:
    check_integer("num_bins", num_bins, least=1)
    norms = jax.lax.stop_gradient(norms)
    norms = jnp.clip(jnp.where(jnp.isnan(norms), 1, norms), 0, 1)
    return jnp.minimum((norms * num_bins).astype(jnp.int32), num_bins - 1)


def _bin_numbers(num_bins: int, ndim: int) -> np.ndarray:
    return np.arange(num_bins, dtype=np.int32).reshape((1,) * ndim + (-1,))
