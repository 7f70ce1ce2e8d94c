"""Boxes: overlap, regression targets, borders. A box is (x1, y1, x2, y2) in pixels, x2 > x1, y2 > y1.

x2 and y2 are where the box ends, not the last pixel in it: its width is x2 - x1, without the + 1 of older
code. Boxes lie on the last axis but one: [..., N, 4].
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.types import ArrayLike, as_floats

Sides = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

# exp of more than this is no box of the image it was seen in: 16 pixels grown to 1,000, as in Detectron.
_LARGEST_LOG_RATIO = float(np.log(1000 / 16))
# Pixels. Divided by less, an ordinary offset is no longer a finite float32.
_SMALLEST_SIDE = 1e-6
# Pixels in which overlaps are measured, so that the area of a side of 1e20 is still a finite float32: a power
# of 2, which rounds nothing. Not more, since the gradient holds one over the square of an area.
_UNIT = 2.0**10
# Pixels: the areas of two squares of this side have a finite sum.
_LARGEST_SIDE = 2.0**72


def sides(boxes: ArrayLike) -> Sides:
    """Boxes [..., 4] as four vectors (x1, y1, x2, y2) [...], float32 or wider: faster than an axis of 4.

    Raises:
      ValueError: if the last axis is not 4.
    """
    (boxes,) = as_floats(boxes)
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes of shape {boxes.shape} must end in an axis of 4: (x1, y1, x2, y2)")
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def area(boxes: ArrayLike) -> jax.Array:
    """(x2 - x1) (y2 - y1), and 0 for a box turned inside out: [..., 4] -> [...], square pixels.

    >>> area(jnp.array([[1.0, 2.0, 4.0, 6.0], [4.0, 2.0, 1.0, 6.0]]))
    Array([12.,  0.], dtype=float32)
    """
    return _area(sides(boxes))


def iou(a: ArrayLike, b: ArrayLike) -> jax.Array:
    """Intersection over union of every pair.

    iou_nm = |a_n and b_m| / (|a_n| + |b_m| - |a_n and b_m|)

    A box without area, turned inside out, with a NaN, or with a side from 2^72 (5e21) pixels overlaps
    nothing: 0. Boxes that do not touch give 0 with a gradient of zeros, and so do boxes that overlap nothing.

    Args:
      a: [..., N, 4] pixels.
      b: [..., M, 4] pixels; leading axes are broadcast against those of a.

    Returns:
      [..., N, M] in 0 .. 1, float32 (float64 where a or b is).

    Raises:
      ValueError: if a or b is not [..., 4] with an axis of boxes, or the leading axes do not fit.

    >>> iou(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 4.0, 2.0]]))
    Array([[0.33333334, 0.        ]], dtype=float32)
    """
    a, b = as_floats(a, b)
    for name, boxes in (("a", a), ("b", b)):
        if boxes.ndim < 2:
            raise ValueError(f"{name} of shape {boxes.shape} has no axis of boxes: give [..., N, 4]")
    leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    first = _sound(sides(jnp.broadcast_to(a, leading + a.shape[-2:])))
    second = _sound(sides(jnp.broadcast_to(b, leading + b.shape[-2:])))
    return _iou(tuple(x[..., :, None] for x in first), tuple(x[..., None, :] for x in second))


def iou_rows(boxes: ArrayLike, labels: ArrayLike | None = None) -> Callable[[jax.Array], jax.Array]:
    """For `mining.non_max`: the overlap of one box with all, so that no matrix of N x N is ever built.

    Args:
      boxes: [..., N, 4] pixels.
      labels: [..., N]; boxes of different labels count as not overlapping. None: all are of one kind.

    Returns:
      A function of an index, int32 [...], to [..., N].
    """
    four = _sound(sides(boxes))
    labels = None if labels is None else jnp.asarray(labels)

    def row(index: jax.Array) -> jax.Array:
        def chosen(values: jax.Array) -> jax.Array:
            if index.ndim == 0:
                # A slice, which XLA:CPU makes faster than a gather.
                return values[index][None]
            return jnp.take_along_axis(values, index[..., None], axis=-1, mode="promise_in_bounds")

        overlap = _iou(tuple(chosen(side) for side in four), four)
        return overlap if labels is None else jnp.where(labels == chosen(labels), overlap, 0)

    return row


def encode_boxes(
    boxes: ArrayLike, targets: ArrayLike, *, weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0)
) -> jax.Array:
    """What a regressor must answer at `boxes` so that `decode_boxes` gives `targets`.

    deltas = weights * ((x_t - x) / w, (y_t - y) / h, log(w_t / w), log(h_t / h)),  x, y: centres

    R-CNN, 1311.2524, appendix C; the weights are one over the standard deviations that Fast R-CNN normalises
    by, 0.1 and 0.2. Where one of the two boxes has no area, or is not finite, the deltas are 0 and have no
    gradient, so that padding stays finite.

    Args:
      boxes: [..., 4] pixels, the proposals.
      targets: [..., 4] pixels, of the shape of boxes (or one that broadcasts with it).
      weights: of x, y, w, h.

    Returns:
      [..., 4], float32 (float64 where boxes or targets are).

    Raises:
      ValueError: for boxes that are not [..., 4], or other than four positive weights.

    >>> encode_boxes(jnp.array([0.0, 0.0, 10.0, 10.0]), jnp.array([2.0, 0.0, 12.0, 20.0])).round(3)
    Array([2.   , 5.   , 0.   , 3.466], dtype=float32)
    """
    boxes, targets = as_floats(boxes, targets)
    _check_weights(weights)
    four, target = _centre_size(boxes), _centre_size(targets)
    smallest = jnp.minimum(jnp.minimum(*four[2:]), jnp.minimum(*target[2:]))
    usable = smallest > _SMALLEST_SIDE
    for number in (*four, *target):
        usable = usable & jnp.isfinite(number)
    # Before anything is worked out: the gradient of what is not usable would be 0 times infinity.
    x, y, width, height = (jnp.where(usable, number, 1) for number in four)
    x_target, y_target, width_target, height_target = (jnp.where(usable, number, 1) for number in target)
    deltas = (
        (x_target - x) / width,
        (y_target - y) / height,
        jnp.log(width_target / width),
        jnp.log(height_target / height),
    )
    return jnp.stack(
        [delta * jnp.asarray(weight, delta.dtype) for delta, weight in zip(deltas, weights, strict=True)],
        axis=-1,
    )


def decode_boxes(
    boxes: ArrayLike, deltas: ArrayLike, *, weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0)
) -> jax.Array:
    """The boxes that a regressor means: undoes `encode_boxes`.

    The change of a side is bounded at 1000 / 16 times, so that exp of a wild answer stays finite; nothing is
    cut at the border of the image (`clip_boxes`). A box that is not finite, and a delta of NaN, give NaN and
    no gradient. R-CNN, 1311.2524, appendix C.

    Args:
      boxes: [..., 4] pixels, the proposals.
      deltas: [..., 4], of the shape of boxes (or one that broadcasts with it: [N, C, 4] and [N, 1, 4]).
      weights: those of `encode_boxes`.

    Returns:
      [..., 4] pixels, float32 (float64 where boxes or deltas are).

    Raises:
      ValueError: for boxes or deltas that are not [..., 4], or other than four positive weights.

    >>> decode_boxes(jnp.array([0.0, 0.0, 10.0, 10.0]), jnp.array([2.0, 5.0, 0.0, 3.4657359])).astype(int)
    Array([ 2,  0, 12, 20], dtype=int32)
    """
    boxes, deltas = as_floats(boxes, deltas)
    _check_weights(weights)
    four, moves = _centre_size(boxes), sides(deltas)
    known = jnp.isfinite(four[0]) & jnp.isfinite(four[1]) & jnp.isfinite(four[2]) & jnp.isfinite(four[3])
    for move in moves:
        known = known & ~jnp.isnan(move)
    # Before anything is worked out, as in `encode_boxes`.
    x, y, width, height = (jnp.where(known, number, 0) for number in four)
    most = float(jnp.finfo(deltas.dtype).max)
    x_delta, y_delta, width_delta, height_delta = (
        jnp.where(known, jnp.clip(move, -most, most), 0) / jnp.asarray(weight, deltas.dtype)
        for move, weight in zip(moves, weights, strict=True)
    )
    x, y = x + x_delta * width, y + y_delta * height
    half_width = 0.5 * width * jnp.exp(jnp.minimum(width_delta, _LARGEST_LOG_RATIO))
    half_height = 0.5 * height * jnp.exp(jnp.minimum(height_delta, _LARGEST_LOG_RATIO))
    decoded = jnp.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)
    return jnp.where(known[..., None], decoded, jnp.nan)


def clip_boxes(boxes: ArrayLike, *, size: tuple[jax.typing.ArrayLike, jax.typing.ArrayLike]) -> jax.Array:
    """Cuts boxes at the border of an image: x to 0 .. W, y to 0 .. H.

    Args:
      boxes: [..., 4] pixels.
      size: (H, W) in pixels; both may be traced, and then of any shape that broadcasts with [...].

    Returns:
      [..., 4] pixels, in float32 or wider; a box wholly outside is left without area.

    >>> clip_boxes(jnp.array([-5.0, 2.0, 30.0, 40.0]), size=(20, 25))
    Array([ 0.,  2., 25., 20.], dtype=float32)
    """
    x1, y1, x2, y2 = sides(boxes)
    height, width = (jnp.asarray(side).astype(x1.dtype) for side in size)
    x1, x2 = (jnp.clip(x, 0, width) for x in (x1, x2))
    y1, y2 = (jnp.clip(y, 0, height) for y in (y1, y2))
    return jnp.stack([x1, y1, x2, y2], axis=-1)


def _area(four: Sequence[jax.Array]) -> jax.Array:
    x1, y1, x2, y2 = four
    return jnp.maximum(x2 - x1, 0) * jnp.maximum(y2 - y1, 0)


def _sound(four: Sides) -> Sides:
    """The boxes in units of `_UNIT`, and zeros for one that overlaps nothing: no NaN in a gradient."""
    x1, y1, x2, y2 = four
    width, height = x2 - x1, y2 - y1
    sound = (width > 0) & (height > 0) & (jnp.maximum(width, height) < _LARGEST_SIDE)
    x1, y1, x2, y2 = (jnp.where(sound, side, 0) / _UNIT for side in four)
    return x1, y1, x2, y2


def _iou(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
    both = (
        jnp.maximum(a[0], b[0]),
        jnp.maximum(a[1], b[1]),
        jnp.minimum(a[2], b[2]),
        jnp.minimum(a[3], b[3]),
    )
    overlap = _area(both)
    # The division must be safe as well as its result: 0 / 0 has a NaN for a gradient.
    some = overlap > 0
    return jnp.where(some, overlap / jnp.where(some, _area(a) + _area(b) - overlap, 1), 0)


def _centre_size(boxes: ArrayLike) -> Sides:
    x1, y1, x2, y2 = sides(boxes)
    # Halves are added, since the sum of two corners may be no finite float32.
    return x1 / 2 + x2 / 2, y1 / 2 + y2 / 2, x2 - x1, y2 - y1


def _check_weights(weights: Sequence[float]) -> None:
    known = [weight for weight in weights if not isinstance(weight, jax.Array)]
    if len(weights) != 4 or not all(0 < weight < np.inf for weight in known):
        raise ValueError(f"weights={tuple(weights)} must be four positive numbers: of x, y, w and h")
