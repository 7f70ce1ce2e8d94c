"""Stacked hourglasses: published size, what a stack sees of the one before, why there are no biases."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.models import Hourglass
from hardmine_jax.models.hourglass import Residual

TINY = Hourglass(2, num_keypoints=5, features=8, depth=2)


def _images(batch=2, sides=(32, 48)) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, *sides, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(random_variables):
    return random_variables(TINY, _images())


def _shapes(model, sides=(256, 256)):
    images = jax.ShapeDtypeStruct((2, *sides, 3), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


@pytest.mark.parametrize("stacks, count", [(1, 3_417_552), (2, 6_553_568), (8, 25_369_664)])
def test_published_size(stacks, count):
    heatmaps, variables = _shapes(Hourglass(stacks))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count
    assert isinstance(heatmaps, tuple) and len(heatmaps) == stacks
    chex.assert_shape(heatmaps, (2, 64, 64, 16))
    chex.assert_type(heatmaps, jnp.float32)


def test_the_published_biases_make_up_the_difference():
    """One for each output of every convolution but the heatmaps', which have theirs here."""
    _, variables = _shapes(Hourglass(8))
    flat = jax.tree_util.tree_leaves_with_path(variables["params"])
    kernels = {path[:-1]: leaf for path, leaf in flat if path[-1].key == "kernel"}
    biased = {path[:-1] for path, _ in flat if path[-1].key == "bias" and path[:-1] in kernels}
    assert {path[0].key for path in biased} == {f"stack{stack}_heatmaps" for stack in range(8)}
    assert sum(leaf.shape[-1] for path, leaf in kernels.items() if path not in biased) == 64_448


def test_training(check_training, variables):
    check_training(TINY, variables, _images())


def test_evaluation(check_evaluation, variables):
    check_evaluation(TINY, variables, _images())


def test_synchronised_statistics(check_synchronised, variables):
    check_synchronised(TINY, variables, _images(8, (32, 32)))


def test_a_bias_before_the_last_heatmaps_would_have_no_effect(variables):
    """Added to what the first stack hands on, a constant is gone after the normalisations of the second."""

    @jax.jit
    def last(shift):
        def add(call, args, kwargs, context):
            outputs = call(*args, **kwargs)
            return outputs + shift if context.module.name == "stack0_remap_features" else outputs

        with nn.intercept_methods(add):
            heatmaps, _ = TINY.apply(variables, _images(), train=True, mutable=["batch_stats"])
        return heatmaps[-1]

    before, after = last(jnp.float32(0.0)), last(jnp.float32(0.5))
    np.testing.assert_allclose(after, before, atol=1e-3 * np.abs(before).max())


def test_a_stack_reads_the_heatmaps_before_it(training_pass, random_variables):
    """A loss on the last heatmaps alone teaches every layer, through both 1x1 convolutions between stacks."""
    model = TINY.clone(depth=1)
    variables = random_variables(model, _images())
    _, gradients = training_pass(model, variables, _images(), lambda heatmaps: heatmaps[-1])
    for name, part in gradients.items():
        assert any(np.abs(gradient).max() > 1e-6 for gradient in jax.tree.leaves(part)), name


@pytest.mark.parametrize("depth, blocks", [(1, 1), (2, 2), (4, 1)])
def test_depth_and_blocks(depth, blocks):
    """Each depth has three places for residual modules, and there is one at the bottom and one after."""
    model = TINY.clone(depth=depth, blocks=blocks, stacks=1)
    side = 4 * 2**depth
    heatmaps, variables = _shapes(model, (side, 2 * side))
    chex.assert_shape(heatmaps, (2, side // 4, side // 2, 5))
    residuals = [name for name in variables["params"] if "conv3" in variables["params"][name]]
    assert len(residuals) == 3 + (3 * depth + 2) * blocks


def test_residual_module_keeps_what_comes_in(random_variables):
    """With the last convolution at zero it is the identity, or the projection."""
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 6)), jnp.float32)
    for features in (6, 10):
        model = Residual(features)
        variables = random_variables(model, inputs)
        params = variables["params"]
        params["conv3"]["kernel"] = np.zeros_like(params["conv3"]["kernel"])
        projected = inputs if features == 6 else inputs @ params["downsample_conv"]["kernel"][0, 0]
        np.testing.assert_allclose(model.apply(variables, inputs), projected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 40, 32, 3), (2, 32, 40, 3), (2, 32, 32, 1), (32, 32, 3)])
def test_images_that_do_not_fit_are_named(shape):
    with pytest.raises(ValueError, match="multiple of 16") as raised:
        jax.eval_shape(TINY.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    assert str(shape) in str(raised.value)


@pytest.mark.parametrize("field", ["stacks", "depth"])
def test_nothing_to_stack_is_named(field):
    with pytest.raises(ValueError, match=f"{field}=0.* must be 1 or more"):
        jax.eval_shape(TINY.clone(**{field: 0}).init, jax.random.key(0), _images())
