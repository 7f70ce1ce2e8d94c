"""Anchors: a plain loop, areas and ratios, bad numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.detection import area, make_anchors


def test_is_the_plain_loop():
    size, strides, scales, ratios = (37, 50), (8, 16), (2.0, 3.0), (0.5, 1.0, 2.0)
    expected = []
    for stride in strides:
        for row in range(-(-size[0] // stride)):
            for column in range(-(-size[1] // stride)):
                for ratio in ratios:
                    for scale in scales:
                        width, height = stride * scale / ratio**0.5, stride * scale * ratio**0.5
                        x, y = stride * column, stride * row
                        expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    found = make_anchors(size, strides=strides, scales=scales, ratios=ratios)
    chex.assert_shape(found, ((5 * 7 + 3 * 4) * 6, 4))
    chex.assert_type(found, jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


def test_published_areas_and_ratios():
    """32^2 to 512^2 and two more to each octave, each of them wide, square and high."""
    anchors = make_anchors((128, 128))
    chex.assert_shape(anchors, (9 * (16**2 + 8**2 + 4**2 + 2**2 + 1), 4))
    sides = np.unique(np.sqrt(area(anchors)).round(2))
    octaves = 2.0 ** (np.arange(15) / 3)
    np.testing.assert_allclose(sides, 32 * octaves, atol=0.01)
    width, height = (anchors[:, 2:] - anchors[:, :2]).T
    np.testing.assert_allclose((height / width)[:9], [0.5] * 3 + [1.0] * 3 + [2.0] * 3, rtol=1e-5)


def test_is_a_constant_under_jit():
    anchors = jax.jit(lambda x: make_anchors((40, 40)) * x)(1.0)
    np.testing.assert_array_equal(anchors, make_anchors((40, 40)))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"size": (0, 8)}, r"size=\(0, 8\)"),
        ({"strides": ()}, r"strides=\(\)"),
        ({"scales": (4.0, -1.0)}, r"scales=\(4.0, -1.0\)"),
        ({"ratios": (0.0,)}, r"ratios=\(0.0,\)"),
        ({"strides": (float("inf"),)}, r"strides=\(inf,\)"),
    ],
)
def test_numbers_that_make_no_box_are_named(options, said):
    with pytest.raises(ValueError, match=f"{said}: give one or more numbers above 0"):
        make_anchors(**{"size": (8, 8), **options})


def test_a_size_is_height_and_width():
    with pytest.raises(ValueError, match=r"size=\(8, 8, 3\): give \(H, W\)"):
        make_anchors((8, 8, 3))
