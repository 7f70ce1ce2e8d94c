"""The checks that selectors share; what each selector makes of them is in its own tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax import mining
from hardmine_jax.mining.types import check_count_a_row

LOSSES = np.arange(10, dtype=np.float32).reshape(2, 5)


@pytest.mark.parametrize("large", [np.uint32(2**32 - 1), np.array(2**32), np.uint8(255)], ids=repr)
def test_a_number_too_large_for_int32_is_clipped_and_does_not_wrap(large):
    count = check_count_a_row("k", np.asarray(large), LOSSES, least=1)
    assert count.dtype == jnp.int32 and int(count) == 5
    with jax.enable_x64(True):
        keep = jax.jit(lambda k: mining.top_k(LOSSES, k=k))(jnp.asarray(large))
    assert keep.all()


def test_a_small_type_is_not_asked_to_hold_the_number_of_units():
    losses = np.zeros((2, 300), np.float32)
    for count in (np.uint8([255, 7]), jnp.uint8([255, 7])):
        np.testing.assert_array_equal(check_count_a_row("k", count, losses, least=1), [255, 7])


def test_a_negative_number_is_clipped():
    np.testing.assert_array_equal(check_count_a_row("k", jnp.array([-7, 3]), LOSSES, least=1), [0, 3])


def test_a_number_that_is_none_is_named():
    for count in (2.0, "2", True, None, [1, 2]):
        with pytest.raises(TypeError, match="must be a Python int"):
            check_count_a_row("k", count, LOSSES, least=1)
    for count in (np.array([1.0, 2.0]), np.array([True, False])):
        with pytest.raises(TypeError, match=f"k of {count.dtype} must be an integer array"):
            check_count_a_row("k", count, LOSSES, least=1)
    with pytest.raises(ValueError, match=r"k of shape \(5,\) .* \[\], or one a row, \(2,\)"):
        check_count_a_row("k", np.arange(5), LOSSES, least=1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.int32])
def test_half_precision_and_integers_pass_where_promotion_is_strict(dtype):
    losses = jnp.asarray(LOSSES, dtype)
    keep = LOSSES > 2
    with jax.numpy_dtype_promotion("strict"):
        mean = mining.masked_mean(losses, where=keep, denominator=jnp.int32(3))
        found = [
            mining.stats(losses, keep).fraction_kept,
            mining.harder_than_easiest(LOSSES, ratio=2.0, min_kept=jnp.uint8(1)),
            mining.hard_negatives(LOSSES, positive=keep, min_negatives=jnp.uint32(1)),
            mining.hard_negatives(LOSSES, positive=keep, ratio=jnp.int32(2)),
            mining.focal_weights(losses),
            mining.ghm_weights(losses),
            mining.importance_weights(jax.random.key(0), losses, k=jnp.uint8(2)),
        ]
    assert mean == 14.0 and all(np.isfinite(each).all() for each in found)


def test_double_precision_stays():
    losses = np.array([1.0, 1.0 + 1e-12, 2.0 + 1e-12])
    with jax.enable_x64(True):
        found = [
            mining.masked_mean(losses, where=None),
            mining.stats(losses, losses > 1).loss_captured,
            mining.focal_weights(losses),
            mining.ghm_weights(losses),
        ]
        hard = mining.harder_than_easiest(losses, min_kept=0, ratio=1 + 5e-13)
    assert all(each.dtype == np.float64 for each in found)
    np.testing.assert_array_equal(hard, [False, True, True])
