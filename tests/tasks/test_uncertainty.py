"""How far scores of few subjects are to be believed: what the formulas say is what repeated draws do."""

import numpy as np

from hardmine_jax.tasks.uncertainty import bootstrap_half_width, note_few, share_half_width


def _draw(rng, subjects):
    """Hits and totals of subjects whose keypoints are right together: some are easy, some are hard."""
    ease, totals = rng.beta(1, 1, subjects), rng.integers(1, 18, subjects)
    return rng.binomial(totals, ease), totals


def test_the_half_width_is_that_of_repeated_draws():
    rng = np.random.default_rng(0)
    draws = [_draw(rng, 60) for _ in range(2000)]
    shares = np.array([hits.sum() / totals.sum() for hits, totals in draws])
    half_widths = np.array([share_half_width(hits, totals) for hits, totals in draws])
    np.testing.assert_allclose(half_widths.mean(), 1.96 * shares.std(), rtol=0.05)
    covered = np.mean(np.abs(shares - 0.5) < half_widths)
    assert 0.92 < covered < 0.97


def test_the_bootstrap_agrees_with_the_formula():
    hits, totals = _draw(np.random.default_rng(1), 80)
    found = bootstrap_half_width(lambda rows: hits[rows].sum() / totals[rows].sum(), 80)
    np.testing.assert_allclose(found, share_half_width(hits, totals), rtol=0.25)


def test_one_subject_has_none():
    assert share_half_width(np.array([3, 0]), np.array([5, 0])) is None
    assert share_half_width(np.zeros(0), np.zeros(0)) is None
    assert bootstrap_half_width(lambda rows: 0.5, 1) is None
    assert bootstrap_half_width(lambda rows: float("nan"), 20) is None


def test_many_subjects_need_no_sentence():
    assert note_few(100, "subjects", "PCK@0.1", 0.1) == []
    assert "± 10.0 points" in note_few(99, "subjects", "PCK@0.1", 0.1)[0]
    assert "2 images were scored: mAP@0.5 says nothing" in note_few(2, "images", "mAP@0.5", None)[0]
