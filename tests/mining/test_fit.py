"""`fit` against a loop, for every choice of a few units."""

import itertools

import chex
import jax
import numpy as np
import pytest

from hardmine_jax.mining.fit import best_first, fit

NUM_UNITS = 6
LOSSES = np.array([2.0, 5.0, np.nan, 5.0, 1.0, 2.0], np.float32)
HARDEST_FIRST = [2, 1, 3, 0, 5, 4]


@pytest.mark.parametrize("capacity", range(1, NUM_UNITS + 1))
def test_every_choice_of_six_units(capacity):
    choices = np.array(list(itertools.product([False, True], repeat=NUM_UNITS)))
    fitted = jax.jit(jax.vmap(lambda keep: fit(LOSSES, keep, capacity=capacity)))(choices)
    chex.assert_shape([fitted.keep, fitted.indices], (len(choices), capacity))
    for row, choice in enumerate(choices):
        hardest = sorted([unit for unit in HARDEST_FIRST if choice[unit]][:capacity])
        free = capacity - len(hardest)
        np.testing.assert_array_equal(fitted.keep[row], [True] * len(hardest) + [False] * free)
        np.testing.assert_array_equal(fitted.indices[row], hardest + (hardest or [0])[:1] * free)
    np.testing.assert_array_equal(fitted.num_selected, choices.sum(-1))
    np.testing.assert_array_equal(fitted.num_dropped, np.maximum(choices.sum(-1) - capacity, 0))


@pytest.mark.parametrize("capacity", [1, 3, NUM_UNITS])
def test_best_first_is_the_order_of_the_scores_with_ties_by_index(capacity):
    choices = np.array(list(itertools.product([False, True], repeat=NUM_UNITS)))
    run = jax.jit(jax.vmap(lambda keep: best_first(LOSSES, keep, capacity=capacity)))
    for choice, indices, where in zip(choices, *map(np.asarray, run(choices)), strict=True):
        best = [unit for unit in HARDEST_FIRST if choice[unit]][:capacity]
        np.testing.assert_array_equal(indices[where], best)
        np.testing.assert_array_equal(where, np.arange(capacity) < len(best))
