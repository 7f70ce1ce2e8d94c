import chex
import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.models import normalise_images


def test_images_are_normalised_channel_by_channel():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    found = jax.jit(normalise_images)(images)
    chex.assert_type(found, jnp.float32)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(found, (images / 255 - mean) / deviation, atol=1e-6)


def test_the_mean_colour_becomes_zero():
    colour = jnp.round(255 * jnp.array([0.485, 0.456, 0.406])).astype(jnp.uint8)
    assert np.abs(normalise_images(jnp.broadcast_to(colour, (1, 2, 2, 3)))).max() < 0.01
