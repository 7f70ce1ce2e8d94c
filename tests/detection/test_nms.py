"""Suppression against a plain loop and OpenCV; the greedy core itself is tested in tests/mining."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.detection import iou, nms


def _by_loop(boxes, scores, threshold, where=None) -> list[int]:
    matrix, kept = np.asarray(iou(boxes, boxes)), []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if (where is None or where[i]) and all(matrix[j, i] <= np.float32(threshold) for j in kept):
            kept.append(i)
    return kept


def _problem(heaps, number=300, seed=0):
    return heaps(number, seed), np.random.default_rng(seed).permutation(number).astype(np.float32) / number


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_is_opencv(heaps, threshold):
    cv2 = pytest.importorskip("cv2")
    boxes, scores = _problem(heaps)
    corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    expected = cv2.dnn.NMSBoxes(corner_and_size, (scores + 1).tolist(), 0.5, threshold)
    indices, where = nms(boxes, scores, threshold=threshold, max_kept=300)
    assert 20 < where.sum() < 250
    np.testing.assert_array_equal(indices[where], np.ravel(expected))


@pytest.mark.parametrize("max_kept", [1, 10, 300])
def test_is_the_plain_loop_with_ties_and_padding(heaps, max_kept):
    boxes, scores = _problem(heaps)
    scores, take_part = np.round(scores, 1), np.random.default_rng(1).random(300) < 0.8
    boxes[:5] = 0
    expected = _by_loop(boxes, scores, 0.5, take_part)[:max_kept]
    indices, where = jax.jit(
        lambda boxes, scores: nms(boxes, scores, threshold=0.5, max_kept=max_kept, where=take_part)
    )(boxes, np.where(take_part, scores, np.float32(np.nan)))
    assert where.sum() == len(expected)
    np.testing.assert_array_equal(where, np.arange(max_kept) < len(expected))
    np.testing.assert_array_equal(indices[: len(expected)], expected)
    assert ((indices >= 0) & (indices < 300)).all()
    assert indices.dtype == jnp.int32


def test_vmap_over_classes_is_a_loop(heaps):
    boxes, _ = _problem(heaps, 60)
    scores = np.random.default_rng(3).random((4, 60), np.float32)

    @jax.jit
    def one(scores):
        return nms(boxes, scores, threshold=0.5, max_kept=20)

    indices, where = jax.jit(jax.vmap(one))(scores)
    for row in range(4):
        alone = one(scores[row])
        np.testing.assert_array_equal(indices[row], alone[0])
        np.testing.assert_array_equal(where[row], alone[1])


def test_equal_to_the_threshold_stays():
    # Overlap 1 / 2.
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert nms(boxes, scores, threshold=0.5, max_kept=2)[1].all()
    assert nms(boxes, scores, threshold=0.499, max_kept=2)[1].sum() == 1


def test_plain_lists_do():
    boxes, scores = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 0.0, 30.0, 10.0]], [1.0, 3.0, 2.0]
    indices, where = nms(boxes, scores, threshold=0.5, max_kept=2)
    assert indices.tolist() == [1, 2] and where.all()


def test_best_first_whatever_the_scores():
    boxes = np.arange(24, dtype=np.float32).reshape(6, 4) * 100 + np.array([0, 0, 5, 5], np.float32)
    scores = np.array([-np.inf, 2.0, np.nan, -1.0, np.inf, 2.0], np.float32)
    indices, where = nms(boxes, scores, threshold=0.5, max_kept=6)
    np.testing.assert_array_equal(indices, [2, 4, 1, 5, 3, 0])
    assert where.all()


def test_nothing_takes_part():
    boxes, nobody = np.zeros((3, 4), np.float32), np.zeros(3, bool)
    indices, where = nms(boxes, np.ones(3, np.float32), threshold=0.5, max_kept=2, where=nobody)
    assert not where.any() and ((indices >= 0) & (indices < 3)).all()


def test_memory_is_in_proportion_to_n():
    def run(boxes, scores):
        return nms(boxes, scores, threshold=0.5, max_kept=100)

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(8192, 4), (8192,)])
    memory = jax.jit(run).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 100 * 8192


def test_refusals(heaps):
    boxes, scores = _problem(heaps, 5)
    with pytest.raises(ValueError, match="max_kept=6 > N=5"):
        nms(boxes, scores, threshold=0.5, max_kept=6)
    with pytest.raises(ValueError, match="max_kept=0 < 1"):
        nms(boxes, scores, threshold=0.5, max_kept=0)
    with pytest.raises(ValueError, match=r"boxes \(4, 4\) and scores \(5,\)"):
        nms(boxes[:4], scores, threshold=0.5, max_kept=2)
    with pytest.raises(ValueError, match=r"boxes \(5, 4\) and scores \(1, 5\)"):
        nms(boxes, scores[None], threshold=0.5, max_kept=2)


def test_classes_and_rows_are_suppressed_on_their_own(heaps):
    rng = np.random.default_rng(5)
    boxes, scores = np.stack([heaps(90, 3), heaps(90, 4)]), rng.random((2, 90), np.float32)
    labels = rng.integers(0, 3, (2, 90))
    indices, where = nms(boxes, scores, threshold=0.4, max_kept=90, labels=labels)
    for row in range(2):
        kept = [i for label in range(3) for i in _by_loop(boxes[row], scores[row], 0.4, labels[row] == label)]
        assert indices[row, where[row]].tolist() == sorted(kept, key=lambda i: -scores[row, i])
    by_list = nms(boxes, scores, threshold=0.4, max_kept=90, labels=labels.tolist())
    np.testing.assert_array_equal(by_list[0], indices)
    for error, match, wrong in (
        (TypeError, "labels of float", scores),
        (ValueError, "one for each box", labels[0]),
    ):
        with pytest.raises(error, match=match):
            nms(boxes, scores, threshold=0.4, max_kept=9, labels=wrong)
