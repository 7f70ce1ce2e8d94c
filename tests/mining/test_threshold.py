"""What is special to `threshold`; the laws it shares are in tests/test_selector_contract.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.mining import threshold


def test_is_strict_at_the_threshold():
    np.testing.assert_array_equal(threshold(jnp.array([0.5, 0.6]), min_loss=0.5), [False, True])


def test_min_kept_is_a_floor_and_no_ceiling():
    losses = jnp.array([0.9, 0.1, 0.8, 0.2])
    for min_kept, count in [(0, 2), (1, 2), (2, 2), (3, 3), (4, 4)]:
        assert int(threshold(losses, min_loss=0.5, min_kept=min_kept).sum()) == count


def test_min_kept_is_counted_a_row():
    losses = jnp.array([[0.9, 0.8, 0.7], [0.1, 0.3, 0.2]])
    keep = threshold(losses, min_loss=0.5, min_kept=1)
    np.testing.assert_array_equal(keep, [[True, True, True], [False, True, False]])


def test_nan_that_takes_part_is_kept():
    losses = jnp.array([jnp.nan, jnp.nan, 0.0])
    keep = threshold(losses, min_loss=0.5, where=jnp.array([True, False, True]))
    np.testing.assert_array_equal(keep, [True, False, False])


def test_the_threshold_may_be_a_schedule():
    compiled = jax.jit(lambda min_loss: threshold(jnp.array([1.0, 2.0, 3.0]), min_loss=min_loss))
    assert [int(compiled(level).sum()) for level in (0.5, 1.5, 2.5, 3.5)] == [3, 2, 1, 0]
    assert compiled._cache_size() == 1


def test_min_kept_may_be_traced():
    losses = jnp.array([[0.9, 0.1, 0.8, 0.2], [0.1, 0.2, 0.3, 0.4]])
    compiled = jax.jit(lambda min_kept: threshold(losses, min_loss=0.5, min_kept=min_kept))
    for min_kept in range(5):
        np.testing.assert_array_equal(compiled(min_kept), threshold(losses, min_loss=0.5, min_kept=min_kept))


def test_min_kept_out_of_range_names_both_numbers():
    with pytest.raises(ValueError, match="min_kept=6 > N=5"):
        threshold(jnp.zeros(5), min_loss=0.0, min_kept=6)
    with pytest.raises(ValueError, match="min_kept=-1 < 0.*N=5"):
        threshold(jnp.zeros(5), min_loss=0.0, min_kept=-1)
    with pytest.raises(TypeError, match="min_kept=1.5 must be a Python int"):
        threshold(jnp.zeros(5), min_loss=0.0, min_kept=1.5)


def test_is_compared_in_float32_whatever_the_dtype():
    assert threshold(jnp.array([0.1], jnp.bfloat16), min_loss=0.1).all()
    assert threshold(jnp.array([1, 2], jnp.uint8), min_loss=-1).all()
    assert not threshold(jnp.array([1, 2], jnp.uint8), min_loss=2.5).any()
    assert not threshold(jnp.array([6e4], jnp.float16), min_loss=1e6).any()


def test_a_threshold_a_row_and_a_unit():
    losses = jnp.ones((3, 3))
    rows, expected = jnp.array([0.0, 2.0, 2.0]), np.array([[True] * 3, [False] * 3, [False] * 3])
    np.testing.assert_array_equal(threshold(losses, min_loss=rows), expected)
    np.testing.assert_array_equal(threshold(losses, min_loss=rows[:, None]), expected)
    np.testing.assert_array_equal(threshold(losses, min_loss=losses.at[1].set(0)), expected[[1, 0, 2]])
    np.testing.assert_array_equal(threshold(losses[0], min_loss=rows), expected[:, 0])
    for shape in [(2,), (1, 3), (4, 3, 3)]:
        with pytest.raises(ValueError, match="give one for all"):
            threshold(losses, min_loss=jnp.zeros(shape))


def test_what_has_no_order_is_refused():
    with pytest.raises(TypeError, match="losses of complex64"):
        threshold(jnp.ones(2, jnp.complex64), min_loss=0.5)
    with pytest.raises(ValueError, match="min_loss is NaN"):
        threshold(jnp.ones(2), min_loss=float("nan"))
