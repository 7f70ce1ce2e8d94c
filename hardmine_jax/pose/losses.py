"""Heatmap losses. Heatmaps are [B, H, W, K]; a loss is a number for each keypoint until it is reduced."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining import masked_mean, top_k
from hardmine_jax.mining.layout import cut_axes
from hardmine_jax.mining.types import ArrayLike, Count, check_count_a_row
from hardmine_jax.pose.types import check_labelled

# Of 8, 16 and 48 the fastest at 64 x 48 pixels.
_NEIGHBOURS = 8


def heatmap_mse(predicted: ArrayLike, target: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Mean squared error over the pixels of each map.

    error[b, k] = [where] mean over y, x of (predicted[b, y, x, k] - target[b, y, x, k])^2

    Without the factor 0.5 that HRNet carries. Worked out in float32.

    Args:
      predicted: [B, H, W, K], any real dtype.
      target: [B, H, W, K].
      where: bool [B, K]; an unlabelled keypoint gives 0 and no gradient, whatever its maps hold.

    Returns:
      float32 [B, K].

    Raises:
      ValueError: if the shapes of the two differ, or `where` is not bool [B, K].
    """
    predicted, target = jnp.asarray(predicted), jnp.asarray(target)
    if predicted.ndim != 4 or predicted.shape != target.shape:
        raise ValueError(
            f"predicted {predicted.shape} and target {target.shape} must be the same [B, H, W, K]"
        )
    where = check_labelled(where, (predicted.shape[0], predicted.shape[-1]))
    # Where a device has a part of a map, pixels that are neighbours there are none here.
    parted = any(cut_axes(predicted)[1:] + cut_axes(target)[1:])
    on_cpu = _squared_error if parted else _squared_error_of_neighbours
    return jax.lax.platform_dependent(predicted, target, where, cpu=on_cpu, default=_squared_error)


def _squared_error(predicted: jax.Array, target: jax.Array, where: jax.Array | None) -> jax.Array:
    """[B, ..., K] -> [B, K]: the mean over what lies between."""
    pixels = tuple(range(1, predicted.ndim - 1))
    difference = predicted.astype(jnp.float32) - target.astype(jnp.float32)
    if where is not None:
        difference = jnp.where(jnp.expand_dims(where, pixels), difference, 0.0)
    return jnp.square(difference).mean(axis=pixels)


def _squared_error_of_neighbours(
    predicted: jax.Array, target: jax.Array, where: jax.Array | None
) -> jax.Array:
    """The same, a few neighbouring pixels to a row: XLA:CPU does not vectorise along K as short as 17."""
    batch, height, width, keypoints = predicted.shape
    neighbours = math.gcd(height * width, _NEIGHBOURS)
    # On a mesh with an Explicit axis for the batch JAX knows the layout of each of these, not of one for all.
    shapes = (
        (batch, height * width, keypoints),
        (batch, height * width // neighbours, neighbours, keypoints),
        (batch, height * width // neighbours, neighbours * keypoints),
    )
    where = None if where is None else jnp.tile(where, (1, neighbours))
    predicted, target = (functools.reduce(jnp.reshape, shapes, maps) for maps in (predicted, target))
    errors = _squared_error(predicted, target, where)
    return errors.reshape(batch, neighbours, keypoints).mean(axis=1)


def ohkm(
    predicted: ArrayLike, target: ArrayLike, *, k: Count = 8, where: ArrayLike | None = None
) -> jax.Array:
    """Online hard keypoint mining: each image is graded by its k worst keypoints.

    loss = mean over images of (sum of the k largest heatmap_mse) / k

    Unlabelled keypoints count 0, and the denominator stays k where fewer are labelled. Equals the losses of
    CPN and mmpose; twice HRNet's `JointsOHKMMSELoss`, which carries a factor 0.5.
    Chen et al., Cascaded Pyramid Network, 1711.07319, section 3.2.2.

    Args:
      predicted: [B, H, W, K], any float.
      target: [B, H, W, K].
      k: how many keypoints of each image are kept, 1 <= k <= K, a Python int; or an integer array, [] or one
        an image [B], which may be traced (a `schedule`) and is clipped to that.
      where: bool [B, K], True is labelled; None for all.

    Returns:
      [], float32.

    Raises:
      ValueError: for a static k < 1 or k > K, or shapes that do not fit.
      TypeError: if k is no integer.

    >>> predicted = jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)
    >>> ohkm(predicted, jnp.zeros_like(predicted), k=2)
    Array(6.5, dtype=float32)
    """
    losses = heatmap_mse(predicted, target, where=where)
    batch, num_keypoints = losses.shape
    if isinstance(k, (jax.Array, np.ndarray)):
        k = jnp.maximum(check_count_a_row("k", k, losses, least=1), 1)
        shares = losses / jnp.broadcast_to(k, (batch,)).astype(losses.dtype)[:, None]
        return masked_mean(shares, where=top_k(losses, k=k, where=where), denominator=max(batch, 1))
    if not 1 <= k <= num_keypoints:
        raise ValueError(f"k={k} must lie in 1 .. K={num_keypoints}, the number of keypoints: lower k")
    keep = top_k(losses, k=k, where=where)
    return masked_mean(losses, where=keep, denominator=k * max(batch, 1))
