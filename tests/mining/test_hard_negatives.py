"""What is special to `hard_negatives`; the laws it shares are in tests/test_selector_contract.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.mining import hard_negatives, top_k


def _example(rows=6, num_units=100, seed=0):
    rng = np.random.default_rng(seed)
    losses = rng.random((rows, num_units), np.float32)
    positive = rng.random(losses.shape) < np.linspace(0, 0.4, rows)[:, None]
    return losses, positive, rng.random(losses.shape) < 0.8


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0, 2.5, 3.0, 1000.0])
@pytest.mark.parametrize("min_negatives", [0, 7])
def test_each_row_keeps_its_own_number_of_the_hardest(ratio, min_negatives):
    losses, positive, where = _example()
    keep = np.asarray(
        hard_negatives(losses, positive=positive, ratio=ratio, min_negatives=min_negatives, where=where)
    )
    for row in range(len(losses)):
        negatives = where[row] & ~positive[row]
        wanted = max(int(ratio * (where[row] & positive[row]).sum()), min_negatives)
        if wanted == 0:
            assert not keep[row].any()
        else:
            expected = top_k(losses[row], k=min(wanted, 100), where=negatives)
            np.testing.assert_array_equal(keep[row], expected)


def test_three_to_one_by_default():
    losses = np.arange(20, dtype=np.float32)
    keep = hard_negatives(losses, positive=losses < 2)
    np.testing.assert_array_equal(np.flatnonzero(keep), np.arange(14, 20))


def test_a_row_without_positives_keeps_nothing_unless_asked():
    losses, nothing = np.ones((2, 9), np.float32), np.zeros((2, 9), bool)
    assert not hard_negatives(losses, positive=nothing).any()
    keep = hard_negatives(losses, positive=nothing, min_negatives=jnp.array([2, 4]))
    np.testing.assert_array_equal(keep.sum(-1), [2, 4])


def test_a_positive_that_takes_no_part_counts_for_nothing():
    losses, positive = np.arange(8.0, dtype=np.float32), np.arange(8) < 2
    keep = hard_negatives(losses, positive=positive, ratio=2.0, where=np.arange(8) != 0)
    np.testing.assert_array_equal(np.flatnonzero(keep), [6, 7])


@pytest.mark.parametrize("ratio", [0.1, 0.29, 0.7, 2.3])
def test_a_decimal_ratio_is_not_one_short(ratio):
    """0.29 * 100 is 28.999999999999996 in double precision."""
    positive = np.arange(600) < 100
    keep = hard_negatives(np.ones(600, np.float32), positive=positive, ratio=ratio)
    assert int(keep.sum()) == round(ratio * 100)


def test_ratio_and_min_negatives_may_be_traced():
    losses, positive, where = _example()

    def select(ratio, min_negatives):
        return hard_negatives(
            losses, positive=positive, ratio=ratio, min_negatives=min_negatives, where=where
        )

    compiled = jax.jit(select)
    for args in [(0.0, 0), (2.0, 5), (2.5, 100)]:
        np.testing.assert_array_equal(compiled(*args), select(*args))
    assert compiled._cache_size() == 1


def test_refusals():
    losses, positive = np.zeros((2, 5), np.float32), np.zeros((2, 5), bool)
    for ratio in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match=f"ratio={ratio} must be finite and 0 or more"):
            hard_negatives(losses, positive=positive, ratio=ratio)
    with pytest.raises(ValueError, match="min_negatives=6 > N=5"):
        hard_negatives(losses, positive=positive, min_negatives=6)
    with pytest.raises(ValueError, match="min_negatives=-1 < 0.*N=5"):
        hard_negatives(losses, positive=positive, min_negatives=-1)
    with pytest.raises(ValueError, match="positive must be bool, not float32.*labels > 0"):
        hard_negatives(losses, positive=losses)
    with pytest.raises(ValueError, match=r"positive of shape \(5,\) != losses \(2, 5\)"):
        hard_negatives(losses, positive=positive[0])
