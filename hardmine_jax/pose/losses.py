"""Heatmap losses. Heatmaps are [B, H, W, K]; a loss is a number for each keypoint until it is reduced."""

import functools
import math
from typing import Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining import masked_mean, top_k
from hardmine_jax.mining.layout import cut_axes
from hardmine_jax.mining.types import ArrayLike, Count, as_floats, check_count_a_row
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


@overload
def ohkm(
    predicted: ArrayLike,
    target: ArrayLike,
    *,
    k: Count = 8,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    return_keep: Literal[False] = False,
) -> jax.Array: ...
@overload
def ohkm(
    predicted: ArrayLike,
    target: ArrayLike,
    *,
    k: Count = 8,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    return_keep: Literal[True],
) -> tuple[jax.Array, jax.Array]: ...
def ohkm(
    predicted: ArrayLike,
    target: ArrayLike,
    *,
    k: Count = 8,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    return_keep: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Online hard keypoint mining: each image is graded by its k worst keypoints.

    loss = mean over images of (sum of the k largest weights * heatmap_mse) / k

    Unlabelled keypoints count 0, and the denominator stays k where fewer are labelled. Equals the losses of
    CPN and mmpose; twice HRNet's `JointsOHKMMSELoss`, which carries a factor 0.5.
    Chen et al., Cascaded Pyramid Network, 1711.07319, section 3.2.2.

    Args:
      predicted: [B, H, W, K], any float.
      target: [B, H, W, K].
      k: how many keypoints of each image are kept, 1 <= k <= K, a Python int; or an integer array, [] or one
        an image [B], which may be traced (a `schedule`) and is clipped to that.
      where: bool [B, K], True is labelled; None for all.
      weights: float [K] or [B, K], 0 or more: what each keypoint's error counts, in the choice too; None: 1.
        HRNet and mmpose multiply both maps by theirs, so that of these the square belongs here.
      return_keep: which keypoints were kept is returned too, to log it or to mine something else by it.

    Returns:
      [], float32; with `return_keep` that and keep, bool [B, K].

    Raises:
      ValueError: for a static k < 1 or k > K, or shapes that do not fit.
      TypeError: if k is no integer.

    >>> predicted = jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)
    >>> ohkm(predicted, jnp.zeros_like(predicted), k=2)
    Array(6.5, dtype=float32)
    """
    losses = heatmap_mse(predicted, target, where=where)
    batch, num_keypoints = losses.shape
    if weights is not None:
        losses = losses * _check_weights(weights, losses)
    if isinstance(k, (jax.Array, np.ndarray)):
        k = jnp.maximum(check_count_a_row("k", k, losses, least=1), 1)
        shares, of_each = losses / jnp.broadcast_to(k, (batch,)).astype(losses.dtype)[:, None], 1
    else:
        if not 1 <= k <= num_keypoints:
            raise ValueError(f"k={k} must lie in 1 .. K={num_keypoints}, the number of keypoints: lower k")
        shares, of_each = losses, int(k)
    keep = top_k(losses, k=k, where=where)
    loss = masked_mean(shares, where=keep, denominator=of_each * max(batch, 1))
    return (loss, keep) if return_keep else loss


def _check_weights(weights: ArrayLike, losses: jax.Array) -> jax.Array:
    if not isinstance(weights, jax.Array):
        known = np.asarray(weights, np.float64)
        if not ((known >= 0) & (known < np.inf)).all():
            raise ValueError("weights must be finite and 0 or more")
    weights = as_floats(weights)[0].astype(losses.dtype)
    if weights.shape not in (losses.shape, losses.shape[1:]):
        raise ValueError(f"weights of shape {weights.shape} must be [K] or [B, K] = {losses.shape}")
    return jnp.broadcast_to(weights, losses.shape)
