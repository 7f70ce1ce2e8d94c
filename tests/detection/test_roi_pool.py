"""The table of maxima against a plain loop over bins, which is the published rule written out in numpy."""

import functools
import importlib
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hardmine_jax.detection import roi_align, roi_pool

F32 = np.float32


def _sides(first, last, count, length, scale):
    """[(start, stop)] of each bin along one axis, in the published code's own float32."""
    product_first, product_last = float(F32(first) * F32(scale)), float(F32(last) * F32(scale))
    # math.floor(|x| + 0.5) in double precision is exact for float32: halves go away from zero.
    start, stop = (int(math.copysign(math.floor(abs(x) + 0.5), x)) for x in (product_first, product_last))
    extent = F32(max(stop - start + 1, 1)) / F32(count)
    edges = [(int(np.floor(F32(p) * extent)), int(np.ceil(F32(p + 1) * extent))) for p in range(count)]
    return [tuple(min(max(edge + start, 0), length) for edge in pair) for pair in edges]


def _by_loop(features, boxes, size, stride):
    """Maxima, and places row * W + column of the first of each (-1 for none), [N, P, Q, C]."""
    height, width, channels = features.shape
    maxima = np.zeros((len(boxes), *size, channels), features.dtype)
    places = np.full(maxima.shape, -1)
    for n, (x1, y1, x2, y2) in enumerate(boxes):
        for p, (top, bottom) in enumerate(_sides(y1, y2, size[0], height, 1 / stride)):
            for q, (left, right) in enumerate(_sides(x1, x2, size[1], width, 1 / stride)):
                if bottom <= top or right <= left:
                    continue
                cells = features[top:bottom, left:right].reshape(-1, channels)
                first = cells.argmax(axis=0)
                maxima[n, p, q] = cells.max(axis=0)
                rows, columns = np.divmod(first, right - left)
                places[n, p, q] = (rows + top) * width + columns + left
    return maxima, places


def _gradient_by_loop(places, gradient, shape):
    total = np.zeros((shape[0] * shape[1], shape[2]), gradient.dtype)
    for channel in range(shape[2]):
        there = places[..., channel] >= 0
        np.add.at(total[:, channel], places[..., channel][there], gradient[..., channel][there])
    return total.reshape(shape)


def _boxes(number, height, width, stride, seed=0):
    """Inside the map, half outside and outside, some reversed, and some with corners on halves of a cell."""
    rng = np.random.default_rng(seed)
    extent = np.array([width, height, width, height]) * stride
    boxes = rng.uniform(-0.5, 1.5, (number, 4)) * extent
    ordered = np.concatenate(
        [np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1
    )
    boxes = np.where(np.arange(number)[:, None] % 5 == 0, boxes, ordered)
    halves = np.round(boxes / (stride / 2)) * (stride / 2)
    return np.where(np.arange(number)[:, None] % 3 == 0, halves, boxes).astype(np.float32)


def _features(height, width, channels=3, seed=1, levels=None):
    rng = np.random.default_rng(seed)
    shape = height, width, channels
    return (rng.integers(levels, size=shape) if levels else rng.normal(size=shape)).astype(np.float32)


CASES = [
    (13, 17, (7, 7), 16),
    (38, 50, (7, 7), 16),
    (60, 9, (7, 7), 8),
    (20, 15, (3, 5), 10),
    (1, 1, (7, 7), 4),
    (2, 31, (1, 1), 3.7),
    (5, 6, (14, 2), 12),
]


@pytest.mark.parametrize("height, width, size, stride", CASES)
def test_is_the_plain_loop(height, width, size, stride):
    features, boxes = _features(height, width), _boxes(60, height, width, stride)
    expected, _ = _by_loop(features, boxes, size, stride)
    pooled = roi_pool(features, boxes, size=size, stride=stride)
    chex.assert_shape(pooled, (60, *size, 3))
    chex.assert_type(pooled, jnp.float32)
    np.testing.assert_array_equal(pooled, expected)


@pytest.mark.parametrize("height, width, size, stride", [CASES[0], CASES[2], CASES[3]])
@pytest.mark.parametrize("levels", [None, 3])
def test_gradient_goes_to_the_first_maximum(height, width, size, stride, levels):
    """With three values most bins hold equal ones, as behind a ReLU."""
    features, boxes = _features(height, width, levels=levels), _boxes(60, height, width, stride)
    expected, places = _by_loop(features, boxes, size, stride)
    # Whole numbers: sums in another order are the same.
    gradient = np.random.default_rng(2).integers(-9, 9, expected.shape).astype(np.float32)
    pooled, pull = jax.vjp(lambda features: roi_pool(features, boxes, size=size, stride=stride), features)
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_array_equal(
        pull(jnp.asarray(gradient))[0], _gradient_by_loop(places, gradient, features.shape)
    )


def test_gradient_of_many_boxes_takes_several_runs():
    """More numbers than one run holds, and a last run that overlaps the one before."""
    features, boxes = _features(6, 7, 256, levels=5), _boxes(31, 6, 7, 4)
    expected, places = _by_loop(features, boxes, (7, 7), 4)
    gradient = np.random.default_rng(2).integers(-9, 9, expected.shape).astype(np.float32)
    _, pull = jax.vjp(lambda features: roi_pool(features, boxes, stride=4), features)
    np.testing.assert_array_equal(
        pull(jnp.asarray(gradient))[0], _gradient_by_loop(places, gradient, features.shape)
    )


def test_halves_are_rounded_away_from_zero():
    features = np.arange(1, 7, dtype=np.float32).reshape(1, 6, 1)
    boxes = np.array([[8, 0, 40, 0], [-8, 0, 24, 0], [7.9, 0, 39.9, 0]], np.float32)
    pooled = roi_pool(features, boxes, size=(1, 1), stride=16)
    # Cells 1 to 3, -1 to 2 and 0 to 2.
    np.testing.assert_array_equal(pooled.ravel(), [4, 3, 3])
    below = np.array([[0, 0, np.nextafter(F32(0.5), F32(0)), 0]], np.float32)
    assert roi_pool(features, below, size=(1, 1), stride=1).item() == 1


def test_the_last_of_seven_bins_of_57_cells_takes_one_more():
    """7 * float32(57 / 7) lies above 57: so in Caffe and torchvision, hence here."""
    features = np.arange(60, dtype=np.float32).reshape(60, 1, 1)
    pooled = roi_pool(features, np.array([[0, 0, 0, 56.0]], np.float32), size=(7, 1), stride=1)
    assert pooled[0, -1, 0, 0] == 57


def test_boxes_far_larger_than_the_map():
    """Their bins are larger than any two windows of the table."""
    features = _features(38, 50, levels=9)
    boxes = np.array([[-9000, -9000, 9000, 9000], [-4000, 100, 500, 90000], [0, -8000, 64, 8000]], np.float32)
    expected, places = _by_loop(features, boxes, (7, 7), 16)
    assert (expected == 0).any() and (expected == 8).any()
    pooled, pull = jax.vjp(lambda features: roi_pool(features, boxes, stride=16), features)
    np.testing.assert_array_equal(pooled, expected)
    gradient = np.ones_like(expected)
    np.testing.assert_array_equal(
        pull(jnp.asarray(gradient))[0], _gradient_by_loop(places, gradient, features.shape)
    )


def test_no_area_reversed_and_wholly_outside():
    features = _features(10, 10) - 100
    boxes = np.array(
        [[32, 48, 32, 48], [96, 96, 32, 32], [999, 0, 1099, 100], [-500, 0, -100, 100]], np.float32
    )
    pooled = roi_pool(features, boxes, stride=16)
    one_cell = np.broadcast_to(features[3, 2], (7, 7, 3))
    np.testing.assert_array_equal(pooled[0], one_cell)
    np.testing.assert_array_equal(pooled[1], np.broadcast_to(features[6, 6], (7, 7, 3)))
    assert not pooled[2:].any()


def test_a_box_with_nan_or_infinities():
    features = _features(10, 10)
    boxes = np.array(
        [[np.nan, 0, 50, 50], [0, 0, 50, np.nan], [-np.inf, 0, 50, 50], [0, 0, np.inf, 9]], np.float32
    )
    pooled, pull = jax.vjp(lambda features: roi_pool(features, boxes, stride=16), features)
    assert np.isfinite(pooled).all() and not pooled[:2].any()
    touched = np.zeros_like(pooled)
    touched[:2] = 1
    assert not pull(jnp.asarray(touched))[0].any()


def test_a_nan_feature_is_seen():
    features = _features(8, 8)
    features[2, 2, 1] = np.nan
    pooled = roi_pool(features, np.array([[0, 0, 7, 7]], np.float32), size=(2, 2), stride=1)
    expected = np.zeros((2, 2, 3), bool)
    expected[0, 0, 1] = True
    np.testing.assert_array_equal(np.isnan(pooled[0]), expected)


def test_vmap_over_images_and_jit():
    features = np.stack([_features(20, 15, seed=seed, levels=4) for seed in range(3)])
    boxes = np.stack([_boxes(20, 20, 15, 16, seed) for seed in range(3)])
    # In one image only: its extra windows must not touch the others.
    boxes[1, 0] = [-5000, -5000, 5000, 5000]

    def pool_and_pull(features, boxes):
        pooled, pull = jax.vjp(lambda features: roi_pool(features, boxes, stride=16), features)
        return pooled, pull(jnp.ones_like(pooled))[0]

    batch = jax.jit(jax.vmap(pool_and_pull))(features, boxes)
    looped = [pool_and_pull(*image) for image in zip(features, boxes, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, batch, jax.tree.map(lambda *x: np.stack(x), *looped))
    np.testing.assert_array_equal(batch[0][1], _by_loop(features[1], boxes[1], (7, 7), 16)[0])


def test_a_few_boxes_at_a_time_on_tpu(as_on, monkeypatch):
    as_on("tpu")
    monkeypatch.setattr(importlib.import_module("hardmine_jax.detection.roi_pool"), "TPU_RUN", 1000)
    test_vmap_over_images_and_jit()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_floats_are_exact_and_stay(dtype):
    features, boxes = jnp.asarray(_features(12, 12), dtype), _boxes(20, 12, 12, 8)
    pooled, pull = jax.vjp(lambda features: roi_pool(features, boxes, stride=8), features)
    (gradient,) = pull(jnp.ones_like(pooled))
    chex.assert_type([pooled, gradient], dtype)
    wide = features.astype(jnp.float32)
    expected, places = _by_loop(np.asarray(wide), boxes, (7, 7), 8)
    np.testing.assert_array_equal(pooled.astype(jnp.float32), expected)
    # Counts of more than 256 would stop growing if they were summed in bfloat16.
    by_loop = _gradient_by_loop(places, np.ones_like(expected), wide.shape)
    np.testing.assert_array_equal(gradient, jnp.asarray(by_loop).astype(dtype))


def test_no_gradient_to_boxes_and_none_without_boxes():
    features, boxes = _features(12, 12), jnp.asarray(_boxes(4, 12, 12, 8))
    assert not jax.grad(lambda boxes: roi_pool(features, boxes, stride=8).sum())(boxes).any()
    pooled, pull = jax.vjp(lambda features: roi_pool(features, boxes[:0], stride=8), features)
    chex.assert_shape(pooled, (0, 7, 7, 3))
    assert not pull(pooled)[0].any()


def test_gradient_is_that_of_torch():
    torch = pytest.importorskip("torch")
    features, boxes = _features(20, 15), _boxes(40, 20, 15, 16)
    tensor = torch.tensor(features, requires_grad=True)
    total, weights = 0.0, np.random.default_rng(3).normal(size=(40, 7, 7)).astype(np.float32)
    for n, (x1, y1, x2, y2) in enumerate(boxes):
        for p, (top, bottom) in enumerate(_sides(y1, y2, 7, 20, 1 / 16)):
            for q, (left, right) in enumerate(_sides(x1, x2, 7, 15, 1 / 16)):
                if bottom > top and right > left:
                    total = (
                        total + float(weights[n, p, q]) * tensor[top:bottom, left:right].amax((0, 1)).sum()
                    )
    total.backward()

    def loss(features):
        return (roi_pool(features, boxes, stride=16) * weights[..., None]).sum()

    np.testing.assert_allclose(jax.grad(loss)(features), tensor.grad.numpy(), atol=2e-5)


@pytest.mark.parametrize("height, width, size, stride", CASES)
@pytest.mark.parametrize("levels", [None, 3])
def test_is_torchvisions_kernel_bit_for_bit(height, width, size, stride, levels):
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    features, boxes = _features(height, width, levels=levels), _boxes(60, height, width, stride)
    tensor = torch.tensor(features.transpose(2, 0, 1)[None].copy(), requires_grad=True)
    expected = ops.roi_pool(tensor, [torch.tensor(boxes)], size, 1 / stride)
    gradient = np.random.default_rng(2).integers(-9, 9, (60, *size, 3)).astype(np.float32)
    expected.backward(torch.tensor(gradient.transpose(0, 3, 1, 2).copy()))
    pooled, pull = jax.vjp(lambda features: roi_pool(features, boxes, size=size, stride=stride), features)
    np.testing.assert_array_equal(pooled, expected.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(pull(gradient)[0], tensor.grad[0].numpy().transpose(1, 2, 0))


def test_gradient_takes_little_more_memory_than_its_arguments():
    features, boxes = _features(20, 20, 64), _boxes(1000, 20, 20, 16)

    def pull(features, gradient):
        return jax.vjp(lambda features: roi_pool(features, boxes, stride=16), features)[1](gradient)[0]

    gradient = jnp.zeros((1000, 7, 7, 64))
    memory = jax.jit(pull).lower(features, gradient).compile().memory_analysis()
    # The maxima are needed once more; indices of all places at once would be another two of these.
    assert memory.temp_size_in_bytes < 1.5 * gradient.nbytes


def test_refusals():
    features, boxes = jnp.zeros((4, 4, 2)), jnp.zeros((3, 4))
    with pytest.raises(ValueError, match=r"features of shape \(1, 4, 4, 2\).*jax.vmap"):
        roi_pool(features[None], boxes, stride=16)
    with pytest.raises(ValueError, match="int32 must be .* of floats"):
        roi_pool(features.astype(jnp.int32), boxes, stride=16)
    with pytest.raises(ValueError, match=r"boxes of shape \(3, 5\) must be \[N, 4\]"):
        roi_pool(features, jnp.zeros((3, 5)), stride=16)
    with pytest.raises(ValueError, match=r"size=\(0, 7\)"):
        roi_pool(features, boxes, size=(0, 7), stride=16)
    with pytest.raises(ValueError, match="stride=0 positive"):
        roi_pool(features, boxes, stride=0)


@pytest.mark.parametrize("pool", [roi_align, roi_pool])
def test_gradients_of_images_on_an_explicit_axis_without_set_mesh(pool):
    def gradient(features, boxes):
        pooled = jax.vmap(functools.partial(pool, size=(2, 2), stride=1))
        return jax.grad(lambda features: (pooled(features, boxes) ** 2).sum())(features)

    features = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    boxes = np.float32([[[0, 0, 4, 4]], [[1, 2, 5, 3]]])
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    placed = [
        jax.device_put(array, NamedSharding(mesh, PartitionSpec("data"))) for array in (features, boxes)
    ]
    chex.assert_trees_all_close(jax.jit(gradient)(*placed), jax.jit(gradient)(features, boxes), atol=1e-6)
