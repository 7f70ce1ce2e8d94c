"""HRNet: published sizes, heatmaps at a quarter of the image, and what training may change."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.models import HRNet
from hardmine_jax.models.hrnet import upsample_nearest

TINY = HRNet(width=4, num_keypoints=5, stem_features=4, stem_blocks=1, modules=(1, 1), blocks=1)


def _images(batch=2, sides=(32, 48)) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, *sides, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(random_variables):
    return random_variables(TINY, _images())


@pytest.mark.parametrize("width, published", [(32, 28_536_113), (48, 63_595_745)])
def test_published_parameter_counts(width, published):
    images = jax.ShapeDtypeStruct((2, 256, 192, 3), jnp.float32)
    heatmaps, variables = jax.eval_shape(HRNet(width).init_with_output, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == published
    assert set(variables) == {"params", "batch_stats"}
    chex.assert_shape(heatmaps, (2, 64, 48, 17))


@pytest.mark.parametrize("modules", [(1,), (1, 1), (1, 1, 1), (2, 1)])
def test_fewer_stages_are_a_smaller_network_of_the_same_form(modules):
    stride = 4 * 2 ** len(modules)
    model = TINY.clone(modules=modules)
    images = jax.ShapeDtypeStruct((2, 2 * stride, stride, 3), jnp.float32)
    heatmaps, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    chex.assert_shape(heatmaps, (2, stride // 2, stride // 4, 5))
    chex.assert_type(heatmaps, jnp.float32)


def test_training_moves_the_statistics_and_gives_every_parameter_a_gradient(variables):
    """No branch is computed that nothing reads."""

    def loss(params):
        run = {**variables, "params": params}
        heatmaps, updated = TINY.apply(run, _images(), train=True, mutable=["batch_stats"])
        return jnp.square(heatmaps - 1.0).mean(), updated["batch_stats"]

    (_, after), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    for before, now in zip(jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(after), strict=True):
        assert not np.array_equal(before, now)
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all() and np.any(gradient)


def test_evaluation_changes_nothing_and_sees_each_image_alone(variables):
    images = _images(4)
    apply = jax.jit(lambda images: TINY.apply(variables, images, train=False, mutable=["batch_stats"]))
    heatmaps, updated = apply(images)
    chex.assert_trees_all_equal(updated["batch_stats"], variables["batch_stats"])
    others, _ = apply(images.at[2:].set(7.0))
    np.testing.assert_allclose(others[:2], heatmaps[:2], atol=1e-6)
    assert np.abs(others[2:] - heatmaps[2:]).max() > 1e-3


def test_bfloat16_keeps_float32_outside(variables):
    model = TINY.clone(dtype=jnp.bfloat16)
    fresh = jax.eval_shape(model.init, jax.random.key(0), _images())
    chex.assert_trees_all_equal_shapes_and_dtypes(fresh, variables)
    heatmaps = jax.jit(model.apply)(variables, _images())
    chex.assert_type(heatmaps, jnp.float32)
    precise = jax.jit(TINY.apply)(variables, _images())
    difference = np.abs(heatmaps - precise).max() / np.abs(precise).max()
    assert 1e-6 < difference < 0.1


@pytest.mark.parametrize("shape", [(2, 40, 32, 3), (2, 32, 40, 3), (2, 32, 32, 1), (32, 32, 3)])
def test_images_that_do_not_fit_are_named(shape):
    model = TINY.clone(modules=(1, 1, 1))
    with pytest.raises(ValueError, match="multiple of 32") as raised:
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    assert str(shape) in str(raised.value)


@pytest.mark.parametrize("modules", [(), (1, 1, 1, 1)])
def test_stages_that_do_not_exist_are_named(modules):
    with pytest.raises(ValueError, match=r"one to three entries"):
        TINY.clone(modules=modules).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


@pytest.mark.parametrize("factor", [2, 4])
def test_upsampling_repeats_pixels(factor):
    maps = np.random.default_rng(0).normal(size=(2, 3, 2, 5)).astype(np.float32)
    expected = maps.repeat(factor, axis=1).repeat(factor, axis=2)
    np.testing.assert_array_equal(upsample_nearest(jnp.asarray(maps), factor), expected)
