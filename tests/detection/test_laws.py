"""Laws of `detection`: the dtype changes no answer, what `where` leaves out changes nothing, N may be 0.

All of it under strict promotion of dtypes and ranks (tests/conftest.py).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax import detection
from hardmine_jax.mining import masked_mean

KEY = jax.random.key(0)
# The largest whole number of each dtype that an area overflows, or that loses digits in a sum.
LARGEST = {"int8": 127, "uint8": 255, "int16": 20_000, "int32": 70_000, "float16": 2_000, "bfloat16": 256}
LARGEST |= {"list": 250}
SMALL_INTEGERS = ("int8", "uint8", "int16", "uint16", "uint32", "list")
N, C = 6, 3


def _ohem(cast, x):
    labels = np.array([0, 1, 0, 1, 0, 1])
    losses = np.float32(np.arange(N))
    return (
        detection.ohem(losses, cast(x["boxes"]), k=4, iou_threshold=0.3),
        detection.ohem(losses, cast(x["boxes"]), k=4, iou_threshold=0.3, labels=labels),
    )


def _average_precision(cast, x):
    truth, found = (cast(x["others"]), [1] * N), (cast(x["boxes"]), cast(x["places"]), [1] * N)
    result = detection.average_precision([found], [truth], classes=("cell",), iou_threshold=0.1)
    return result.mean, result.mean_11_point


# Every function that takes numbers, by its name: (cast, numbers) -> what is compared.
FUNCTIONS = {
    "area": lambda cast, x: detection.area(cast(x["boxes"])),
    "average_precision": _average_precision,
    "clip_boxes": lambda cast, x: detection.clip_boxes(cast(x["boxes"]), size=tuple(cast(x["size"]))),
    "decode_boxes": lambda cast, x: detection.decode_boxes(cast(x["boxes"]), cast(x["small"])),
    "encode_boxes": lambda cast, x: detection.encode_boxes(cast(x["boxes"]), cast(x["others"])),
    "fast_rcnn_losses": lambda cast, x: detection.fast_rcnn_losses(
        cast(x["small"]), cast(x["boxes"]), np.arange(N) % 4, cast(x["others"])
    ),
    "focal_losses": lambda cast, x: detection.focal_losses(cast(x["small"]), np.arange(N) % 5),
    "iou": lambda cast, x: detection.iou(cast(x["boxes"]), cast(x["others"])),
    "match": lambda cast, x: detection.match(
        cast(x["boxes"]), cast(x["others"]), np.arange(1, N + 1), foreground=0.2
    ),
    "nms": lambda cast, x: detection.nms(
        cast(x["boxes"]), np.float32(np.arange(N)), threshold=0.3, max_kept=N
    ),
    "soft_nms": lambda cast, x: detection.soft_nms(cast(x["boxes"]), np.float32(np.arange(N)), max_kept=N),
    "ohem": _ohem,
    "roi_align": lambda cast, x: detection.roi_align(
        x["map"], cast(x["boxes"]), size=(2, 2), stride=x["stride"]
    ),
    "roi_pool": lambda cast, x: detection.roi_pool(
        x["map"], cast(x["boxes"]), size=(2, 2), stride=x["stride"]
    ),
    "sample_rois": lambda cast, x: detection.sample_rois(
        KEY, np.arange(N) % 2, cast(x["places"] % 2), k=4, background=(0.5, 1.5)
    ),
    "smooth_l1": lambda cast, x: jnp.float32(detection.smooth_l1(cast(x["small"]), beta=2.0)),
}
# What takes no array, or only pictures.
OTHERS = {"make_anchors", "selective_search"}
RESULTS = {"AveragePrecision", "ClassPrecision", "Detections", "GroundTruth", "Matched"}


def _numbers(largest: int) -> dict:
    """Whole numbers up to the largest, so that every dtype holds them."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, largest // 2, (2, N, 2))
    boxes, others = np.concatenate([low, low + rng.integers(largest // 4, largest // 2 + 1, low.shape)], -1)
    boxes[0] = others[0] = [0, 0, largest, largest]
    return {
        "boxes": boxes,
        "others": others,
        "small": rng.integers(0, 9, (N, 4)),
        "places": np.arange(N),
        "size": np.array([largest // 2, largest]),
        "map": np.float32(rng.random((8, 8, 2))),
        "stride": 2.0 ** np.ceil(np.log2(largest / 8)),
    }


def _wide(results):
    return jax.tree.map(lambda result: np.asarray(result, np.float64), results)


@functools.cache
def _expected(name: str, largest: int):
    with jax.enable_x64(True):
        return _wide(FUNCTIONS[name](lambda array: np.asarray(array, np.float64), _numbers(largest)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_dtype_of_whole_numbers_changes_no_answer(name):
    for dtype, largest in LARGEST.items():

        def cast(array, dtype=dtype):
            return array.tolist() if dtype == "list" else array.astype(jnp.dtype(dtype))

        found = _wide(FUNCTIONS[name](cast, _numbers(largest)))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(_expected(name, largest)), strict=True):
            # bfloat16 comes back as such from smooth_l1 alone, and its numbers are small.
            rtol = 1e-2 if name == "smooth_l1" else 2e-5
            np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-6 * largest, err_msg=dtype)


def test_every_function_stands_in_the_table():
    assert jax.config.jax_numpy_dtype_promotion == "strict" and jax.config.jax_numpy_rank_promotion == "raise"
    assert set(FUNCTIONS) | OTHERS | RESULTS == set(detection.__all__)


@pytest.mark.parametrize("dtype", SMALL_INTEGERS)
def test_labels_of_any_integers(dtype):
    def cast(labels):
        return labels.tolist() if dtype == "list" else labels.astype(dtype)

    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 2, 100, 126, 127])
    # As many classes as 8 bits count, where labels - 1 or the number of classes would wrap around.
    logits = np.float32(rng.normal(size=(N, 256)))
    deltas, targets, boxes = np.float32(rng.normal(size=(3, N, 4)))
    boxes = np.abs(boxes).cumsum(-1)
    rows = np.float32(rng.normal(size=(N, 255, 4)))
    for run in (
        lambda labels: detection.focal_losses(logits, labels),
        lambda labels: detection.focal_losses(logits[:, :127], labels),
        lambda labels: detection.fast_rcnn_losses(logits, deltas, labels, targets),
        lambda labels: detection.fast_rcnn_losses(logits, rows, labels, targets),
        lambda labels: detection.match(boxes, boxes, labels),
        lambda labels: detection.sample_rois(KEY, labels, np.full(N, 0.3, np.float32), k=4),
        lambda labels: detection.ohem(targets[:, 0], boxes, k=4, labels=labels),
    ):
        jax.tree.map(np.testing.assert_array_equal, run(cast(labels)), run(labels))


def test_labels_that_are_no_class_make_nan_and_no_gradient():
    rng = np.random.default_rng(0)
    logits, deltas, targets = (np.float32(rng.normal(size=(N, 4))) for _ in range(3))
    good = np.array([0, 1, 2, 3, 1, 0])
    for bad in (-1, -2, 4, 5, 255, 2**31 - 1, -(2**31)):
        labels = np.where(np.arange(N) == 2, bad, good).astype(np.int32)
        for losses in (
            lambda x, labels: detection.fast_rcnn_losses(x, deltas, labels, targets),
            lambda x, labels: detection.fast_rcnn_losses(x, np.stack([deltas] * 3, 1), labels, targets),
            lambda x, labels: detection.focal_losses(x[:, 1:], labels),
        ):
            found = losses(logits, labels)
            np.testing.assert_array_equal(np.isnan(found), np.arange(N) == 2)
            where = np.arange(N) != 2

            def mean(x, labels, losses=losses, where=where):
                return masked_mean(losses(x, labels), where=where)

            for one, other in zip(
                jax.value_and_grad(mean)(logits, labels), jax.value_and_grad(mean)(logits, good), strict=True
            ):
                np.testing.assert_array_equal(one, other)
    assert np.isnan(detection.focal_losses(logits, np.full(N, 200, np.uint8))).all()
    assert np.isnan(detection.fast_rcnn_losses(logits, deltas, np.full(N, 4e9, np.uint32), targets)).all()


def test_labels_that_say_object_or_not():
    logits, labels = LOGITS[:, :1], LABELS > 0
    found = detection.focal_losses(logits, labels)
    np.testing.assert_array_equal(found, detection.focal_losses(logits, labels.astype(np.int32)))


def test_labels_that_are_no_integers_are_refused():
    logits = np.zeros((N, 4), np.float32)
    labels = np.zeros(N, np.float32)
    for call in (
        lambda: detection.focal_losses(logits, labels),
        lambda: detection.fast_rcnn_losses(logits, logits, labels, logits),
        lambda: detection.match(logits, logits, labels),
    ):
        with pytest.raises(TypeError, match="labels of float32 must be integers"):
            call()


BOXES = np.float32(
    [[0, 0, 10, 10], [2, 1, 12, 9], [20, 20, 30, 31], [5, 5, 15, 16], [1, 0, 11, 10], [3, 3, 9, 8]]
)
TARGETS = BOXES[::-1] + np.float32([0, 1, 2, 3])
LOGITS = np.float32(np.random.default_rng(3).normal(size=(N, 4)))
LABELS = np.array([0, 1, 2, 3, 1, 0])
# Rows of numbers to plant where a row is not to be seen.
PLANTED = {
    "nan": [np.nan] * 4,
    "infinite": [-np.inf, -np.inf, np.inf, np.inf],
    "half infinite": [0, 0, np.inf, 5],
    "reversed": [9, 9, 5, 5],
    "empty": [5, 5, 5, 9],
    "point": [5, 5, 5, 5],
    "far": [1e38, 1e38, 3e38, 3e38],
    "large": [-1e20, -1e20, 1e20, 1e20],
    "huge": [-1e38, 0, 1e38, 3e38],
    "low": [-3e38] * 4,
}
# (a, b [N, 4]) -> [N, ...]: a row of the result belongs to a row of both.
BY_ROWS = {
    "area": lambda a, b: detection.area(a),
    "clip_boxes": lambda a, b: detection.clip_boxes(a, size=(9, 8)),
    "decode_boxes": lambda a, b: detection.decode_boxes(a, b / 9),
    "encode_boxes": lambda a, b: detection.encode_boxes(a, b),
    "fast_rcnn_losses": lambda a, b: detection.fast_rcnn_losses(a, b, LABELS, b[::-1][::-1] * 2),
    "focal_losses": lambda a, b: (
        detection.focal_losses(a, LABELS) + detection.focal_losses(b, LABELS, gamma=0.5)
    ),
    "smooth_l1": lambda a, b: detection.smooth_l1(a - b),
    # In pairs: a flawed box among those of b overlaps nothing, and a sound one keeps its gradient.
    "iou": lambda a, b: detection.iou(a, b),
}


@pytest.mark.parametrize("name", BY_ROWS)
def test_a_flawed_row_leaves_the_others_as_they_are(name):
    where = np.arange(N) != 1

    @jax.jit
    def run(a, b):
        def rows(a, b):
            found = BY_ROWS[name](a, b).reshape(N, -1)
            # Of an overlap with the row that is planted nothing is asked.
            found = jnp.where(where[None], found, 0) if name == "iou" else found
            return jnp.where(where[:, None], found, 0)

        value, pull = jax.vjp(rows, a, b)
        return value, pull(jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape))

    value, gradients = run(BOXES, TARGETS)
    for what, planted in PLANTED.items():
        for which in ((True, False), (False, True), (True, True)):
            dirty = [
                np.where(where[:, None], rows, np.float32(planted)) if plant else rows
                for rows, plant in zip((BOXES, TARGETS), which, strict=True)
            ]
            found, others = run(*dirty)
            np.testing.assert_array_equal(found, value, err_msg=what)
            for one, other in zip(others, gradients, strict=True):
                np.testing.assert_array_equal(one[where], other[where], err_msg=what)
                # Of what is left out nothing arrives, and so nothing comes back.
                assert np.isfinite(one).all() or name == "area", what


def test_flawed_and_large_boxes_that_are_seen_have_a_finite_gradient():
    rows = np.float32([*PLANTED.values(), *BOXES])
    gradients = jax.jit(jax.grad(lambda a, b: detection.iou(a, b).sum(), argnums=(0, 1)))(rows, rows[::-1])
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    # Not the largest: the product with the weights would be no float32.
    modest = np.where(np.abs(rows).max(-1, keepdims=True) < 1e30, rows, 0)
    gradients = jax.grad(lambda a, b: detection.encode_boxes(a, b).sum(), argnums=(0, 1))(
        modest, modest[::-1]
    )
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert np.isfinite(detection.iou(rows, rows)).all()
    assert np.isfinite(detection.encode_boxes(rows, rows[::-1])).all()


@pytest.mark.parametrize("size", [1e9, 4e18, 1e19, 1e20, 1e21, 1e30, 1e38])
def test_iou_of_boxes_of_any_size(size):
    boxes = np.array([[0, 0, 1, 1], [0, 0, 2, 1], [0.5, 0.25, 2.5, 2.25], [-1, -1, 0.5, 0.5]])
    # So large that the area is no float32, and the box no box.
    expected = np.asarray(detection.iou(np.float32(boxes), np.float32(boxes))) * (size < 1e22)
    large = np.float32(boxes * size)
    np.testing.assert_allclose(detection.iou(large, large), expected, rtol=1e-5)
    # Beside a small one: it is nothing there.
    pairs = detection.iou(np.concatenate([large, BOXES]), np.concatenate([large, BOXES]))
    np.testing.assert_allclose(pairs[:4, :4], expected, rtol=1e-5)
    np.testing.assert_array_equal(pairs[4:, 4:], detection.iou(BOXES, BOXES))
    np.testing.assert_allclose(pairs[:4, 4:], 0, atol=1e-15)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_losses_of_the_largest_logits(gamma):
    logits = np.float32(np.outer([1e38, -1e38, 3.4e38, -3.4e38, 1e30, -1e4], np.ones(80)))
    labels = np.array([0, 1, 0, 80, 7, 7], np.int32)
    losses, pull = jax.vjp(lambda logits: detection.focal_losses(logits, labels, gamma=gamma), logits)
    (gradient,) = pull(jnp.ones(N))
    assert np.isfinite(losses).all() and np.isfinite(gradient).all()
    # Wrong answers, sure of themselves: the whole weight, 0.25 for a yes and 0.75 for a no.
    np.testing.assert_allclose(gradient[0], 0.75)
    np.testing.assert_allclose(gradient[1], np.where(np.arange(80) == 0, -0.25, 0))


# (where [N], boxes, scores) -> what `where` chose, and so must not change.
WITH_WHERE = {
    "nms": lambda where, boxes, scores: detection.nms(boxes, scores, threshold=0.3, max_kept=N, where=where)[
        1
    ],
    "soft_nms": lambda where, boxes, scores: detection.soft_nms(boxes, scores, max_kept=N, where=where)[1],
    "ohem": lambda where, boxes, scores: detection.ohem(scores, boxes, k=3, where=where),
    "ohem labels": lambda where, boxes, scores: detection.ohem(
        scores, boxes, k=3, labels=LABELS, where=where
    ),
    "sample_rois": lambda where, boxes, scores: detection.sample_rois(
        KEY, LABELS, scores / 9, k=3, background=(0.0, 0.9), where=where
    ),
    "match": lambda where, boxes, scores: detection.match(
        TARGETS, boxes, LABELS, where=where, foreground=0.1
    ),
}


@pytest.mark.parametrize("name", WITH_WHERE)
def test_what_where_leaves_out_changes_nothing(name):
    where, scores = np.array([True, False, True, True, False, True]), np.float32([3, 9, 2, 5, 7, 1])
    run = jax.jit(functools.partial(WITH_WHERE[name], where))
    expected = run(BOXES, scores)
    for what, planted in PLANTED.items():
        dirty = np.where(where[:, None], BOXES, np.float32(planted)), np.where(where, scores, planted[2])
        jax.tree.map(
            functools.partial(np.testing.assert_array_equal, err_msg=what),
            run(*map(np.float32, dirty)),
            expected,
        )
    by_list = WITH_WHERE[name](where.tolist(), BOXES, scores)
    jax.tree.map(np.testing.assert_array_equal, by_list, expected)
    for wrong in (where.astype(np.int32), where[:3], where[None]):
        with pytest.raises(ValueError, match="where"):
            WITH_WHERE[name](wrong, BOXES, scores)


def test_none_at_all():
    none, nothing, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    assert detection.area(none).shape == (0,)
    assert detection.iou(none, BOXES).shape == (0, N) and detection.iou(BOXES, none).shape == (N, 0)
    for function in (detection.encode_boxes, detection.decode_boxes):
        assert function(none, none).shape == (0, 4)
    assert detection.clip_boxes(none, size=(4, 5)).shape == (0, 4)
    assert detection.fast_rcnn_losses(none, none, labels, none).shape == (0,)
    assert detection.focal_losses(none, labels).shape == (0,)
    assert detection.focal_losses(np.zeros((2, 0)), np.array([0, 0])).tolist() == [0, 0]
    assert detection.smooth_l1(nothing).shape == (0,)
    assert detection.match(none, BOXES, LABELS).labels.shape == (0,)
    assert detection.match(BOXES, none, labels).labels.tolist() == [0] * N
    assert detection.match(none, none, labels).boxes.shape == (0, 4)
    features = np.ones((4, 4, 2), np.float32)
    for pool in (detection.roi_align, detection.roi_pool):
        assert pool(features, none, stride=4).shape == (0, 7, 7, 2)
        gradient = jax.grad(lambda x, pool=pool: pool(x, none, stride=4).sum())(features)
        np.testing.assert_array_equal(gradient, np.zeros_like(features))
    batch = np.zeros((0, N), np.float32)
    assert detection.ohem(batch, np.zeros((0, N, 4)), k=2).shape == (0, N)
    assert detection.sample_rois(KEY, np.zeros((0, N), int), batch, k=2).shape == (0, N)
    for call in (
        lambda: detection.nms(none, nothing, threshold=0.5, max_kept=1),
        lambda: detection.ohem(nothing, none, k=1),
        lambda: detection.sample_rois(KEY, labels, nothing, k=1),
    ):
        with pytest.raises(ValueError, match="=1 > N=0"):
            call()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: detection.encode_boxes(BOXES, BOXES, weights=(1, 1, 1)), "weights=.1, 1, 1. must be four"),
        (lambda: detection.decode_boxes(BOXES, BOXES, weights=(1, 1, 0, 1)), "must be four positive"),
        (lambda: detection.decode_boxes(BOXES, BOXES, weights=(1, 1, np.nan, 1)), "must be four positive"),
        (lambda: detection.nms(BOXES, LABELS, threshold=50, max_kept=1), "threshold=50 must lie in 0 .. 1"),
        (lambda: detection.nms(BOXES, LABELS, threshold=np.nan, max_kept=1), "threshold=nan"),
        (lambda: detection.smooth_l1(BOXES, beta=np.inf), "beta=inf"),
        (lambda: detection.smooth_l1(BOXES, beta=np.nan), "beta=nan"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_complex_numbers_are_refused():
    for call in (lambda: detection.area(BOXES * 1j), lambda: detection.focal_losses(LOGITS * 1j, LABELS)):
        with pytest.raises(TypeError, match="give real numbers"):
            call()
