"""Heatmap targets and decoding, on device, inside jit.

Heatmaps are NHWC: [..., H, W, K]. Keypoints are (x, y) in heatmap pixels, the centre of the first pixel
is 0.0. A heatmap pixel of a network with stride s covers s x s image pixels, hence
heatmap = (image + 0.5) / s - 0.5, everywhere but where an `origin` is given.
"""

import math
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.types import ArrayLike, as_floats, at_least_single
from hardmine_jax.pose.types import check_labelled, floats_alike

# Numpy stays numpy, and jax jax.
Points = TypeVar("Points", np.ndarray, jax.Array, float)
# Pixels. The square of a distance is still a finite float32.
_FAR = 1e18


def image_to_heatmap(keypoints: Points, *, stride: float, origin: float | None = None) -> Points:
    """Image pixels to heatmap pixels, (x - origin) / stride; numpy or jax, any shape, in float32 or wider.

    Args:
      keypoints: pixels of the image.
      stride: image pixels a heatmap pixel.
      origin: where in the image the centre of the first heatmap pixel lies. None is (stride - 1) / 2, the
        middle of the image pixels that it covers, which makes (x + 0.5) / stride - 0.5. The released code of
        SimpleBaseline and HRNet has 0: for networks trained by it.

    >>> image_to_heatmap(np.array([1.5, 5.5]), stride=4)
    array([0., 1.])
    """
    points: Points = floats_alike(keypoints)
    if origin is None:
        return (points + 0.5) / stride - 0.5
    return (points - origin) / stride


def heatmap_to_image(keypoints: Points, *, stride: float, origin: float | None = None) -> Points:
    """Heatmap pixels to image pixels, x * stride + origin; undoes `image_to_heatmap`.

    >>> points = np.array([0.0, 1.0])
    >>> heatmap_to_image(points, stride=4), heatmap_to_image(points, stride=4, origin=0)
    (array([1.5, 5.5]), array([0., 4.]))
    """
    points: Points = floats_alike(keypoints)
    if origin is None:
        return (points + 0.5) * stride - 0.5
    return points * stride + origin


def encode_heatmaps(
    keypoints: ArrayLike, *, size: tuple[int, int], sigma: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
    """Gaussian targets of height 1, centred between pixels where the keypoint is.

    target[y, x, k] = exp(-((x - x_k)^2 + (y - y_k)^2) / (2 sigma^2)), made as an outer product.

    The centre is not rounded to a pixel (unlike HRNet), and the tail is not cut off at 3 sigma.

    Args:
      keypoints: [..., K, 2] heatmap pixels; may lie outside, then only the tail is seen.
      size: (H, W) of the heatmaps.
      sigma: standard deviation in heatmap pixels, one for all or one a keypoint [K] (wrists sharper than
        hips); may be traced, as by a schedule.
      where: bool [..., K]; the map of a keypoint that takes no part is 0, even if its coordinates are NaN.

    Returns:
      float32 [..., H, W, K].

    Raises:
      ValueError: if a sigma that is known or a side is not positive and finite, sigma is neither one nor one
        a keypoint, keypoints are not [..., K, 2], or `where` is not bool [..., K].

    >>> encode_heatmaps(jnp.array([[1.0, 0.0]]), size=(1, 3), sigma=1.0)[..., 0].round(2)
    Array([[0.61, 1.  , 0.61]], dtype=float32)
    """
    keypoints = as_floats(keypoints)[0].astype(jnp.float32)
    if keypoints.ndim < 2 or keypoints.shape[-1] != 2:
        raise ValueError(f"keypoints of shape {keypoints.shape} must end in axes of K and of (x, y)")
    if not (0 < min(size) and max(size) < np.inf):
        raise ValueError(f"size={tuple(size)} must be positive")
    sigma = _check_sigma(sigma, keypoints.shape[-2])
    where = check_labelled(where, keypoints.shape[:-1])
    if where is not None:
        keypoints = jnp.where(where[..., None], keypoints, 0.0)
    vertical = _gaussian(keypoints[..., 1], size[0], sigma)
    horizontal = _gaussian(keypoints[..., 0], size[1], sigma)
    if where is not None:
        vertical, horizontal = (jnp.where(where[..., None, :], side, 0.0) for side in (vertical, horizontal))
    return vertical[..., :, None, :] * horizontal[..., None, :, :]


def _check_sigma(sigma: ArrayLike, num_keypoints: int) -> float | jax.Array:
    """A number as it is, else float32 [] or [K]."""
    known = sigma if isinstance(sigma, jax.core.Tracer) else np.asarray(sigma)
    if known.shape not in ((), (num_keypoints,)):
        raise ValueError(
            f"sigma of shape {known.shape}: give one for all, or one for each of K={num_keypoints}"
        )
    if isinstance(known, np.ndarray) and not ((known > 0) & (known < np.inf)).all():
        raise ValueError(f"sigma={sigma} must be positive")
    # Python squares it in double precision.
    return sigma if isinstance(sigma, (int, float)) else as_floats(sigma)[0].astype(jnp.float32)


def _gaussian(centres: jax.Array, length: int, sigma: float | jax.Array) -> jax.Array:
    """[..., K] -> [..., length, K]."""
    if isinstance(sigma, jax.Array) and sigma.ndim:
        sigma = sigma.reshape((1,) * centres.ndim + sigma.shape)
    grid = jnp.arange(length, dtype=jnp.float32).reshape((1,) * (centres.ndim - 1) + (length, 1))
    # Cut before it is squared: of a keypoint far away the gradient would be 0 times infinity.
    distance = jnp.clip(grid - centres[..., None, :], -_FAR, _FAR)
    return jnp.exp(-jnp.square(distance) / (2 * sigma**2))


def decode_heatmaps(
    heatmaps: ArrayLike, *, method: Literal["dark", "quarter", "argmax"] = "dark", blur_sigma: float = 2.0
) -> tuple[jax.Array, jax.Array]:
    """Keypoints from heatmaps.

    "argmax" takes the highest pixel (the first one of equals, row by row). "quarter" moves a quarter pixel
    towards the higher neighbour on each axis, unless the pixel is near the border (HRNet, 1902.09212,
    `get_final_preds`). "dark" (1910.06278, sections 3.1 and 3.2) blurs the map with a Gaussian and
    jumps to the top of the parabola through the logarithm: m - H^-1 g.

    Where "dark" departs from the published code: near the border the blur gets narrower instead of
    counting zeros from beyond it; second differences take steps of 1 pixel instead of 2, and on the border
    itself the expansion is about the next pixel, so that every pixel is refined; the jump is taken only
    where the parabola has a top, and never ends more than 1 pixel away from the highest pixel or outside
    the map. Only the surroundings of the highest pixel are blurred, which changes nothing but the cost.

    Args:
      heatmaps: [..., H, W, K], any real dtype.
      method: as above.
      blur_sigma: of the "dark" blur, in heatmap pixels; the paper takes the sigma of the targets.

    Returns:
      (keypoints float32 [..., K, 2] heatmap pixels, scores [..., K] = value of the highest pixel, in
      the dtype of float heatmaps). A map that is nowhere positive (or has a NaN) gives (0, 0), as in HRNet:
      look at its score.

    Raises:
      ValueError: for an unknown method, a blur_sigma that is not positive and finite, or maps of no pixel.
    """
    if method not in ("dark", "quarter", "argmax"):
        raise ValueError(f"method={method!r} must be 'dark', 'quarter' or 'argmax'")
    if not 0 < blur_sigma < np.inf:
        raise ValueError(f"blur_sigma={blur_sigma} must be positive: give the sigma of the targets")
    heatmaps = jnp.asarray(heatmaps)
    if not jnp.issubdtype(heatmaps.dtype, jnp.floating):
        heatmaps = as_floats(heatmaps)[0]
    if heatmaps.ndim < 3 or 0 in heatmaps.shape[-3:-1]:
        raise ValueError(f"heatmaps of shape {heatmaps.shape} must be [..., H, W, K] with a pixel at least")
    height, width, num_keypoints = heatmaps.shape[-3:]
    maps = jnp.moveaxis(heatmaps, -1, -3).reshape(
        math.prod(heatmaps.shape[:-3]) * num_keypoints, height, width
    )
    column, row, scores = _highest_pixel(maps)
    x, y = column.astype(jnp.float32), row.astype(jnp.float32)
    if method != "argmax" and min(height, width) >= 3:
        x, y = _quarter(maps, column, row) if method == "quarter" else _dark(maps, column, row, blur_sigma)
    found = scores > 0
    keypoints = jnp.stack([jnp.where(found, x, 0.0), jnp.where(found, y, 0.0)], axis=-1)
    shape = (*heatmaps.shape[:-3], num_keypoints)
    return keypoints.reshape(*shape, 2), scores.reshape(shape)


def _highest_pixel(maps: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[M, H, W] -> column, row and value of the highest pixel, each [M]."""
    num_maps, height, width = maps.shape
    flat = maps.reshape(num_maps, height * width)
    highest = jax.lax.stop_gradient(flat).max(axis=-1)
    # max + lowest index is 2 to 2.7 times faster than argmax on XLA:CPU. A NaN finds nothing: last pixel.
    order = jax.lax.broadcasted_iota(jnp.int32, flat.shape, 1)
    index = jnp.where(flat == highest[:, None], order, height * width - 1).min(axis=-1)
    # Read where it lies, for its gradient: that of a maximum of NaN is NaN even where nothing arrives.
    found = jnp.take_along_axis(flat, index[:, None], axis=-1, mode="promise_in_bounds")[:, 0]
    scores = jnp.where(jnp.isnan(highest), highest, found)
    return index % width, index // width, scores


def _windows(maps: jax.Array, column: jax.Array, row: jax.Array, radius: int) -> jax.Array:
    """[M, 2r+1, 2r+1] around each centre, 0 beyond the border."""
    padded = jnp.pad(maps, ((0, 0), (radius, radius), (radius, radius)))
    side = 2 * radius + 1
    return jax.vmap(lambda one, y, x: jax.lax.dynamic_slice(one, (y, x), (side, side)))(padded, row, column)


def _quarter(maps: jax.Array, column: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
    height, width = maps.shape[1:]
    near = _windows(maps.astype(at_least_single(maps.dtype)), column, row, 1)
    # HRNet's own bounds: one pixel more is left out at the top and left than at the bottom and right.
    inside = (column > 1) & (column < width - 1) & (row > 1) & (row < height - 1)
    shift = jnp.where(inside, 0.25, 0.0)
    x = shift * jnp.sign(near[:, 1, 2] - near[:, 1, 0]).astype(jnp.float32)
    y = shift * jnp.sign(near[:, 2, 1] - near[:, 0, 1]).astype(jnp.float32)
    return column.astype(jnp.float32) + x, row.astype(jnp.float32) + y


def _dark(maps: jax.Array, column: jax.Array, row: jax.Array, sigma: float) -> tuple[jax.Array, jax.Array]:
    height, width = maps.shape[1:]
    middle_x, middle_y = jnp.clip(column, 1, width - 2), jnp.clip(row, 1, height - 2)
    near = _log_blurred(maps.astype(jnp.float32), middle_x, middle_y, sigma)
    offset_x, offset_y, has_top = _top_of_parabola(near)
    middle_x, middle_y, column, row = (
        place.astype(jnp.float32) for place in (middle_x, middle_y, column, row)
    )
    x = jnp.where(has_top, _limit(middle_x + offset_x, column, width), column)
    y = jnp.where(has_top, _limit(middle_y + offset_y, row, height), row)
    return x, y


def _limit(place: jax.Array, pixel: jax.Array, length: int) -> jax.Array:
    """At most 1 from the highest pixel, and inside the map."""
    return jnp.clip(place, jnp.maximum(pixel - 1.0, -0.5), jnp.minimum(pixel + 1.0, length - 0.5))


def _log_blurred(maps: jax.Array, column: jax.Array, row: jax.Array, sigma: float) -> jax.Array:
    """[M, 3, 3]: log of the blurred maps, at one pixel around each centre; a scale drops out later."""
    height, width = maps.shape[1:]
    radius = int(np.ceil(2.5 * sigma))
    window = _windows(maps, column, row, radius + 1)
    # Zeros from beyond the border would pull the top inwards by more than a pixel; a kernel cut off on one
    # side pushes it outwards. One cut off on both sides stays unbiased.
    across = _blur_rows(jnp.minimum(column - 1, width - 2 - column), radius, sigma)
    down = _blur_rows(jnp.minimum(row - 1, height - 2 - row), radius, sigma)
    blurred = jnp.einsum("miy,myx,mjx->mij", down, window, across, precision=jax.lax.Precision.HIGHEST)
    peak = blurred[:, 1:2, 1:2]
    # The floor is relative, so that decoding does not depend on the scale of the maps.
    usable = (peak > 0) & jnp.isfinite(peak)
    ratio = jnp.where(usable, blurred, 1.0) / jnp.where(usable, peak, 1.0)
    return jnp.log(jnp.maximum(ratio, 1e-10))


def _blur_rows(reach: jax.Array, radius: int, sigma: float) -> jax.Array:
    """[M] -> [M, 3, 2 * radius + 3]: Gaussian weights about the three middle places, none beyond `reach`."""
    distance = np.abs(np.arange(2 * radius + 3)[None, :] - np.arange(3)[:, None] - radius)[None]
    weights = jnp.asarray(np.exp(-(distance**2) / (2 * sigma**2)), jnp.float32)
    return jnp.where(distance.astype(np.int32) <= reach[:, None, None], weights, 0.0)


def _top_of_parabola(near: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """-H^-1 g of [M, 3, 3] values (y, x) in pixels, and whether the parabola has a top at all."""
    slope_x = 0.5 * (near[:, 1, 2] - near[:, 1, 0])
    slope_y = 0.5 * (near[:, 2, 1] - near[:, 0, 1])
    curve_x = near[:, 1, 2] - 2 * near[:, 1, 1] + near[:, 1, 0]
    curve_y = near[:, 2, 1] - 2 * near[:, 1, 1] + near[:, 0, 1]
    twist = 0.25 * (near[:, 2, 2] - near[:, 0, 2] - near[:, 2, 0] + near[:, 0, 0])
    determinant = curve_x * curve_y - twist**2
    # Below this the logarithms differ by rounding only: a flat map.
    has_top = (determinant > 1e-10) & (curve_x < 0)
    safe = jnp.where(has_top, determinant, 1.0)
    return (twist * slope_y - curve_y * slope_x) / safe, (twist * slope_x - curve_x * slope_y) / safe, has_top
