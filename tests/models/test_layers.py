"""Convolutions against numpy and PyTorch, value and gradient; batch normalisation on one and 8 devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from hardmine_jax.models.layers import (
    BatchNorm,
    Conv,
    ConvNorm,
    DoubleConvTranspose,
    upsample_bilinear,
    upsample_nearest,
)

SIDES = [(7, 8), (8, 7)]


def _normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _value_and_gradients(function, arrays, cotangent):
    value, pull_back = jax.vjp(function, *arrays)
    return [np.asarray(x) for x in (value, *pull_back(jnp.asarray(cotangent)))]


def _same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=2e-5)


def _torch(function, arrays, cotangent):
    """Value and gradients of `function` of torch tensors, all of them numpy outside."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here, and is not installed")
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    value = function(torch, *tensors)
    value.backward(torch.tensor(cotangent))
    return [value.detach().numpy(), *(x.grad.numpy() for x in tensors)]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_conv_is_pytorchs(kernel_size, stride, sides):
    images, kernel, bias = _normal(2, *sides, 3), _normal(kernel_size, kernel_size, 3, 5, seed=1), _normal(5)
    conv = Conv(5, kernel_size, stride, use_bias=True)

    def ours(images, kernel, bias):
        return conv.apply({"params": {"kernel": kernel, "bias": bias}}, images)

    def theirs(torch, images, kernel, bias):
        images, kernel = images.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1)
        outputs = torch.nn.functional.conv2d(images, kernel, bias, stride=stride, padding=kernel_size // 2)
        return outputs.permute(0, 2, 3, 1)

    height, width = (-(-side // stride) for side in sides)
    cotangent = _normal(2, height, width, 5, seed=2)
    arrays = (images, kernel, bias)
    chex.assert_shape(ours(*arrays), (2, height, width, 5))
    _same(_value_and_gradients(ours, arrays, cotangent), _torch(theirs, arrays, cotangent))


def test_conv_pads_both_sides_alike():
    """XLA's "SAME" pads an even side below and to the right only, which is another network."""
    images = np.zeros((1, 4, 4, 1), np.float32)
    images[0, 0, 0] = 1.0
    kernel = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
    outputs = Conv(1, 3, 2).apply({"params": {"kernel": jnp.asarray(kernel)}}, jnp.asarray(images))
    np.testing.assert_array_equal(outputs[0, ..., 0], [[4.0, 0.0], [0.0, 0.0]])


def _overlap_add(images, kernel):
    """The docstring's formula, entry by entry, in float64."""
    batch, height, width, _ = images.shape
    outputs = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[-1]))
    for h in range(height):
        for w in range(width):
            for i in range(4):
                for j in range(4):
                    outputs[:, 2 * h + i, 2 * w + j] += np.float64(images[:, h, w]) @ kernel[i, j]
    return outputs[:, 1:-1, 1:-1]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("sides", [(1, 1), (3, 2), (4, 5)])
def test_transposed_convolution_is_everybody_elses(sides, platform, as_on):
    as_on(platform)
    images, kernel = _normal(2, *sides, 3), _normal(4, 4, 3, 5, seed=1)
    cotangent = _normal(2, 2 * sides[0], 2 * sides[1], 5, seed=2)

    def ours(images, kernel):
        return DoubleConvTranspose(5).apply({"params": {"kernel": kernel}}, images)

    def lax(images, kernel):
        # lax correlates: the kernel turned by 180 degrees, and 4 - 1 - padding on every side.
        return jax.lax.conv_transpose(images, kernel[::-1, ::-1], (2, 2), ((2, 2), (2, 2)))

    def theirs(torch, images, kernel):
        images, kernel = images.permute(0, 3, 1, 2), kernel.permute(2, 3, 0, 1)
        outputs = torch.nn.functional.conv_transpose2d(images, kernel, stride=2, padding=1)
        return outputs.permute(0, 2, 3, 1)

    found = _value_and_gradients(ours, (images, kernel), cotangent)
    chex.assert_shape(found[0], (2, 2 * sides[0], 2 * sides[1], 5))
    np.testing.assert_allclose(found[0], _overlap_add(images, kernel), atol=2e-5, rtol=2e-5)
    _same(found, _value_and_gradients(lax, (images, kernel), cotangent))
    _same(found, _torch(theirs, (images, kernel), cotangent))


def test_transposed_convolution_in_bfloat16_is_the_same_on_accelerators(as_on):
    layer = DoubleConvTranspose(5, dtype=jnp.bfloat16)
    arrays, cotangent = (_normal(2, 3, 4, 3), _normal(4, 4, 3, 5, seed=1)), _normal(2, 6, 8, 5, seed=2)

    def run(images, kernel):
        return layer.apply({"params": {"kernel": kernel}}, images).astype(jnp.float32)

    expected = _value_and_gradients(run, arrays, cotangent)
    as_on("tpu")
    for one, other in zip(_value_and_gradients(run, arrays, cotangent), expected, strict=True):
        # Each sum is rounded; overlap-add rounds its four parts as well.
        np.testing.assert_allclose(one, other, rtol=0.02, atol=0.06)


def _normalise(images, statistics=None, **options):
    """(outputs, statistics after) of a BatchNorm with unit scale."""
    norm = BatchNorm(**{"train": True, **options})
    variables = norm.init(jax.random.key(0), images[:1])
    if statistics is not None:
        variables = {**variables, "batch_stats": {"norm": statistics}}
    outputs, updated = norm.apply(variables, images, mutable=["batch_stats"])
    return outputs, updated["batch_stats"]["norm"]


def test_batch_norm_in_training_uses_the_batch_and_moves_the_running_statistics_by_a_tenth():
    images = 3.0 * _normal(6, 4, 4, 2) + 1.0
    before = {"mean": jnp.array([0.5, -1.0]), "var": jnp.array([2.0, 4.0])}
    outputs, after = _normalise(images, before)
    mean, variance = images.mean((0, 1, 2)), images.var((0, 1, 2))
    np.testing.assert_allclose(outputs, (images - mean) / np.sqrt(variance + 1e-5), atol=1e-4)
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * variance, rtol=1e-5)


def test_batch_norm_is_pytorchs_in_value_and_gradient():
    images, scale, bias = _normal(4, 3, 3, 2), _normal(2, seed=1), _normal(2, seed=2)

    def ours(images, scale, bias):
        variables = {
            "params": {"norm": {"scale": scale, "bias": bias}},
            "batch_stats": {"norm": {"mean": jnp.zeros(2), "var": jnp.ones(2)}},
        }
        return BatchNorm(train=True).apply(variables, images, mutable=["batch_stats"])[0]

    def theirs(torch, images, scale, bias):
        normalised = torch.nn.functional.batch_norm(
            images.permute(0, 3, 1, 2), None, None, scale, bias, training=True, eps=1e-5
        )
        return normalised.permute(0, 2, 3, 1)

    arrays, cotangent = (images, scale, bias), _normal(4, 3, 3, 2, seed=3)
    _same(_value_and_gradients(ours, arrays, cotangent), _torch(theirs, arrays, cotangent))


def test_batch_norm_in_evaluation_uses_and_keeps_the_running_statistics():
    images = _normal(3, 4, 4, 2)
    before = {"mean": jnp.array([0.5, -1.0]), "var": jnp.array([2.0, 4.0])}
    outputs, after = _normalise(images, before, train=False)
    expected = (images - np.asarray(before["mean"])) / np.sqrt(np.asarray(before["var"]) + 1e-5)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    chex.assert_trees_all_equal(after, before)


def test_synchronised_batch_norm_on_8_devices_sees_the_whole_batch():
    images = _normal(16, 3, 3, 2) + np.arange(16, dtype=np.float32).reshape(16, 1, 1, 1)
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    assert mesh.size == 8

    def on_devices(axis_name):
        def run(images):
            outputs, after = _normalise(images, axis_name=axis_name)
            return outputs, jax.tree.map(lambda x: x[None], after)

        spec = PartitionSpec("devices")
        return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))(images)

    expected, statistics = _normalise(images)
    outputs, copies = on_devices("devices")
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    for name, value in statistics.items():
        np.testing.assert_allclose(copies[name], np.tile(value, (8, 1)), rtol=1e-5)
    alone, _ = on_devices(None)
    assert np.abs(np.asarray(alone) - expected).max() > 0.5


@pytest.mark.parametrize("layer", [Conv(4), Conv(4, 1), DoubleConvTranspose(4), BatchNorm(train=True)])
def test_bfloat16_computes_and_float32_is_kept(layer):
    layer = layer.clone(dtype=jnp.bfloat16)
    outputs, variables = layer.init_with_output(jax.random.key(0), _normal(2, 4, 4, 3))
    assert outputs.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_first_scale_of_a_normalisation():
    variables = ConvNorm(4, 1, initial_scale=0.25).init(jax.random.key(0), _normal(2, 2, 2, 3))
    np.testing.assert_array_equal(variables["params"]["bn"]["norm"]["scale"], np.full(4, 0.25))


@pytest.mark.parametrize("factor", [2, 4])
def test_nearest_upsampling_repeats_pixels(factor):
    maps = _normal(2, 3, 2, 5)
    expected = maps.repeat(factor, axis=1).repeat(factor, axis=2)
    np.testing.assert_array_equal(upsample_nearest(jnp.asarray(maps), factor), expected)


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
@pytest.mark.parametrize("sides", [(4, 3), (1, 5)])
def test_bilinear_upsampling_is_that_of_pytorch(factor, sides):
    maps = _normal(2, *sides, 3)
    cotangent = _normal(2, factor * sides[0], factor * sides[1], 3, seed=1)
    ours = _value_and_gradients(lambda x: upsample_bilinear(x, factor), (maps,), cotangent)

    def theirs(torch, x):
        options = dict(scale_factor=factor, mode="bilinear", align_corners=False)
        return torch.nn.functional.interpolate(x.permute(0, 3, 1, 2), **options).permute(0, 2, 3, 1)

    _same(ours, _torch(theirs, (maps,), cotangent))


def test_bilinear_upsampling_keeps_the_type_and_a_slope():
    ramp = jnp.broadcast_to(jnp.arange(4.0, dtype=jnp.bfloat16).reshape(1, 1, 4, 1), (1, 2, 4, 1))
    upsampled = upsample_bilinear(ramp, 2)
    chex.assert_type(upsampled, jnp.bfloat16)
    np.testing.assert_array_equal(upsampled[0, 1, 1:-1, 0], (np.arange(1, 7) + 0.5) / 2 - 0.5)
