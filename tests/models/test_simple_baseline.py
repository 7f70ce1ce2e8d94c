"""SimpleBaseline: published size, heatmaps at a quarter of the image, and what training may change."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.models import ResNet, SimpleBaseline

TINY = SimpleBaseline(18, num_keypoints=5, width=4, deconvolution_features=4)


def _count(model, shape=(1, 64, 64, 3)) -> int:
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def test_published_parameter_count():
    assert _count(SimpleBaseline(50, num_keypoints=17)) == 33_999_697


@pytest.mark.parametrize("depth", [18, 34, 101, 152])
def test_other_depths_differ_in_the_trunk_only(depth):
    last = 512 if depth < 50 else 2048
    deconvolutions = 16 * (last + 256 + 256) * 256 + 3 * 2 * 256
    assert _count(SimpleBaseline(depth)) == _count(ResNet(depth)) + deconvolutions + 256 * 17 + 17


@pytest.mark.parametrize("sides", [(64, 64), (256, 192), (32, 96)])
def test_heatmaps_are_a_quarter_of_the_image(sides):
    images = jax.ShapeDtypeStruct((2, *sides, 3), jnp.float32)
    heatmaps, _ = jax.eval_shape(TINY.init_with_output, jax.random.key(0), images)
    chex.assert_shape(heatmaps, (2, sides[0] // 4, sides[1] // 4, 5))
    chex.assert_type(heatmaps, jnp.float32)


def test_training_moves_the_statistics_and_gives_every_parameter_a_gradient(random_variables):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32)
    variables = random_variables(TINY, images)

    def loss(params):
        run = {**variables, "params": params}
        heatmaps, updated = TINY.apply(run, images, train=True, mutable=["batch_stats"])
        return jnp.square(heatmaps - 1.0).mean(), updated["batch_stats"]

    differentiate = jax.value_and_grad(loss, has_aux=True)
    step = jax.jit(differentiate, compiler_options={"xla_backend_optimization_level": 0})
    (_, after), gradients = step(variables["params"])
    for before, now in zip(jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(after), strict=True):
        assert not np.array_equal(before, now)
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all() and np.any(gradient)


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"multiple of 32, got \(1, 100, 64, 3\)"):
        jax.eval_shape(SimpleBaseline(18, 5).init, jax.random.key(0), jnp.zeros((1, 100, 64, 3)))
