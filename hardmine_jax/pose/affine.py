"""Crops as 2x3 matrices, mirroring, half bodies. Host side (numpy); flips also take jax arrays.

Pixels are (x, y), the centre of the first pixel is 0.0, so an image of width W spans -0.5 .. W - 0.5.
A matrix [2, 3] takes (x, y, 1) of the source to (x, y) of the output, as `cv2.warpAffine` takes it
(without WARP_INVERSE_MAP). Boxes are xyxy in pixels. Visibility is 0 unlabelled, 1 occluded, 2 visible.
"""

from collections.abc import Sequence
from typing import TypeAlias, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.types import AnyArray, as_floats
from hardmine_jax.pose.skeleton import Skeleton
from hardmine_jax.pose.types import check_array, floats_alike

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
      ValueError: if a side of the box or of the output is not positive, or a number not finite.

    >>> affine_matrix((10.0, 20.0), (8.0, 4.0), 0.0, size=(8, 16)) @ [10.0, 20.0, 1.0]
    array([7.5, 3.5])
    """
    (width, height), (out_height, out_width) = (np.asarray(sides, np.float64) for sides in (scale_px, size))
    if not (width > 0 and height > 0 and out_height > 0 and out_width > 0):
        raise ValueError(f"scale_px={tuple(scale_px)} and size={tuple(size)} must have positive sides")
    if not np.isfinite([width, height, out_height, out_width, *centre, rotation]).all():
        raise ValueError(f"centre={tuple(centre)}, scale_px={tuple(scale_px)}, {rotation=} must be finite")
    cos, sin = np.cos(np.deg2rad(rotation)), np.sin(np.deg2rad(rotation))
    linear = np.array([[out_width / width], [out_height / height]]) * np.array([[cos, -sin], [sin, cos]])
    middle = np.array([out_width - 1, out_height - 1]) / 2
    return np.concatenate([linear, (middle - linear @ np.asarray(centre, np.float64))[:, None]], axis=1)


def invert_affine(matrix: np.ndarray) -> np.ndarray:
    """The matrix that undoes `matrix`.

    Args:
      matrix: [..., 2, 3].

    Returns:
      [..., 2, 3], worked out in float64: in the dtype of `matrix` where that is float32 or wider, else (for
      integers, for float16) in what holds it of these two.

    Raises:
      ValueError: for another shape, or a matrix that nothing undoes.
    """
    given = np.asarray(matrix)
    if given.shape[-2:] != (2, 3):
        raise ValueError(f"matrix of shape {given.shape} must be [..., 2, 3]")
    exact = given.astype(np.float64)
    try:
        linear = np.linalg.inv(exact[..., :2])
    except np.linalg.LinAlgError as error:
        raise ValueError(f"matrix {exact.tolist()} has no inverse: it takes a plane to a line") from error
    inverse = np.concatenate([linear, -linear @ exact[..., 2:]], axis=-1)
    return inverse.astype(np.result_type(given.dtype, np.float32))


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
      [..., N, 2] pixels, in float32 or wider.

    Raises:
      TypeError: for what is neither numpy nor jax.

    >>> apply_affine(np.array([[2.0, 0.0, 1.0], [0.0, 2.0, -1.0]]), np.array([[3.0, 4.0]]))
    array([[7., 7.]])
    """
    matrix, points = floats_alike(matrix), floats_alike(points)
    if isinstance(matrix, np.ndarray) and isinstance(points, np.ndarray):
        return points @ matrix[..., :2].swapaxes(-1, -2) + matrix[..., 2:].swapaxes(-1, -2)
    matrix, points = as_floats(matrix, points)
    # A single matrix gets the leading axes that it lacks, which are else a silent promotion of rank.
    matrix = matrix.reshape((1,) * (points.ndim - matrix.ndim) + matrix.shape)
    linear, offset = matrix[..., :2].swapaxes(-1, -2), matrix[..., 2:].swapaxes(-1, -2)
    # Left alone, accelerators multiply in 16 bits: pixels off at the far end of a photo.
    return jnp.matmul(points, linear, precision=jax.lax.Precision.HIGHEST) + offset


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
      ValueError: for a box that is turned inside out, not finite, or a single point (a line is fine); for an
        aspect or a padding that is not positive and finite.

    >>> box_to_centre_scale((0.0, 0.0, 10.0, 40.0), aspect=0.5, padding=1.5)
    (array([ 5., 20.]), array([30., 60.]))
    """
    if not (0 < aspect < np.inf and 0 < padding < np.inf):
        raise ValueError(f"aspect={aspect} and padding={padding} must be positive and finite")
    corners = np.asarray(box, np.float64)
    if corners.shape != (4,):
        raise ValueError(f"box of shape {corners.shape} must be (x1, y1, x2, y2)")
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
      (keypoints [..., K, 2] in float32 or wider, visibility [..., K]).

    Raises:
      ValueError: if K is not the skeleton's, or the two are not [..., K, 2] and [..., K].
      TypeError: for what is neither numpy nor jax.
    """
    check_array(keypoints)
    check_array(visibility)
    if keypoints.shape != (*visibility.shape, 2):
        raise ValueError(
            f"keypoints {keypoints.shape} and visibility {visibility.shape} must be [..., K, 2] and [..., K]"
        )
    _check_keypoints(keypoints.shape[-2], skeleton)
    permutation = np.asarray(skeleton.flip_permutation)
    # An integer would wrap around: mirrored, what lies beyond the border is below 0.
    points: Points = floats_alike(keypoints)
    shape = (1,) * (points.ndim - 1) + (2,)
    sign = np.array([-1, 1], points.dtype).reshape(shape)
    offset = np.array([width - 1, 0], points.dtype).reshape(shape)
    return points[..., permutation, :] * sign + offset, visibility[..., permutation]


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
      TypeError: for what is neither numpy nor jax.
    """
    check_array(heatmaps)
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

    Raises:
      ValueError: if the two are not [K, 2] and [K].
    """
    keypoints, visibility = np.asarray(keypoints), np.asarray(visibility)
    if keypoints.shape != (len(visibility), 2):
        raise ValueError(f"keypoints {keypoints.shape} and visibility {visibility.shape} must be [K, 2], [K]")
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
