"""What networks expect of their images: ImageNet's mean and deviation, as in the published checkpoints."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

# Numpy stays numpy, and jax jax.
Images = TypeVar("Images", np.ndarray, jax.Array)

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def normalise_images(images: Images) -> Images:
    """uint8 RGB `[B, H, W, 3]`, 0 to 255 -> float32, `(image / 255 - mean) / deviation` of each channel."""
    shape = (1, 1, 1, 3)
    return (images.astype(jnp.float32) / 255.0 - MEAN.reshape(shape)) / DEVIATION.reshape(shape)
