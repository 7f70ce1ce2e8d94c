"""What is special to `harder_than_easiest`; the laws it shares are in tests/test_selector_contract.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.mining import harder_than_easiest, top_k


def _indices(keep) -> list[int]:
    return np.flatnonzero(keep).tolist()


def test_at_least_ratio_times_the_easiest():
    losses = jnp.array([0.1, 0.2, 0.199, 0.5])
    assert _indices(harder_than_easiest(losses)) == [1, 3]
    assert _indices(harder_than_easiest(losses, ratio=4.0, min_kept=0)) == [3]
    assert _indices(harder_than_easiest(losses, ratio=1.0)) == [0, 1, 2, 3]


def test_the_easiest_is_that_of_the_units_that_take_part():
    losses = jnp.array([0.001, 1.0, 1.5, 2.5])
    where = jnp.array([False, True, True, True])
    assert _indices(harder_than_easiest(losses, min_kept=1, where=where)) == [3]


def test_min_kept_and_max_kept_bound_the_number():
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=(50, 17)).astype(np.float32) + 0.5
    free = np.asarray(harder_than_easiest(losses, ratio=3.0, min_kept=0))
    assert free.sum(-1).min() < 2 and free.sum(-1).max() > 5
    for low, high in [(2, None), (0, 5), (2, 5), (4, 4)]:
        keep = harder_than_easiest(losses, ratio=3.0, min_kept=low, max_kept=high)
        number = np.clip(free.sum(-1), low, high)
        np.testing.assert_array_equal(keep, top_k(losses, k=number))


def test_an_easiest_of_zero_makes_every_unit_hard():
    assert harder_than_easiest(jnp.array([0.0, 1.0, 0.0, 2.0])).all()
    assert harder_than_easiest(np.array([1e-40, 1.0, 0.5], np.float32)).all()


def test_nan_is_hardest_and_never_the_easiest():
    losses = jnp.array([jnp.nan, 1.0, 1.5, 2.5])
    assert _indices(harder_than_easiest(losses, min_kept=1)) == [0, 3]
    assert harder_than_easiest(jnp.full(3, jnp.nan), min_kept=0).all()


def test_half_precision_is_compared_in_single():
    """2.2 * 1.0078125 is 2.2171875; in bfloat16 it would be rounded to 2.21875, the second loss."""
    losses = jnp.array([1.0078125, 2.21875, 2.203125], jnp.bfloat16)
    assert _indices(harder_than_easiest(losses, ratio=2.2, min_kept=0)) == [1]


def test_every_option_may_be_traced():
    losses = np.random.default_rng(1).exponential(size=(5, 90)).astype(np.float32) + 0.1

    def select(ratio, low, high):
        return harder_than_easiest(losses, ratio=ratio, min_kept=low, max_kept=high)

    compiled = jax.jit(select)
    for args in [(2.0, 2, 90), (5.0, 0, 10), (1.5, 30, 30)]:
        np.testing.assert_array_equal(compiled(*args), select(*args))
    assert compiled._cache_size() == 1


def test_refusals():
    losses = jnp.zeros(5)
    for ratio in (0.5, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"ratio={ratio} must be finite and 1 or more"):
            harder_than_easiest(losses, ratio=ratio)
    with pytest.raises(ValueError, match="min_kept=4 > max_kept=3"):
        harder_than_easiest(losses, min_kept=4, max_kept=3)
    with pytest.raises(ValueError, match="max_kept=6 > N=5"):
        harder_than_easiest(losses, max_kept=6)
    with pytest.raises(ValueError, match="max_kept=0 < 1.*N=5"):
        harder_than_easiest(losses, min_kept=0, max_kept=0)
    with pytest.raises(ValueError, match="min_kept=3 > N=1"):
        harder_than_easiest(jnp.zeros(1), min_kept=3)
    with pytest.raises(ValueError, match=r"ratio of shape \(2,\): give one number"):
        harder_than_easiest(losses, ratio=np.array([2.0, 3.0]))


def test_one_unit_is_kept_by_default():
    assert harder_than_easiest(jnp.ones((4, 1))).all()
