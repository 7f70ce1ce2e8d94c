"""Soft-NMS against the paper's loop, and against plain suppression where the two meet."""

import jax
import numpy as np
import pytest

from hardmine_jax.detection import iou, nms, soft_nms


def _problem(heaps, number=80):
    rng = np.random.default_rng(number)
    return heaps(number, 1), rng.random(number, np.float32).round(2), rng.integers(0, 3, number)


def _by_loop(boxes, scores, lower, min_score, where) -> tuple[list[int], list[float]]:
    matrix, scores = np.asarray(iou(boxes, boxes), np.float64), scores.astype(np.float64)
    left, taken, kept = [i for i in range(len(scores)) if where[i]], [], []
    while left := [i for i in left if scores[i] > min_score]:
        best = max(left, key=lambda i: (scores[i], -i))
        taken.append(best)
        kept.append(scores[best])
        left.remove(best)
        for i in left:
            scores[i] *= lower(best, i, matrix[best, i])
    return taken, kept


@pytest.mark.parametrize("method", ["gaussian", "linear"])
@pytest.mark.parametrize("of_classes", [False, True])
def test_is_the_papers_loop(heaps, method, of_classes):
    boxes, scores, classes = _problem(heaps)
    labels, where = classes if of_classes else None, np.arange(80) % 9 > 0

    def lower(i, j, overlap):
        if of_classes and classes[i] != classes[j]:
            return 1.0
        return np.exp(-(overlap**2) / 0.4) if method == "gaussian" else 1 - overlap * (overlap > 0.35)

    # Numbers between which no lowered score lies.
    options = {"method": method, "sigma": 0.4, "threshold": 0.35, "min_score": 0.0123}
    expected, kept = _by_loop(boxes, scores, lower, 0.0123, where)
    dirty = np.where(where, scores, np.float32(np.nan))
    indices, lowered, found = soft_nms(boxes, dirty, max_kept=80, labels=labels, where=where, **options)
    assert int(found.sum()) == len(expected)
    np.testing.assert_allclose(lowered[: len(kept)], kept, rtol=1e-4)
    np.testing.assert_array_equal(indices[: len(kept)], expected)
    assert not lowered[len(kept) :].any() and not found[len(kept) :].any()
    some = soft_nms(boxes, dirty, max_kept=7, labels=labels, where=where, **options)
    for first, whole in zip(some, (indices, lowered, found), strict=True):
        np.testing.assert_array_equal(first, whole[:7])


def test_rows_are_on_their_own_and_no_gradient_flows(heaps):
    boxes = np.stack([heaps(30, seed) for seed in (0, 1)])
    scores = np.random.default_rng(0).random((2, 30), np.float32)
    together = soft_nms(boxes, scores, max_kept=12)
    for row in range(2):
        for one, two in zip(soft_nms(boxes[row], scores[row], max_kept=12), together, strict=True):
            np.testing.assert_array_equal(one, two[row])
    gradients = jax.grad(lambda *args: soft_nms(*args, max_kept=12)[1].sum(), argnums=(0, 1))(boxes, scores)
    assert not any(gradient.any() for gradient in gradients)


def test_boxes_that_are_apart_are_left_as_they_are(heaps):
    boxes = np.arange(0, 200, 20, np.float32)[:, None] + np.array([0, 0, 10, 10], np.float32)
    scores = np.random.default_rng(0).random(10, np.float32)
    indices, lowered, _ = soft_nms(boxes, scores, max_kept=10)
    np.testing.assert_array_equal(indices, nms(boxes, scores, threshold=0.5, max_kept=10)[0])
    np.testing.assert_array_equal(lowered, scores[indices])


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"method": "hard"}, ValueError, "method='hard' must be 'gaussian' or 'linear'"),
        ({"sigma": 0.0}, ValueError, "sigma=0.0 must be positive"),
        ({"threshold": 30}, ValueError, "threshold=30 must lie in"),
        ({"max_kept": 9}, ValueError, "max_kept=9 > N=4"),
        ({"labels": np.zeros(3, int)}, ValueError, "one for each box"),
        ({"labels": np.zeros(4)}, TypeError, "labels of float"),
    ],
)
def test_refuses(options, error, message):
    with pytest.raises(error, match=message):
        soft_nms(np.zeros((4, 4), np.float32), np.zeros(4, np.float32), **{"max_kept": 2} | options)
