"""PCK, PCKh and OKS against loops over single keypoints."""

import math

import chex
import jax
import numpy as np
import pytest

from hardmine_jax.pose import oks, pck, pck_correct, pckh


@pytest.fixture
def people():
    rng = np.random.default_rng(0)
    target = rng.uniform(0, 100, (6, 5, 2)).astype(np.float32)
    predicted = target + rng.normal(0, 8, target.shape).astype(np.float32)
    where = rng.random((6, 5)) < 0.7
    where[2] = False
    return predicted, target, where, rng.uniform(50, 150, 6).astype(np.float32)


def test_pck_equals_a_loop(people):
    predicted, target, where, reference = people
    expected = np.zeros((6, 5), bool)
    for person, keypoint in np.ndindex(6, 5):
        distance = math.dist(predicted[person, keypoint], target[person, keypoint])
        expected[person, keypoint] = where[person, keypoint] and distance <= 0.1 * reference[person]
    assert 0 < expected.sum() < where.sum()
    correct = pck_correct(predicted, target, reference=reference, where=where)
    np.testing.assert_array_equal(correct, expected)
    assert pck(predicted, target, reference=reference, where=where) == pytest.approx(
        expected.sum() / where.sum()
    )


def test_pck_grows_with_the_fraction_and_ends_at_one(people):
    predicted, target, where, reference = people
    values = [
        float(pck(predicted, target, reference=reference, fraction=f, where=where))
        for f in (0.01, 0.1, 0.2, 9.0)
    ]
    assert values == sorted(values) and values[-1] == 1.0


def test_pck_of_the_truth_is_one_and_of_nothing_is_zero(people):
    predicted, target, where, reference = people
    assert pck(target, target, reference=reference) == 1.0
    assert pck(target, target, reference=reference, where=np.zeros_like(where)) == 0.0


def test_pck_counts_nan_predictions_as_wrong_and_never_looks_at_unlabelled_ones(people):
    predicted, target, where, reference = people
    lost = np.full_like(predicted, np.nan)
    assert pck(lost, target, reference=reference, where=where) == 0.0
    half_lost = np.where(where[..., None], target, np.float32(np.nan))
    assert pck(half_lost, target, reference=reference, where=where) == 1.0


def test_pck_takes_one_reference_for_all_and_no_leading_axes(people):
    predicted, target, where, _ = people
    everybody = pck_correct(predicted, target, reference=80.0, where=where)
    chex.assert_shape(everybody, (6, 5))
    np.testing.assert_array_equal(
        everybody[0], pck_correct(predicted[0], target[0], reference=80.0, where=where[0])
    )


def test_pckh_is_pck_at_half_the_head():
    target = np.zeros((1, 4, 2), np.float32)
    predicted = np.array([[[4.9, 0], [5.0, 0], [5.1, 0], [3.0, 4.0]]], np.float32)
    head = np.array([10.0], np.float32)
    assert pckh(predicted, target, reference=head) == 0.75
    assert pckh(predicted, target, reference=head, where=np.array([[True, False, True, False]])) == 0.5


def test_oks_equals_a_loop(people):
    predicted, target, where, _ = people
    area, sigmas = np.linspace(500, 9000, 6).astype(np.float32), (0.026, 0.035, 0.079, 0.107, 0.05)
    expected = np.zeros(6)
    for person in range(6):
        terms = [
            math.exp(-(math.dist(p, t) ** 2) / (2 * area[person] * (2 * sigma) ** 2))
            for p, t, sigma, labelled in zip(
                predicted[person], target[person], sigmas, where[person], strict=True
            )
            if labelled
        ]
        expected[person] = sum(terms) / len(terms) if terms else 0.0
    similarity = jax.jit(oks)(predicted, target, area=area, sigmas=sigmas, where=where)
    chex.assert_trees_all_close(similarity, expected.astype(np.float32), rtol=1e-4)
    assert similarity[2] == 0.0


def test_oks_of_the_truth_is_one_even_without_area(people):
    _, target, _, _ = people
    np.testing.assert_array_equal(oks(target, target, area=0.0, sigmas=(0.1,) * 5), np.ones(6))
    np.testing.assert_array_equal(oks(target + 1, target, area=0.0, sigmas=(0.1,) * 5), np.zeros(6))


def test_oks_has_a_finite_gradient_past_garbage_in_unlabelled_keypoints(people):
    predicted, target, where, reference = people
    dirty = np.where(where[..., None], target, np.float32(1e6))
    gradient = jax.grad(lambda p: oks(p, dirty, area=reference, sigmas=(0.1,) * 5, where=where).sum())(
        predicted
    )
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[~where].any()
