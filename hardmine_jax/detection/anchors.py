"""Anchors: the boxes that a dense detector asks about, everywhere in an image. xyxy in pixels."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_OCTAVE_THIRDS = (4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3))


def make_anchors(
    size: tuple[int, int],
    *,
    strides: Sequence[int] = (8, 16, 32, 64, 128),
    scales: Sequence[float] = _OCTAVE_THIRDS,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> jax.Array:
    """Boxes of every scale and ratio around every place of every level of a feature pyramid.

        centre = (stride * column, stride * row),  column < ceil(W / stride), row < ceil(H / stride)
        width = stride * scale / sqrt(ratio),  height = stride * scale * sqrt(ratio)

    The centre is where the network has its own, but for half a pixel: padded by half a kernel, it sees for
    (column, row) what lies around that pixel. Anchors may reach beyond the image. RetinaNet, 1708.02002,
    section 4, "Anchors", has areas of 32^2 to 512^2 on strides 8 to 128, three to an octave, and three
    ratios: the defaults.

    Args:
      size: (H, W) of the input in pixels.
      strides: pixels of the input per pixel of a level, finest first.
      scales: sides of a square anchor, in strides of its level.
      ratios: height over width.

    Returns:
      float32 [N, 4], ordered by level, row, column, ratio and scale: as the outputs of `models.RetinaNet`.

    Raises:
      ValueError: for a size, stride, scale or ratio that is not positive and finite, or none of one of them;
        for a size of another length than 2.

    >>> make_anchors((8, 16), strides=(8,), scales=(2.0,), ratios=(1.0, 4.0))
    Array([[ -8.,  -8.,   8.,   8.],
           [ -4., -16.,   4.,  16.],
           [  0.,  -8.,  16.,   8.],
           [  4., -16.,  12.,  16.]], dtype=float32)
    """
    for name, numbers in (("size", size), ("strides", strides), ("scales", scales), ("ratios", ratios)):
        if not len(numbers) or not all(0 < number < math.inf for number in numbers):
            raise ValueError(f"{name}={tuple(numbers)}: give one or more numbers above 0")
    if len(size) != 2:
        raise ValueError(f"size={tuple(size)}: give (H, W)")
    # In numpy: constants of the program that uses them, even where this is called under jit.
    root = np.sqrt(np.asarray(ratios, np.float64)).reshape(-1, 1)
    scale = np.asarray(scales, np.float64).reshape(1, -1)
    half = np.stack([scale / root, scale * root], axis=-1).reshape(-1, 2) / 2
    around = np.concatenate([-half, half], axis=-1)
    levels = []
    for stride in strides:
        rows, columns = (np.arange(math.ceil(side / stride)) for side in size)
        y, x = np.meshgrid(rows, columns, indexing="ij")
        centres = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
        levels.append(stride * (centres + around).reshape(-1, 4))
    return jnp.asarray(np.concatenate(levels), jnp.float32)
