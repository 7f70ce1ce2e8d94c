"""Heatmaps: encoding against the formula, decoding against HRNet's procedure and against the truth."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.pose import decode_heatmaps, encode_heatmaps, heatmap_to_image, image_to_heatmap

METHODS = ("dark", "quarter", "argmax")
# Compiled as a whole: op by op, each size would compile dozens of small kernels.
_decode = jax.jit(decode_heatmaps, static_argnames=("method", "blur_sigma"))
_encode = jax.jit(encode_heatmaps, static_argnames=("size", "sigma"))


def _anywhere(rng: np.random.Generator, size: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Points that fall on a pixel of the map."""
    return rng.uniform(-0.5, [size[1] - 0.5, size[0] - 0.5], (*shape, 2)).astype(np.float32)


def test_encode_equals_the_formula():
    keypoints = np.random.default_rng(0).uniform(-4, 14, (2, 3, 5, 2)).astype(np.float32)
    heatmaps = _encode(keypoints, size=(9, 7), sigma=1.5)
    chex.assert_shape(heatmaps, (2, 3, 9, 7, 5))
    y, x = np.mgrid[:9, :7][:, None, None, :, :, None]
    k = keypoints[:, :, None, None]
    expected = np.exp(-((x - k[..., 0]) ** 2 + (y - k[..., 1]) ** 2) / (2 * 1.5**2))
    chex.assert_trees_all_close(heatmaps, expected, atol=1e-6)


def test_encode_peaks_at_one_on_the_keypoint_and_adds_no_leading_axis():
    heatmaps = _encode(jnp.array([[3.0, 1.0]]), size=(4, 6), sigma=2.0)
    chex.assert_shape(heatmaps, (4, 6, 1))
    assert heatmaps[1, 3, 0] == 1.0 == heatmaps.max()


def test_what_is_not_labelled_is_zero_even_if_its_coordinates_are_nan():
    keypoints = jnp.array([[[1.0, 1.0], [jnp.nan, jnp.inf]]])
    where = jnp.array([[True, False]])

    def total(keypoints):
        return _encode(keypoints, size=(4, 4), sigma=1.0, where=where).sum()

    heatmaps = _encode(keypoints, size=(4, 4), sigma=1.0, where=where)
    assert not heatmaps[..., 1].any() and heatmaps[..., 0].max() == 1.0
    gradient = jax.grad(total)(keypoints)
    assert np.isfinite(gradient).all() and not gradient[0, 1].any()


def test_a_sigma_for_each_keypoint_and_one_that_is_traced():
    rng = np.random.default_rng(0)
    keypoints, sigmas = _anywhere(rng, (9, 12), (2, 3)), np.array([0.7, 1.5, 4.0], np.float32)
    each = encode_heatmaps(keypoints, size=(9, 12), sigma=sigmas)
    traced = jax.jit(lambda sigma: encode_heatmaps(keypoints, size=(9, 12), sigma=sigma))
    for place, sigma in enumerate(sigmas):
        one = encode_heatmaps(keypoints[:, place : place + 1], size=(9, 12), sigma=float(sigma))
        np.testing.assert_allclose(each[..., place], one[..., 0], rtol=1e-5, atol=1e-30)
        np.testing.assert_allclose(traced(sigma)[..., place], one[..., 0], rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(traced(sigmas), each, rtol=1e-6, atol=1e-30)
    for sigma, message in (
        (sigmas[:2], "one for each of K=3"),
        (sigmas - 0.7, "must be positive"),
        (jnp.float32(0), "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_heatmaps(keypoints, size=(9, 12), sigma=sigma)


def test_encode_takes_half_precision_and_works_in_single():
    assert _encode(jnp.ones((2, 2), jnp.bfloat16), size=(4, 4), sigma=1.0).dtype == jnp.float32


@pytest.mark.parametrize(
    "shape, size, sigma, message",
    [
        ((3, 3), (4, 4), 1.0, "must end in axes of K and of .x, y."),
        ((3, 2), (4, 4), 0.0, "sigma=0.0"),
        ((3, 2), (0, 4), 1.0, r"\(0, 4\)"),
    ],
)
def test_encode_refuses(shape, size, sigma, message):
    with pytest.raises(ValueError, match=message):
        _encode(jnp.zeros(shape), size=size, sigma=sigma)


@pytest.mark.parametrize("size", [(64, 48), (16, 16), (5, 7)])
@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_dark_finds_the_place_again_up_to_the_border(size, sigma):
    keypoints = _anywhere(np.random.default_rng(1), size, (2, 200))
    decoded, scores = _decode(_encode(keypoints, size=size, sigma=sigma))
    chex.assert_shape((decoded, scores), [(2, 200, 2), (2, 200)])
    chex.assert_trees_all_close(decoded, keypoints, atol=0.03)


def test_dark_is_exact_whatever_the_scale_and_blur():
    keypoints = _anywhere(np.random.default_rng(2), (32, 24), (100,))
    heatmaps = _encode(keypoints, size=(32, 24), sigma=2.0)
    for scale in (1e-3, 1.0, 1e4):
        for blur_sigma in (1.0, 2.0):
            decoded, scores = _decode(heatmaps * scale, blur_sigma=blur_sigma)
            chex.assert_trees_all_close(decoded, keypoints, atol=0.03)
            chex.assert_trees_all_close(scores, heatmaps.max(axis=(0, 1)) * scale, rtol=1e-6)
    rough = np.random.default_rng(2).random((32, 24, 5), np.float32)
    chex.assert_trees_all_equal(_decode(rough), _decode(rough, method="dark", blur_sigma=2.0))


def test_dark_beats_quarter_beats_argmax_under_noise():
    rng = np.random.default_rng(3)
    keypoints = _anywhere(rng, (64, 48), (500,))
    heatmaps = _encode(keypoints, size=(64, 48), sigma=2.0)
    heatmaps = heatmaps + 0.02 * rng.standard_normal(heatmaps.shape).astype(np.float32)
    errors = [
        float(np.linalg.norm(_decode(heatmaps, method=method)[0] - keypoints, axis=-1).mean())
        for method in METHODS
    ]
    assert errors == sorted(errors) and errors[0] < 0.5 * errors[1]


def _hrnet(heatmap: np.ndarray) -> tuple[np.ndarray, float]:
    """One map through HRNet's get_max_preds and the shift of get_final_preds, in plain numpy."""
    height, width = heatmap.shape
    index = int(np.argmax(heatmap))
    score = heatmap.max()
    place = np.array([index % width, index // width], np.float64) * (score > 0)
    x, y = int(place[0]), int(place[1])
    if 1 < x < width - 1 and 1 < y < height - 1:
        place[0] += 0.25 * np.sign(heatmap[y, x + 1] - heatmap[y, x - 1])
        place[1] += 0.25 * np.sign(heatmap[y + 1, x] - heatmap[y - 1, x])
    return place, score


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [(6, 5), (3, 3), (17, 12), (2, 8)])
def test_quarter_equals_hrnet_everywhere_on_the_map(size, dtype):
    rng = np.random.default_rng(4)
    # Few levels give ties; some maps are negative all over.
    heatmaps = (rng.integers(-2, 5, (8, *size, 25)) * (rng.random((8, 1, 1, 25)) - 0.2)).astype(dtype)
    decoded, scores = _decode(heatmaps, method="quarter")
    flat = np.moveaxis(np.asarray(heatmaps), -1, 1).reshape(-1, *size)
    expected = [_hrnet(heatmap) for heatmap in flat]
    np.testing.assert_array_equal(decoded.reshape(-1, 2), np.stack([place for place, _ in expected]))
    np.testing.assert_array_equal(scores.reshape(-1), np.stack([score for _, score in expected]))


def test_argmax_takes_the_first_of_equals_row_by_row():
    heatmaps = np.zeros((4, 5, 2), np.float32)
    heatmaps[1, 3, 0] = heatmaps[2, 0, 0] = heatmaps[3, 4, 1] = 2.0
    decoded, scores = _decode(heatmaps, method="argmax")
    np.testing.assert_array_equal(decoded, [[3, 1], [4, 3]])
    np.testing.assert_array_equal(scores, [2, 2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, -3.0, np.nan])
def test_a_map_without_a_peak_gives_the_corner_and_its_score(method, value):
    decoded, scores = _decode(np.full((6, 6, 2), value, np.float32), method=method)
    np.testing.assert_array_equal(decoded, np.zeros((2, 2)))
    np.testing.assert_array_equal(scores, np.full(2, value))


def test_dark_on_a_flat_positive_map_stays_on_the_first_pixel():
    for size in ((6, 6), (64, 48)):
        decoded, scores = _decode(np.full((*size, 1), 0.3, np.float32))
        np.testing.assert_array_equal(decoded, [[0.0, 0.0]])
        assert scores == pytest.approx(0.3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (12, 9)])
def test_every_map_decodes_to_a_finite_place_inside_it_near_the_highest_pixel(method, size):
    rng = np.random.default_rng(5)
    rough = rng.standard_normal((20, *size, 8)).astype(np.float32)
    spikes = np.zeros((20, *size, 8), np.float32)
    spikes[np.arange(20), rng.integers(size[0], size=20), rng.integers(size[1], size=20)] = 1.0
    for heatmaps in (rough, spikes, rough * 1e-30, rough * 1e30, spikes - 0.5):
        decoded, scores = map(np.asarray, _decode(heatmaps, method=method))
        coarse, _ = _decode(heatmaps, method="argmax")
        assert np.isfinite(decoded).all()
        assert (np.abs(decoded - coarse) <= 1).all()
        assert (decoded >= -0.5).all() and (decoded <= np.array([size[1] - 0.5, size[0] - 0.5])).all()
        np.testing.assert_array_equal(scores, heatmaps.max(axis=(1, 2)))


def test_decoding_has_a_finite_gradient_even_on_maps_without_a_peak():
    keypoints = _anywhere(np.random.default_rng(6), (12, 9), (6,))
    heatmaps = _encode(keypoints, size=(12, 9), sigma=1.5)
    for maps in (heatmaps, jnp.zeros_like(heatmaps), -heatmaps, jnp.ones_like(heatmaps)):
        gradient = jax.grad(lambda maps: sum(part.sum() for part in _decode(maps)))(maps)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("method", METHODS)
def test_leading_axes_jit_and_vmap_agree(method):
    heatmaps = np.random.default_rng(7).random((2, 3, 8, 6, 4), np.float32)
    decoded, scores = decode_heatmaps(heatmaps, method=method)
    chex.assert_shape((decoded, scores), [(2, 3, 4, 2), (2, 3, 4)])
    one = functools.partial(_decode, method=method)
    chex.assert_trees_all_close(jax.vmap(jax.vmap(one))(heatmaps), (decoded, scores), atol=1e-4)
    chex.assert_trees_all_close(one(heatmaps[0, 0]), (decoded[0, 0], scores[0, 0]), atol=1e-4)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method='softmax' must be"):
        _decode(jnp.zeros((4, 4, 1)), method="softmax")


def test_image_and_heatmap_pixels_are_one_picture():
    points = np.random.default_rng(8).uniform(0, 100, (5, 2))
    np.testing.assert_allclose(heatmap_to_image(image_to_heatmap(points, stride=4), stride=4), points)
    # The outer edges of picture and heatmap are the same lines.
    assert image_to_heatmap(-0.5, stride=4) == -0.5
    assert image_to_heatmap(255.5, stride=4) == 63.5
    # The centre of a heatmap pixel is the centre of the block of image pixels under it.
    assert heatmap_to_image(np.arange(3), stride=4).tolist() == [1.5, 5.5, 9.5]
    for origin in (0, 1.5, -2.0):
        there = image_to_heatmap(points, stride=4, origin=origin)
        np.testing.assert_allclose(heatmap_to_image(there, stride=4, origin=origin), points, atol=1e-5)
    assert heatmap_to_image(np.arange(3), stride=4, origin=0).tolist() == [0, 4, 8]
    np.testing.assert_allclose(
        image_to_heatmap(points, stride=4, origin=1.5), image_to_heatmap(points, stride=4)
    )
