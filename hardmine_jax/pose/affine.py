"""Crops as 2x3 matrices, mirroring, half bodies. Host side (numpy); flips also take jax arrays.

Pixels are (x, y), the centre of the first pixel is 0.0, so an image of width W spans -0.5 .. W - 0.5.
A matrix [2, 3] takes (x, y, 1) of the source to (x, y) of the output, as `cv2.warpAffine` takes it
(without WARP_INVERSE_MAP). Boxes are xyxy in pixels. Visibility is 0 unlabelled, 1 occluded, 2 visible.
"""

from collections.abc import Sequence
from typing import TypeAlias, TypeVar, overload

import jax
import numpy as np

from hardmine_jax.mining.types import AnyArray
from hardmine_jax.pose.skeleton import Skeleton

# A few numbers in a row, as a tuple or as numpy.
Numbers: TypeAlias = Sequence[float] | np.ndarray
# Numpy stays numpy, and jax jax.
Points = TypeVar("Points", np.ndarray, jax.Array)
Visibility = TypeVar("Visibility", np.ndarray, jax.Array)


def affine_matrix(
    centre: Numbers, scale_px: Numbers, rotation: float, *, size: tuple[int, int]
) -> np.ndarray:
    """Matrix of the crop that shows a (turned) source box, filling the output from edge to edge.

    output = diag(W/w, H/h) R(rotation) (source - centre) + ((W - 1)/2, (H - 1)/2)

    Args:
      centre: (x, y) of the box in source pixels.
      scale_px: (w, h) side lengths of the box in source pixels.
      rotation: degrees; positive turns the picture clockwise as one sees it (y points down).
      size: (H, W) of the output in pixels.

    Returns:
      float64 [2, 3], source to output.

    Raises:
      ValueError: if a side of the box or of the output is not positive.

    >>> affine_matrix((10.0, 20.0), (8.0, 4.0), 0.0, size=(8, 16)) @ [10.0, 20.0, 1.0]
    array([7.5, 3.5])
    """
    (width, height), (out_height, out_width) = scale_px, size
    if not (width > 0 and height > 0 and out_height > 0 and out_width > 0):
        raise ValueError(f"scale_px={tuple(scale_px)} and size={tuple(size)} must have positive sides")
    cos, sin = np.cos(np.deg2rad(rotation)), np.sin(np.deg2rad(rotation))
    linear = np.array([[out_width / width], [out_height / height]]) * np.array([[cos, -sin], [sin, cos]])
    middle = np.array([out_width - 1, out_height - 1]) / 2
    return np.concatenate([linear, (middle - linear @ np.asarray(centre, np.float64))[:, None]], axis=1)


def invert_affine(matrix: np.ndarray) -> np.ndarray:
    """The matrix that undoes `matrix`.

    Args:
      matrix: [..., 2, 3].

    Returns:
      [..., 2, 3], in the dtype of `matrix`, worked out in float64.
    """
    linear = np.linalg.inv(np.asarray(matrix[..., :2], np.float64))
    inverse = np.concatenate([linear, -linear @ matrix[..., 2:]], axis=-1)
    return inverse.astype(matrix.dtype)


@overload
def apply_affine(matrix: np.ndarray, points: np.ndarray) -> np.ndarray: ...
@overload
def apply_affine(matrix: AnyArray, points: jax.Array) -> jax.Array: ...
@overload
def apply_affine(matrix: jax.Array, points: AnyArray) -> jax.Array: ...
def apply_affine(matrix: AnyArray, points: AnyArray) -> AnyArray:
    """Takes points through a matrix.

    Args:
      matrix: [..., 2, 3].
      points: [..., N, 2] pixels; leading axes as those of `matrix`, or a single matrix for all.

    Returns:
      [..., N, 2] pixels.

    >>> apply_affine(np.array([[2.0, 0.0, 1.0], [0.0, 2.0, -1.0]]), np.array([[3.0, 4.0]]))
    array([[7., 7.]])
    """
    return points @ matrix[..., :2].swapaxes(-1, -2) + matrix[..., 2:].swapaxes(-1, -2)


def box_to_centre_scale(
    box: Numbers, *, aspect: float, padding: float = 1.25
) -> tuple[np.ndarray, np.ndarray]:
    """The smallest box of the wanted aspect around `box`, made `padding` times as large.

    Args:
      box: (x1, y1, x2, y2) in pixels.
      aspect: width / height of the crop that is to come.
      padding: 1.25 leaves HRNet's room around a person.

    Returns:
      (centre (x, y), sides (w, h)), float64 pixels, for `affine_matrix`.

    Raises:
      ValueError: for a box that is turned inside out, not finite, or a single point. A line is fine.

    >>> box_to_centre_scale((0.0, 0.0, 10.0, 40.0), aspect=0.5, padding=1.5)
    (array([ 5., 20.]), array([30., 60.]))
    """
    corners = np.asarray(box, np.float64)
    sides = corners[2:] - corners[:2]
    if not (np.isfinite(sides).all() and sides.min() >= 0 and sides.max() > 0):
        raise ValueError(f"box {tuple(corners.tolist())} must be (x1, y1, x2, y2) with x2 >= x1, y2 >= y1")
    width = max(sides[0], sides[1] * aspect)
    return (corners[:2] + corners[2:]) / 2, padding * np.array([width, width / aspect])


def flip_keypoints(
    keypoints: Points, visibility: Visibility, *, width: int, skeleton: Skeleton
) -> tuple[Points, Visibility]:
    """Mirrors keypoints left to right, together with an image of that width.

    Args:
      keypoints: [..., K, 2] pixels, numpy or jax.
      visibility: [..., K].
      width: W of the image in pixels; x becomes W - 1 - x.
      skeleton: whose `flip_pairs` change names.

    Returns:
      (keypoints [..., K, 2], visibility [..., K]).

    Raises:
      ValueError: if K is not the skeleton's.
    """
    _check_keypoints(keypoints.shape[-2], skeleton)
    permutation = np.asarray(skeleton.flip_permutation)
    shape = (1,) * (keypoints.ndim - 1) + (2,)
    sign = np.array([-1, 1], keypoints.dtype).reshape(shape)
    offset = np.array([width - 1, 0], keypoints.dtype).reshape(shape)
    return keypoints[..., permutation, :] * sign + offset, visibility[..., permutation]


def flip_heatmaps(heatmaps: Points, *, skeleton: Skeleton, shift: int = 0) -> Points:
    """Mirrors heatmaps left to right and swaps the paired channels; with shift 0, twice does nothing.

    Which shift lays the mirrored image's maps on the image's own follows from where in the image the network
    was trained to have its first heatmap pixel (`origin` of `heatmap_to_image`): mirrored twice, a peak comes
    back (2 origin + 1 - stride) / stride pixels off. Where heatmap = (image + 0.5) / stride - 0.5, as here,
    that is 0: shift 0 is exact, and with shift 1 the average would lie half a pixel to the right. Released
    networks of SimpleBaseline and HRNet were trained with heatmap = image / 4, there it is -3/4: the average
    lies 3/8 to the left, and with their SHIFT_HEATMAP, which is shift 1, 1/8 to the right.

    Args:
      heatmaps: [..., H, W, K], numpy or jax.
      skeleton: whose `flip_pairs` change channels.
      shift: pixels that the mirrored maps move to the right, 0 <= shift < W; the first `shift` columns stay.

    Returns:
      [..., H, W, K].

    Raises:
      ValueError: if K is not the skeleton's, or the shift is not in 0 .. W - 1.
    """
    _check_keypoints(heatmaps.shape[-1], skeleton)
    width = heatmaps.shape[-2]
    if not 0 <= shift < width:
        raise ValueError(f"shift={shift} must lie in 0 .. {width - 1}, less than the width of the heatmaps")
    mirrored = heatmaps[..., ::-1, :]
    if shift:
        mirrored = mirrored[..., np.r_[:shift, : width - shift], :]
    return mirrored[..., np.asarray(skeleton.flip_permutation)]


def half_body(
    keypoints: np.ndarray, visibility: np.ndarray, upper: Sequence[int], rng: np.random.Generator
) -> np.ndarray | None:
    """A tight box around the upper or the lower half of a body, as HRNet draws it for augmentation.

    The upper half is preferred with probability 0.69; a half needs three labelled keypoints to be
    preferred, and two to be used at all.

    Args:
      keypoints: [K, 2] pixels.
      visibility: [K]; 0 is unlabelled.
      upper: indices of the keypoints above the hips.
      rng: one number is drawn, whatever comes out.

    Returns:
      float64 (x1, y1, x2, y2) in pixels, not padded; None where neither half spans a box.
    """
    # HRNet's coin is a normal number below 0.5, so it is no fair one: P = 0.69.
    prefer_upper = rng.standard_normal() < 0.5
    is_upper = np.isin(np.arange(len(visibility)), np.asarray(upper, int))
    above = keypoints[is_upper & (visibility > 0)].astype(np.float64)
    below = keypoints[~is_upper & (visibility > 0)].astype(np.float64)
    if prefer_upper and len(above) > 2:
        chosen = above
    else:
        chosen = below if len(below) > 2 else above
    if len(chosen) < 2 or not np.ptp(chosen, axis=0).max() > 0:
        return None
    return np.concatenate([chosen.min(axis=0), chosen.max(axis=0)])


def _check_keypoints(count: int, skeleton: Skeleton) -> None:
    if count != skeleton.num_keypoints:
        raise ValueError(f"{count} keypoints, the skeleton has {skeleton.num_keypoints} {skeleton.names}")
