"""CPN: published size, what each part reads, which loss teaches which part, targets."""

from typing import Any

import chex
import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.models import CPN, CPNHeatmaps, GlobalNet, RefineNet, ResNet
from hardmine_jax.models.cpn import target_sigmas

TINY = CPN(18, num_keypoints=5, width=4, features=8)
PARTS = {"num_keypoints": 5, "features": 8}


class Pyramid(nn.Module):
    """What comes after the trunk, over the image at three sizes."""

    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        common = dict(PARTS, dtype=self.dtype, axis_name=self.axis_name)
        levels = [images[:, :: 2**level, :: 2**level] for level in (2, 3, 4)]
        merged, heatmaps = GlobalNet(**common, name="global")(levels, train)
        return CPNHeatmaps(heatmaps, RefineNet(**common, name="refine")(merged, train))


def _images(batch=2, sides=(64, 96)) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, *sides, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(random_variables):
    return random_variables(TINY, _images())


@pytest.fixture(scope="module")
def pyramid(random_variables):
    return random_variables(Pyramid(), _images())


@pytest.mark.parametrize("depth, count", [(50, 27_009_514), (101, 46_001_642)])
def test_published_size(depth, count):
    images = jax.ShapeDtypeStruct((2, 256, 192, 3), jnp.float32)
    heatmaps, variables = jax.eval_shape(CPN(depth).init_with_output, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count
    assert isinstance(heatmaps, CPNHeatmaps) and len(heatmaps.levels) == 4
    chex.assert_shape(jax.tree.leaves(heatmaps), (2, 64, 48, 17))
    chex.assert_type(jax.tree.leaves(heatmaps), jnp.float32)
    assert heatmaps[-1] is heatmaps.refined


def test_published_parts():
    """As released, but for the 256 biases of the finest merge."""
    shapes = jax.eval_shape(CPN(50).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    counts = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in shapes.items()}
    assert counts == {"trunk": 23_508_032, "global": 1_603_464 - 256, "refine": 1_898_274}
    bottlenecks = {name for name in shapes["refine"] if name.startswith("level")}
    assert bottlenecks == {"level3_0", "level4_0", "level4_1", "level5_0", "level5_1", "level5_2"}


def test_training(check_training, variables):
    check_training(TINY, variables, _images())


def test_evaluation(check_evaluation, pyramid):
    check_evaluation(Pyramid(), pyramid, _images())


def test_synchronised_statistics(check_synchronised, pyramid):
    check_synchronised(Pyramid(), pyramid, _images(8, (32, 32)))


def test_heatmaps_begin_small_beside_targets_of_height_one():
    variables = jax.jit(RefineNet(**PARTS).init)(jax.random.key(0), [jnp.zeros((2, 1, 1, 8))])
    np.testing.assert_allclose(variables["params"]["head"]["bn"]["norm"]["scale"], 1 / 255)


def test_parts_alone_are_the_parts_of_the_whole(variables):
    def part(name):
        return {collection: variables[collection][name] for collection in variables}

    def by_parts(images):
        levels = ResNet(18, 4).apply(part("trunk"), images)
        merged, heatmaps = GlobalNet(**PARTS).apply(part("global"), levels)
        return CPNHeatmaps(heatmaps, RefineNet(**PARTS).apply(part("refine"), merged))

    images = _images()
    for one, other in zip(jax.jit(by_parts)(images), jax.jit(TINY.apply)(variables, images), strict=True):
        chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-2)


def test_merging_is_the_published_upsampling_then_convolution(random_variables):
    """In float32 the two orders differ by rounding."""
    rng = np.random.default_rng(1)
    levels = [jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32) for shape in [(8, 12, 3), (4, 6, 7)]]
    net = GlobalNet(**{**PARTS, "features": 6})
    variables = random_variables(net, levels)
    (coarse, fine), _ = jax.jit(net.apply)(variables, levels)

    def lateral(level, inputs):
        products = inputs @ variables["params"][f"lateral{level}"]["conv"]["kernel"][0, 0]
        return jax.nn.relu(products / np.sqrt(1 + 1e-5))

    np.testing.assert_allclose(coarse, lateral(3, levels[1]), rtol=1e-4, atol=1e-5)
    upsampled = jax.image.resize(coarse, (2, 8, 12, 6), "linear")
    expected = lateral(2, levels[0]) + upsampled @ variables["params"]["merge2"]["kernel"][0, 0]
    np.testing.assert_allclose(fine, expected, rtol=1e-4, atol=1e-5)


def test_each_loss_teaches_what_it_reads(training_pass, pyramid):
    """Table 7's variants without a loss on GlobalNet: its heads stay as they are, all else learns."""

    def moved(choose):
        _, gradients = training_pass(Pyramid(), pyramid, _images(), choose)
        flat = jax.tree_util.tree_leaves_with_path(gradients)
        return {(path[0].key, path[1].key) for path, gradient in flat if np.abs(gradient).max() > 1e-6}

    every = {(part, name) for part, names in pyramid["params"].items() for name in names}
    heads = {pair for pair in every if pair[1].startswith("head") and pair[0] == "global"}
    refine = {pair for pair in every if pair[0] == "refine"}
    assert moved(lambda heatmaps: heatmaps.refined) == every - heads
    assert moved(lambda heatmaps: heatmaps.levels) == every - refine


@pytest.mark.parametrize("shape", [(2, 48, 64, 3), (2, 64, 40, 3), (2, 64, 64, 1), (64, 64, 3)])
def test_images_that_do_not_fit_are_named(shape):
    with pytest.raises(ValueError, match="multiple of 32") as raised:
        jax.eval_shape(TINY.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    assert str(shape) in str(raised.value)


@pytest.mark.parametrize("kernels", [(15, 11, 9, 7), (23, 17, 13, 9)])
def test_sigmas_are_those_of_the_released_blur(kernels):
    """What is left is OpenCV's tables for small kernels, and the tail that a kernel cuts off."""
    for kernel, sigma in zip(kernels, target_sigmas(kernels), strict=True):
        dot = np.zeros((41, 41), np.float32)
        dot[20, 20] = 1.0
        blurred = cv2.GaussianBlur(dot, (kernel, kernel), 0)
        y, x = np.mgrid[-20:21, -20:21]
        ours = np.exp(-(x**2 + y**2) / (2 * sigma**2))
        np.testing.assert_allclose(ours, blurred / blurred.max(), atol=0.04)
