"""Crops: round trips, orientation by eye, and the flips as involutions."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardmine_jax.pose import (
    Skeleton,
    affine_matrix,
    apply_affine,
    box_to_centre_scale,
    decode_heatmaps,
    encode_heatmaps,
    flip_heatmaps,
    flip_keypoints,
    half_body,
    invert_affine,
)

FACE = Skeleton(("nose", "left eye", "right eye"), ((1, 2),), (0.1, 0.1, 0.1), ((0, 1), (0, 2)))
quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
number = st.floats(-500, 500)
side = st.floats(1, 1000)


@quick
@given(x=number, y=number, width=side, height=side, rotation=st.floats(-360, 360))
def test_inverse_undoes_the_matrix(x, y, width, height, rotation):
    matrix = affine_matrix((x, y), (width, height), rotation, size=(64, 48))
    points = np.random.default_rng(0).uniform(-100, 100, (10, 2))
    there = apply_affine(matrix, points)
    np.testing.assert_allclose(apply_affine(invert_affine(matrix), there), points, atol=1e-6)
    np.testing.assert_allclose(apply_affine(matrix, np.array([[x, y]])), [[23.5, 31.5]], atol=1e-6)


def test_unturned_box_fills_the_output_from_edge_to_edge():
    matrix = affine_matrix((50.0, 40.0), (30.0, 20.0), 0.0, size=(128, 96))
    corners = apply_affine(matrix, np.array([[35.0, 30.0], [65.0, 50.0]]))
    np.testing.assert_allclose(corners, [[-0.5, -0.5], [95.5, 127.5]])


def test_the_whole_image_at_its_own_size_is_the_identity():
    matrix = affine_matrix((31.5, 23.5), (64, 48), 0.0, size=(48, 64))
    np.testing.assert_allclose(matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_positive_rotation_turns_the_picture_clockwise():
    matrix = affine_matrix((10.0, 10.0), (20.0, 20.0), 90.0, size=(20, 20))
    above = apply_affine(matrix, np.array([[10.0, 4.0]]))
    np.testing.assert_allclose(above, [[9.5 + 6.0, 9.5]], atol=1e-9)


def test_rotations_compose_and_keep_distances():
    turn = {angle: affine_matrix((0.0, 0.0), (1.0, 1.0), angle, size=(1, 1)) for angle in (20.0, 35.0, 55.0)}
    points = np.random.default_rng(1).normal(size=(6, 2))
    twice = apply_affine(turn[20.0], apply_affine(turn[35.0], points))
    np.testing.assert_allclose(twice, apply_affine(turn[55.0], points), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(twice, axis=-1), np.linalg.norm(points, axis=-1))


def test_matrices_and_points_come_in_batches():
    matrices = np.stack([affine_matrix((i, 2 * i), (3 + i, 4), 10 * i, size=(8, 8)) for i in range(5)])
    points = np.random.default_rng(2).normal(size=(5, 7, 2))
    looped = np.stack([apply_affine(*pair) for pair in zip(matrices, points, strict=True)])
    np.testing.assert_allclose(apply_affine(matrices, points), looped)
    np.testing.assert_allclose(invert_affine(matrices)[3], invert_affine(matrices[3]))
    np.testing.assert_allclose(
        apply_affine(jnp.asarray(matrices), jnp.asarray(points)), looped, rtol=2e-4, atol=1e-3
    )
    for dtype in (np.float16, np.float32):
        narrow = matrices.astype(dtype)
        expected = invert_affine(narrow.astype(np.float64)).astype(np.float32)
        np.testing.assert_array_equal(invert_affine(narrow), expected)
        assert invert_affine(narrow).dtype == np.float32


def test_warp_affine_moves_pixels_where_the_matrix_moves_points():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is in the extra `train`")
    picture = np.zeros((80, 60), np.float32)
    picture[50, 20] = picture[51, 20] = picture[50, 21] = picture[51, 21] = 1.0
    matrix = affine_matrix((25.0, 45.0), (40.0, 50.0), 30.0, size=(100, 80))
    y, x = np.mgrid[:100, :80]
    warped = cv2.warpAffine(picture, matrix, (80, 100), flags=cv2.INTER_LINEAR)
    seen = np.array([(warped * x).sum(), (warped * y).sum()]) / warped.sum()
    np.testing.assert_allclose(apply_affine(matrix, np.array([[20.5, 50.5]]))[0], seen, atol=0.1)


@pytest.mark.parametrize("scale, size", [((0.0, 4.0), (8, 8)), ((4.0, -1.0), (8, 8)), ((4.0, 4.0), (0, 8))])
def test_sides_must_be_positive(scale, size):
    with pytest.raises(ValueError, match="positive sides"):
        affine_matrix((0.0, 0.0), scale, 0.0, size=size)


@quick
@given(x=number, y=number, width=side, height=side, aspect=st.floats(0.2, 5.0))
def test_box_gets_the_aspect_and_contains_the_box(x, y, width, height, aspect):
    centre, sides = box_to_centre_scale((x, y, x + width, y + height), aspect=aspect, padding=1.0)
    assert sides[0] / sides[1] == pytest.approx(aspect)
    assert sides[0] >= width - 1e-6 and sides[1] >= height - 1e-6
    assert min(sides[0] / width, sides[1] / height) == pytest.approx(1.0)
    np.testing.assert_allclose(centre, [x + width / 2, y + height / 2])
    padded = box_to_centre_scale((x, y, x + width, y + height), aspect=aspect, padding=1.25)[1]
    np.testing.assert_allclose(padded, 1.25 * sides)
    np.testing.assert_array_equal(
        box_to_centre_scale((x, y, x + width, y + height), aspect=aspect)[1], padded
    )


def test_a_line_is_a_box_and_a_point_is_not():
    np.testing.assert_allclose(box_to_centre_scale((0, 0, 0, 8), aspect=0.5, padding=1.0)[1], [4, 8])
    # Nor need a side be as long as a pixel.
    np.testing.assert_allclose(box_to_centre_scale((0, 0, 0.2, 0.2), aspect=1.0, padding=1.0)[1], [0.2, 0.2])
    for box in [(3, 3, 3, 3), (5, 0, 1, 4), (0, 0, np.nan, 4), (0, 0, np.inf, 4)]:
        with pytest.raises(ValueError, match="must be .x1, y1, x2, y2."):
            box_to_centre_scale(box, aspect=1.0)


@pytest.mark.parametrize("library", [np, jnp])
def test_flips_are_involutions_and_agree_with_each_other(library):
    rng = np.random.default_rng(3)
    keypoints = library.asarray(rng.uniform(1, 22, (2, 3, 2)).astype(np.float32))
    visibility = library.asarray(rng.integers(0, 3, (2, 3)))
    flipped, seen = flip_keypoints(keypoints, visibility, width=24, skeleton=FACE)
    np.testing.assert_allclose(flipped[:, 1, 0], 23 - keypoints[:, 2, 0], rtol=1e-6)
    np.testing.assert_array_equal(flipped[:, 1, 1], keypoints[:, 2, 1])
    np.testing.assert_array_equal(seen[:, 1], visibility[:, 2])
    back, seen_back = flip_keypoints(flipped, seen, width=24, skeleton=FACE)
    np.testing.assert_allclose(back, keypoints, rtol=1e-5)
    np.testing.assert_array_equal(seen_back, visibility)
    assert flipped.dtype == keypoints.dtype

    heatmaps = library.asarray(encode_heatmaps(jnp.asarray(keypoints), size=(24, 24), sigma=2.0))
    mirrored = flip_heatmaps(heatmaps, skeleton=FACE)
    np.testing.assert_array_equal(flip_heatmaps(mirrored, skeleton=FACE), heatmaps)
    np.testing.assert_allclose(decode_heatmaps(jnp.asarray(mirrored))[0], flipped, atol=0.03)


def test_a_shift_moves_the_mirrored_maps_right_and_leaves_the_first_columns():
    heatmaps = np.random.default_rng(0).random((2, 5, 7, 3), np.float32)
    mirrored = flip_heatmaps(heatmaps, skeleton=FACE)
    for shift in (1, 3):
        # As the released code has it: a copy of all but the last columns over all but the first.
        expected = mirrored.copy()
        expected[:, :, shift:] = mirrored[:, :, :-shift]
        for maps in (heatmaps, jnp.asarray(heatmaps)):
            np.testing.assert_array_equal(flip_heatmaps(maps, skeleton=FACE, shift=shift), expected)
    for shift in (-1, 7):
        with pytest.raises(ValueError, match=f"shift={shift} must lie in 0 .. 6"):
            flip_heatmaps(heatmaps, skeleton=FACE, shift=shift)


def test_flips_refuse_another_number_of_keypoints():
    with pytest.raises(ValueError, match="4 keypoints, the skeleton has 3"):
        flip_keypoints(np.zeros((4, 2)), np.zeros(4), width=8, skeleton=FACE)
    with pytest.raises(ValueError, match="4 keypoints, the skeleton has 3"):
        flip_heatmaps(np.zeros((8, 8, 4)), skeleton=FACE)


BODY = np.array([[10, 0], [5, 10], [15, 12], [6, 40], [14, 41], [10, 60]], np.float32)
UPPER = (0, 1, 2)


def test_half_body_is_a_tight_box_around_one_half_mostly_the_upper():
    boxes = [
        half_body(BODY, np.full(6, 2), UPPER, np.random.default_rng(seed)).tolist() for seed in range(400)
    ]
    upper, lower = [5, 0, 15, 12], [6, 40, 14, 60]
    assert all(box in (upper, lower) for box in boxes)
    assert 0.6 < boxes.count(upper) / 400 < 0.78


def test_half_body_uses_labelled_keypoints_only():
    rng = np.random.default_rng(4)
    visibility = np.array([2, 1, 0, 1, 1, 1])
    # Two labelled above are too few to be preferred.
    assert all(half_body(BODY, visibility, UPPER, rng).tolist() == [6, 40, 14, 60] for _ in range(20))
    # With too few below as well, the upper half is what remains.
    visibility = np.array([2, 1, 0, 1, 0, 0])
    assert all(half_body(BODY, visibility, UPPER, rng).tolist() == [5, 0, 10, 10] for _ in range(20))


def test_half_body_gives_up_where_no_half_spans_a_box():
    rng = np.random.default_rng(5)
    assert half_body(BODY, np.array([2, 0, 0, 2, 0, 0]), UPPER, rng) is None
    for point in ([0, 0], [3, 8]):
        assert half_body(np.zeros_like(BODY) + np.float32(point), np.full(6, 2), UPPER, rng) is None


def test_half_body_may_be_a_line_and_smaller_than_a_pixel():
    rng = np.random.default_rng(7)
    upright = BODY * np.float32([0, 1 / 128])
    boxes = {tuple(half_body(upright, np.full(6, 2), UPPER, rng)) for _ in range(40)}
    assert boxes == {(0, 0, 0, 12 / 128), (0, 40 / 128, 0, 60 / 128)}
    assert half_body(upright, np.full(6, 2), UPPER, rng).dtype == np.float64


def test_half_body_draws_once_whatever_comes_out():
    states = []
    for visibility in (np.full(6, 2), np.zeros(6), np.array([2, 0, 0, 2, 0, 0])):
        rng = np.random.default_rng(6)
        half_body(BODY, visibility, UPPER, rng)
        states.append(rng.random())
    assert len(set(states)) == 1
