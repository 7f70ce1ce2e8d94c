"""Overlap, regression targets and borders, against plain loops and their own inverses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from hardmine_jax.detection import area, clip_boxes, decode_boxes, encode_boxes, iou
from hardmine_jax.detection.boxes import iou_rows

# Without area (a point, two lines), inside out (one way, both ways), all zero as padding is, and a sound one.
FLAWED = np.array(
    [
        [5, 5, 5, 5],
        [2, 5, 8, 5],
        [5, 2, 5, 8],
        [8, 2, 2, 8],
        [8, 8, 2, 2],
        [0, 0, 0, 0],
        [0, 0, 10, 10],
    ],
    np.float32,
)


def _iou_by_loops(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    result = np.zeros((len(a), len(b)))
    for n, (ax1, ay1, ax2, ay2) in enumerate(a.astype(np.float64)):
        for m, (bx1, by1, bx2, by2) in enumerate(b.astype(np.float64)):
            width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
            if width > 0 and height > 0:
                both = width * height
                result[n, m] = both / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - both)
    return result


def test_iou_is_the_plain_loop(heaps):
    a, b = heaps(60), np.concatenate([heaps(50), FLAWED])
    overlaps = jax.jit(iou)(a, b)
    chex.assert_shape(overlaps, (60, 57))
    chex.assert_type(overlaps, jnp.float32)
    expected = _iou_by_loops(a, b)
    assert (expected > 0.5).sum() > 60
    np.testing.assert_allclose(overlaps, expected, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(overlaps) == 0, expected == 0)


_SIDE = st.integers(0, 20)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_SIDE, _SIDE, _SIDE, _SIDE), min_size=3, max_size=3))
def test_iou_laws(corners):
    boxes = np.array(corners, np.float32)
    overlaps = np.asarray(iou(boxes, boxes))
    assert ((overlaps >= 0) & (overlaps <= 1)).all()
    np.testing.assert_array_equal(overlaps, overlaps.T)
    np.testing.assert_array_equal(overlaps.diagonal(), np.asarray(area(boxes)) > 0)
    np.testing.assert_array_equal(overlaps, iou(boxes * 4 + 8, boxes * 4 + 8))
    np.testing.assert_allclose(overlaps, _iou_by_loops(boxes, boxes), rtol=1e-6)


def test_flawed_boxes_overlap_nothing_and_have_no_gradient():
    broken = np.concatenate([FLAWED[:-1], np.full((1, 4), np.nan, np.float32)])
    for a, b in ((broken, FLAWED), (FLAWED, broken), (broken, broken)):
        np.testing.assert_array_equal(iou(a, b), np.zeros((7, 7)))

    def total(a, b):
        return iou(a, b).sum()

    gradient_of = jax.jit(jax.grad(total, argnums=(0, 1)))
    for gradient in gradient_of(FLAWED, FLAWED):
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[:-1], 0)
    # Far apart, and touching at an edge.
    others = np.array([[50, 50, 60, 60], [10, 0, 20, 10]], np.float32)
    assert np.isfinite(gradient_of(FLAWED, others)[0]).all()


def test_area():
    np.testing.assert_array_equal(area(FLAWED), [0, 0, 0, 0, 0, 0, 100])
    chex.assert_type(area(np.array([[0, 0, 3, 2]])), jnp.float32)


def test_iou_of_whole_and_of_16_bit_numbers(heaps):
    boxes = heaps(20)
    chex.assert_trees_all_equal(iou(boxes.astype(np.int32), boxes.astype(np.int32)), iou(boxes, boxes))
    # A product of two sides has more digits than bfloat16.
    half = jnp.asarray(boxes, jnp.bfloat16)
    chex.assert_trees_all_equal(iou(half, half), iou(half.astype(jnp.float32), half.astype(jnp.float32)))


def test_leading_axes_are_broadcast(heaps):
    a, b = heaps(30).reshape(3, 1, 10, 4), heaps(40, seed=1).reshape(4, 10, 4)
    overlaps = iou(a, b)
    chex.assert_shape(overlaps, (3, 4, 10, 10))
    for row in range(3):
        for column in range(4):
            np.testing.assert_array_equal(overlaps[row, column], iou(a[row, 0], b[column]))
    np.testing.assert_array_equal(iou(a[0, 0], b)[2], iou(a[0, 0], b[2]))
    mapped = jax.jit(jax.vmap(iou, in_axes=(None, 0)))(a[0, 0], b)
    np.testing.assert_allclose(mapped, iou(a[0, 0], b), rtol=1e-6)
    chex.assert_shape(iou(a[0, 0], np.zeros((0, 4), np.float32)), (10, 0))


def test_gradient_of_iou():
    a, b = np.array([[0.0, 0, 10, 8], [3, 1, 9, 12]], np.float32), np.array([[2.0, 2, 13, 9]], np.float32)
    check_grads(jax.jit(iou), (a, b), order=1, modes=["fwd", "rev"], rtol=2e-2)


@pytest.mark.parametrize("labelled", [False, True])
def test_rows_are_those_of_the_matrix(heaps, labelled):
    boxes = heaps(40).reshape(2, 20, 4)
    labels = np.random.default_rng(0).integers(0, 3, (2, 20)) if labelled else None
    matrix = np.array(iou(boxes, boxes))
    if labelled:
        matrix *= labels[:, :, None] == labels[:, None, :]
    index = jnp.array([7, 11])
    np.testing.assert_allclose(iou_rows(boxes, labels)(index), matrix[[0, 1], index], rtol=1e-6)
    row = iou_rows(boxes[1], labels[1] if labelled else None)(index[1])
    np.testing.assert_allclose(row, matrix[1, 11], rtol=1e-6)


def _pairs(number: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    corner = rng.uniform(-50, 600, (2, number, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 200, (2, number, 2))], axis=-1)
    return tuple(boxes.astype(np.float32))


def test_encode_is_the_formula_of_the_paper():
    boxes, targets = _pairs()
    expected = []
    for (x1, y1, x2, y2), (tx1, ty1, tx2, ty2) in zip(
        *(x.astype(float) for x in (boxes, targets)), strict=True
    ):
        width, height = x2 - x1, y2 - y1
        x, y = ((tx1 + tx2) - (x1 + x2)) / 2 / width, ((ty1 + ty2) - (y1 + y2)) / 2 / height
        expected.append([x * 10, y * 10, np.log((tx2 - tx1) / width) * 5, np.log((ty2 - ty1) / height) * 5])
    deltas = jax.jit(encode_boxes)(boxes, targets)
    chex.assert_type(deltas, jnp.float32)
    np.testing.assert_allclose(deltas, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("weights", [(10.0, 10.0, 5.0, 5.0), (1.0, 1.0, 1.0, 1.0), (3.0, 2.0, 7.0, 0.5)])
def test_round_trip(weights):
    boxes, targets = _pairs()
    deltas = encode_boxes(boxes, targets, weights=weights)
    decoded = jax.jit(lambda boxes, deltas: decode_boxes(boxes, deltas, weights=weights))(boxes, deltas)
    np.testing.assert_allclose(decoded, targets, atol=2e-3)
    again = encode_boxes(boxes, decoded, weights=weights)
    np.testing.assert_allclose(again, deltas, atol=2e-3)
    np.testing.assert_array_equal(encode_boxes(boxes, boxes, weights=weights), np.zeros_like(boxes))
    np.testing.assert_allclose(decode_boxes(boxes, np.zeros_like(boxes)), boxes, atol=1e-4)


def test_boxes_of_less_than_a_pixel_are_boxes():
    boxes, targets = (array / 1e4 for array in _pairs())
    np.testing.assert_allclose(encode_boxes(boxes, targets), encode_boxes(*_pairs()), rtol=2e-3, atol=2e-2)


def test_plain_lists_do():
    boxes = [[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0]]
    np.testing.assert_allclose(iou(boxes, boxes), [[1, 1 / 3], [1 / 3, 1]], rtol=1e-6)
    np.testing.assert_allclose(iou_rows(boxes, [1, 2])(jnp.int32(1)), [0, 1])
    np.testing.assert_array_equal(decode_boxes(boxes, encode_boxes(boxes, boxes)), boxes)


def test_encode_and_decode_of_flawed_boxes_are_finite():
    sound = np.broadcast_to(np.array([0, 0, 10, 10], np.float32), FLAWED.shape)
    for boxes, targets in ((FLAWED, sound), (sound, FLAWED), (FLAWED, FLAWED)):
        np.testing.assert_array_equal(encode_boxes(boxes, targets), np.zeros_like(boxes))
        for gradient in jax.jit(jax.grad(lambda a, b: encode_boxes(a, b).sum(), argnums=(0, 1)))(
            boxes, targets
        ):
            assert np.isfinite(gradient).all()
    for wild in (0.0, 1.0, 1e4, -1e4):
        deltas = np.full(FLAWED.shape, wild, np.float32)
        assert np.isfinite(decode_boxes(FLAWED, deltas)).all()
        assert np.isfinite(jax.grad(lambda deltas: decode_boxes(FLAWED, deltas).sum())(deltas)).all()
    almost = np.array([5, 5, 5 + 1e-30, 5], np.float32)
    assert np.isfinite(encode_boxes(almost, sound[0])).all()


def test_a_side_grows_at_most_from_16_to_1000():
    decoded = decode_boxes(jnp.array([0.0, 0, 16, 16]), jnp.array([0.0, 0, 1e9, -1e9]))
    np.testing.assert_allclose(decoded, [8 - 500, 8, 8 + 500, 8], rtol=1e-5)


def test_decode_takes_a_row_of_deltas_for_each_class():
    boxes, targets = _pairs(6)
    deltas = np.stack([encode_boxes(boxes, targets), np.zeros((6, 4), np.float32)], axis=1)
    decoded = decode_boxes(boxes[:, None], deltas)
    chex.assert_shape(decoded, (6, 2, 4))
    np.testing.assert_allclose(decoded[:, 0], targets, atol=1e-3)
    np.testing.assert_allclose(decoded[:, 1], boxes, atol=1e-3)


def test_gradients_of_encode_and_decode():
    boxes, targets = _pairs(3)
    boxes, targets = boxes / 50, targets / 50
    check_grads(jax.jit(encode_boxes), (boxes, targets), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)
    deltas = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    check_grads(jax.jit(decode_boxes), (boxes, deltas), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


def test_clip_boxes():
    boxes = np.array([[-5, -6, 7, 8], [3, 4, 99, 98], [200, 300, 210, 310], [-9, -9, -1, -1]], np.float32)
    expected = [[0, 0, 7, 8], [3, 4, 50, 40], [50, 40, 50, 40], [0, 0, 0, 0]]
    np.testing.assert_array_equal(clip_boxes(boxes, size=(40, 50)), expected)
    sizes = jnp.array([[40, 50], [20, 30]])
    mapped = jax.jit(jax.vmap(lambda size: clip_boxes(boxes, size=(size[0], size[1]))))(sizes)
    np.testing.assert_array_equal(mapped[0], expected)
    np.testing.assert_array_equal(mapped[1], clip_boxes(boxes, size=(20, 30)))


def test_refusals():
    with pytest.raises(ValueError, match=r"\(5, 3\) must end in an axis of 4"):
        area(np.zeros((5, 3), np.float32))
    with pytest.raises(ValueError, match=r"\(\) must end in an axis of 4"):
        area(np.float32(4))
    with pytest.raises(ValueError, match=r"a of shape \(4,\) has no axis of boxes"):
        iou(np.zeros(4, np.float32), np.zeros((1, 4), np.float32))


@pytest.mark.parametrize(
    "weights", [(1.0, 1.0, 1.0), (1.0, -1.0, 1.0, 1.0), (1.0, 1.0, np.inf, 1.0), (0.0,) * 4]
)
def test_weights_that_are_none_are_refused(weights):
    boxes = np.array([[0, 0, 4, 4]], np.float32)
    for call in (encode_boxes, decode_boxes):
        with pytest.raises(ValueError, match="weights"):
            call(boxes, boxes, weights=weights)
