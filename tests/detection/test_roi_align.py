"""RoIAlign against a plain loop over samples, and against torch's own sampling."""

import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.detection import roi_align


def _sample(features, y, x):
    """The published rule in double precision: {(row, column): weight} of one sample."""
    height, width, _ = features.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return {}
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = (0.0 if top == height - 1 else y - top), (0.0 if left == width - 1 else x - left)
    weights = {}
    for row, share_y in ((top, 1 - down), (bottom, down)):
        for column, share_x in ((left, 1 - across), (right, across)):
            weights[row, column] = weights.get((row, column), 0.0) + share_y * share_x
    return weights


def _weights_by_loop(features, boxes, size, stride, sampling_ratio, aligned):
    """float64 [N, P, Q, H, W]: the operator is linear, and this is its matrix."""
    matrix = np.zeros((len(boxes), *size, *features.shape[:2]))
    for n, box in enumerate(boxes.astype(np.float64)):
        x1, y1, x2, y2 = box / stride - (0.5 if aligned else 0.0)
        high, wide = y2 - y1, x2 - x1
        if not aligned:
            high, wide = max(high, 1.0), max(wide, 1.0)
        for p, q, i, j in np.ndindex(*size, sampling_ratio, sampling_ratio):
            y = y1 + (p + (i + 0.5) / sampling_ratio) * high / size[0]
            x = x1 + (q + (j + 0.5) / sampling_ratio) * wide / size[1]
            for place, weight in _sample(features, y, x).items():
                matrix[(n, p, q, *place)] += weight / sampling_ratio**2
    return matrix


def _boxes(number, height, width, stride, seed=0):
    """Inside the map, half outside and outside, some reversed."""
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(-0.5, 1.5, (number, 4)) * np.array([width, height, width, height]) * stride
    ordered = np.concatenate(
        [np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1
    )
    return np.where(np.arange(number)[:, None] % 5 == 0, boxes, ordered).astype(np.float32)


def _features(height, width, channels=3, seed=1):
    return np.random.default_rng(seed).normal(size=(height, width, channels)).astype(np.float32)


CASES = [
    (13, 17, (7, 7), 16, 2),
    (30, 40, (7, 7), 8, 1),
    (9, 21, (3, 5), 10, 3),
    (1, 6, (2, 7), 4, 2),
    (1, 1, (2, 2), 3.7, 2),
]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("height, width, size, stride, sampling_ratio", CASES)
def test_is_the_plain_loop_forward_and_backward(height, width, size, stride, sampling_ratio, aligned):
    features, boxes = _features(height, width), _boxes(25, height, width, stride)
    matrix = _weights_by_loop(features, boxes, size, stride, sampling_ratio, aligned)
    assert matrix.any() and (height == 1 or (matrix.sum((-1, -2)) < 0.99).any())
    options = dict(size=size, stride=stride, sampling_ratio=sampling_ratio, aligned=aligned)
    pooled, pull = jax.vjp(lambda features: roi_align(features, boxes, **options), features)
    chex.assert_shape(pooled, (25, *size, 3))
    chex.assert_type(pooled, jnp.float32)
    np.testing.assert_allclose(pooled, np.einsum("npqhw,hwc->npqc", matrix, features), atol=5e-5)
    gradient = np.random.default_rng(2).normal(size=pooled.shape).astype(np.float32)
    expected = np.einsum("npqhw,npqc->hwc", matrix, gradient)
    np.testing.assert_allclose(pull(jnp.asarray(gradient))[0], expected, atol=5e-4)


@pytest.mark.parametrize("aligned", [True, False])
def test_is_torch_grid_sample_inside_the_map(aligned):
    torch = pytest.importorskip("torch")
    features = _features(20, 15, 4)
    rng = np.random.default_rng(3)
    corner = rng.uniform(8, 100, (30, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(16, 100, (30, 2))], 1).astype(np.float32)
    tensor = torch.tensor(features.transpose(2, 0, 1)[None], requires_grad=True)
    low, high = (torch.tensor(boxes[:, at]) / 16 - 0.5 * aligned for at in (slice(2), slice(2, 4)))
    shares = (torch.arange(14) + 0.5) / 14
    # [30, 14, 2] places (x, y) in feature pixels, then grid_sample's own -1 to 1 from centre to centre.
    places = low[:, None] + shares[:, None] * (high - low)[:, None]
    scaled = 2 * places / torch.tensor([14.0, 19.0]) - 1
    grid = torch.stack(torch.broadcast_tensors(scaled[:, None, :, 0], scaled[:, :, None, 1]), -1)
    sampled = torch.nn.functional.grid_sample(tensor.expand(30, -1, -1, -1), grid, align_corners=True)
    expected = torch.nn.functional.avg_pool2d(sampled, 2)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (expected * weights).sum().backward()
    pooled, pull = jax.vjp(lambda features: roi_align(features, boxes, stride=16, aligned=aligned), features)
    np.testing.assert_allclose(pooled, expected.detach().numpy().transpose(0, 2, 3, 1), atol=2e-5)
    gradient = pull(jnp.asarray(weights.numpy().transpose(0, 2, 3, 1)))[0]
    np.testing.assert_allclose(gradient, tensor.grad[0].numpy().transpose(1, 2, 0), atol=2e-4)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("height, width, size, stride, sampling_ratio", CASES)
def test_is_torchvisions_kernel(height, width, size, stride, sampling_ratio, aligned):
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    features, boxes = _features(height, width), _boxes(25, height, width, stride)
    tensor = torch.tensor(features.transpose(2, 0, 1)[None].copy(), requires_grad=True)
    expected = ops.roi_align(tensor, [torch.tensor(boxes)], size, 1 / stride, sampling_ratio, aligned)
    gradient = np.random.default_rng(2).normal(size=(25, *size, 3)).astype(np.float32)
    expected.backward(torch.tensor(gradient.transpose(0, 3, 1, 2).copy()))
    options = dict(size=size, stride=stride, sampling_ratio=sampling_ratio, aligned=aligned)
    pooled, pull = jax.vjp(lambda features: roi_align(features, boxes, **options), features)
    np.testing.assert_allclose(pooled, expected.detach().numpy().transpose(0, 2, 3, 1), atol=5e-5)
    np.testing.assert_allclose(pull(gradient)[0], tensor.grad[0].numpy().transpose(1, 2, 0), atol=5e-4)


def _for_tpu(as_on, monkeypatch, run=400):
    """The formulation for TPU, a few boxes at a time."""
    as_on("tpu")
    monkeypatch.setattr(importlib.import_module("hardmine_jax.detection.roi_align"), "TPU_RUN", run)


@pytest.mark.parametrize("height, width, size, stride, sampling_ratio", CASES[2:])
def test_products_for_tpu_are_the_plain_loop(height, width, size, stride, sampling_ratio, as_on, monkeypatch):
    _for_tpu(as_on, monkeypatch)
    test_is_the_plain_loop_forward_and_backward(height, width, size, stride, sampling_ratio, True)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_what_is_not_finite_stays_where_it_is_on_tpu_too(bad, as_on, monkeypatch):
    features, boxes = np.stack([_features(9, 11), _features(9, 11)]), np.stack([_boxes(20, 9, 11, 8)] * 2)
    features[1, 8, 10, 1] = bad

    def run(features, boxes, gradient):
        pooled, pull = jax.vjp(lambda features: roi_align(features, boxes, stride=8), features)
        return pooled, pull(gradient)[0]

    gradient = np.ones((2, 20, 7, 7, 3), np.float32)
    seen = np.argwhere(np.asarray(roi_align(features[0], boxes[0], stride=8))[..., 0])[0]
    gradient[(0, *seen, 0)] = bad
    pooled, pulled = expected = jax.jit(jax.vmap(run))(features, boxes, gradient)
    assert 0 < (~np.isfinite(pooled)).sum() < 400 and 0 < (~np.isfinite(pulled)).sum() <= 16
    _for_tpu(as_on, monkeypatch)
    found = jax.jit(jax.vmap(run))(features, boxes, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


def test_tpu_multiplies_in_float32():
    """By default it would round the operands of float32 products to bfloat16."""
    shapes = jax.ShapeDtypeStruct((9, 11, 3), jnp.bfloat16), jax.ShapeDtypeStruct((20, 4), jnp.float32)

    def pull(features, boxes):
        return jax.grad(lambda f: roi_align(f, boxes, stride=8).astype(jnp.float32).sum())(features)

    for function in (lambda *args: roi_align(*args, stride=8), pull):
        text = jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert len(products) == 2 and all("HIGHEST, HIGHEST" in line for line in products)
        assert not any("bf16" in line for line in products)


def test_a_ramp_is_read_at_the_centre_of_each_bin():
    """Bilinear samples of a linear map are exact; aligned puts feature pixel 0 at image pixel stride / 2."""
    ramp = np.stack(np.meshgrid(np.arange(32.0), np.arange(24.0)), -1).astype(np.float32)
    boxes = np.array([[40, 24, 152, 136]], np.float32)
    centres = (np.arange(7) + 0.5) * 16
    for aligned, shift in ((True, 0.5), (False, 0.0)):
        pooled = roi_align(ramp, boxes, stride=8, aligned=aligned)[0]
        np.testing.assert_allclose(pooled[0, :, 0], (40 + centres) / 8 - shift, rtol=1e-6)
        np.testing.assert_allclose(pooled[:, 0, 1], (24 + centres) / 8 - shift, rtol=1e-6)


def test_samples_about_the_border():
    features = np.ones((10, 10, 1), np.float32)
    # One bin, one sample, at y = -1, just beyond, 10, just beyond: a box of no height lies there.
    heights = np.array([-0.5, -0.51, 10.5, 10.51], np.float32)
    boxes = np.stack([np.full(4, 5.0), heights, np.full(4, 6.0), heights], 1).astype(np.float32)
    pooled = roi_align(features, boxes, size=(1, 1), stride=1, sampling_ratio=1)
    np.testing.assert_array_equal(pooled.ravel(), [1, 0, 1, 0])


def test_a_box_with_nan_or_infinities_is_zero():
    features = _features(10, 10)
    boxes = np.full((4, 4), 50, np.float32)
    boxes[np.arange(4), np.arange(4)] = np.nan
    boxes = np.concatenate([boxes, [[-np.inf, 0, 50, 50], [0, 0, 50, np.inf]]]).astype(np.float32)
    for aligned in (True, False):
        pooled, pull = jax.vjp(
            lambda features, aligned=aligned: roi_align(features, boxes, stride=16, aligned=aligned), features
        )
        assert not pooled.any()
        assert not pull(jnp.ones_like(pooled))[0].any()


def test_vmap_over_images_and_jit():
    features = np.stack([_features(20, 15, seed=seed) for seed in range(3)])
    boxes = np.stack([_boxes(20, 20, 15, 16, seed) for seed in range(3)])

    def align_and_pull(features, boxes):
        pooled, pull = jax.vjp(lambda features: roi_align(features, boxes, stride=16), features)
        return pooled, pull(jnp.ones_like(pooled))[0]

    batch = jax.jit(jax.vmap(align_and_pull))(features, boxes)
    looped = [align_and_pull(*image) for image in zip(features, boxes, strict=True)]
    jax.tree.map(lambda a, *b: np.testing.assert_allclose(a, np.stack(b), atol=1e-4), batch, *looped)


def test_gradient_of_many_boxes_takes_several_runs():
    """More numbers than one run holds, and a last run that overlaps the one before."""
    features, boxes = _features(6, 7, 256), _boxes(31, 6, 7, 4)

    def pull(boxes):
        pooled, pull = jax.vjp(lambda features: roi_align(features, boxes, stride=4), features)
        return pull(jnp.ones_like(pooled))[0]

    one_by_one = sum(np.asarray(pull(boxes[n : n + 1])) for n in range(31))
    np.testing.assert_allclose(pull(boxes), one_by_one, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_floats_are_summed_in_float32_and_stay(dtype):
    features, boxes = jnp.asarray(_features(12, 12), dtype), _boxes(20, 12, 12, 8)
    pooled, pull = jax.vjp(lambda features: roi_align(features, boxes, stride=8), features)
    wide, wide_pull = jax.vjp(
        lambda features: roi_align(features, boxes, stride=8), features.astype(jnp.float32)
    )
    (gradient,), (wide_gradient,) = pull(jnp.ones_like(pooled)), wide_pull(jnp.ones_like(wide))
    chex.assert_type([pooled, gradient], dtype)
    # The same compiled sums up to their order, rounded once.
    step = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(pooled.astype(jnp.float32), wide, rtol=step, atol=1e-5)
    np.testing.assert_allclose(gradient.astype(jnp.float32), wide_gradient, rtol=step, atol=1e-4)


def test_no_gradient_to_boxes_and_none_without_boxes():
    features, boxes = _features(12, 12), jnp.asarray(_boxes(4, 12, 12, 8))
    assert not jax.grad(lambda boxes: roi_align(features, boxes, stride=8).sum())(boxes).any()
    pooled, pull = jax.vjp(lambda features: roi_align(features, boxes[:0], stride=8), features)
    chex.assert_shape(pooled, (0, 7, 7, 3))
    assert not pull(pooled)[0].any()


def test_no_sample_is_kept_in_memory():
    """Besides the arguments: taps forward, a run of boxes backward. All samples would be 16 results."""
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(20, 20, 64), (4000, 4), (4000, 7, 7, 64)]
    ]

    def align(features, boxes):
        return roi_align(features, boxes, stride=16)

    def pull(features, boxes, gradient):
        return jax.vjp(lambda features: align(features, boxes), features)[1](gradient)[0]

    result = 4 * 4000 * 49 * 64
    forward = jax.jit(align).lower(*shapes[:2]).compile().memory_analysis()
    backward = jax.jit(pull).lower(*shapes).compile().memory_analysis()
    assert forward.temp_size_in_bytes < 0.1 * result
    assert backward.temp_size_in_bytes < 0.3 * result


def test_refusals():
    features, boxes = jnp.zeros((4, 4, 2)), jnp.zeros((3, 4))
    with pytest.raises(ValueError, match=r"features of shape \(1, 4, 4, 2\).*jax.vmap"):
        roi_align(features[None], boxes, stride=16)
    with pytest.raises(ValueError, match="sampling_ratio=0 < 1"):
        roi_align(features, boxes, stride=16, sampling_ratio=0)
    with pytest.raises(TypeError, match="sampling_ratio=2.0 must be a Python int"):
        roi_align(features, boxes, stride=16, sampling_ratio=2.0)


@pytest.mark.parametrize("planted", [np.nan, np.inf])
def test_a_pixel_reaches_the_bins_that_see_it_and_no_other(planted):
    """One without weight in a bin, beside a sample on the grid or read for none, is not in its sum."""
    features = _features(5, 6, channels=1)
    # On whole pixels, half outside, outside, and no box at all.
    boxes = np.float32([[1, 1, 3, 3], [-2, -1, 2, 2], [40, 40, 50, 50], [np.nan, 0, 4, 4], [0, 0, 0, 0]])
    spots = np.eye(30, dtype=np.float32).reshape(30, 5, 6, 1)

    def align(features):
        return roi_align(features, boxes, size=(2, 2), stride=1, sampling_ratio=1)

    clean, seen = align(features), jax.vmap(align)(spots) != 0
    found = jax.vmap(align)(np.where(spots == 1, np.float32(planted), features))
    np.testing.assert_array_equal(np.isfinite(found), ~seen)
    np.testing.assert_array_equal(found[~seen], np.broadcast_to(clean, seen.shape)[~seen])
    # And back: what a loss of one bin sends reaches the pixels that it sees.
    _, pull = jax.vjp(align, features)
    bins = np.eye(clean.size, dtype=np.float32).reshape(-1, *clean.shape)
    (gradients,) = jax.vmap(pull)(np.where(bins == 1, np.float32(planted), 0))
    np.testing.assert_array_equal(np.isfinite(gradients).reshape(-1, 30), ~seen.reshape(30, -1).T)
