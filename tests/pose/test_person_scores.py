"""Rescoring against the loop it stands for."""

import chex
import jax
import numpy as np
import pytest

from hardmine_jax.pose import person_scores


def _by_loop(keypoint_scores, box_score, threshold) -> float:
    total, count = 0.0, 0
    for score in keypoint_scores:
        if score > threshold:
            total, count = total + float(score), count + 1
    return box_score * (total / count if count else 0.0)


@pytest.mark.parametrize("threshold", [0.2, 0.6, -np.inf])
def test_is_the_loop(threshold):
    rng = np.random.default_rng(0)
    keypoints, boxes = np.float32(rng.uniform(-0.1, 1, (3, 5, 17))), np.float32(rng.random((3, 5)))
    keypoints[0, 0] = 0.1
    scores = jax.jit(lambda *arrays: person_scores(*arrays, min_score=threshold))(keypoints, boxes)
    chex.assert_shape(scores, (3, 5))
    for place in np.ndindex(3, 5):
        expected = _by_loop(keypoints[place], boxes[place], threshold)
        assert float(scores[place]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_equal_to_the_threshold_does_not_count():
    keypoints = np.float32([[0.5, 0.25, 0.25], [0.125, 0.0, 0.25]])
    np.testing.assert_allclose(person_scores(keypoints, np.ones(2, np.float32), min_score=0.25), [0.5, 0])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"keypoint_scores \(2, 3\) and box_scores \(3,\)"):
        person_scores(np.ones((2, 3), np.float32), np.ones(3, np.float32))
