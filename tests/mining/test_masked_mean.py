"""masked_mean: its value, its gradient, and what must never reach them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.mining import masked_mean

LOSSES = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], np.float32)
WHERE = np.array([[True, False, True], [False, False, True]])


def test_equals_numpy():
    assert masked_mean(LOSSES, where=WHERE) == pytest.approx(LOSSES[WHERE].mean())
    assert masked_mean(LOSSES, where=None) == pytest.approx(LOSSES.mean())
    assert masked_mean(LOSSES, where=WHERE, denominator=16) == pytest.approx(LOSSES[WHERE].sum() / 16)
    chex.assert_shape(masked_mean(LOSSES[None, :, None], where=WHERE[None, :, None]), ())


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("denominator", [None, 5.0])
def test_garbage_in_a_slot_that_is_not_kept_reaches_nothing(garbage, denominator):
    dirty = np.where(WHERE, LOSSES, np.float32(garbage))
    function = jax.jit(jax.value_and_grad(lambda x: masked_mean(x, where=WHERE, denominator=denominator)))
    chex.assert_trees_all_equal(function(dirty), function(LOSSES))
    np.testing.assert_allclose(function(dirty)[1], WHERE / (denominator or 3.0), rtol=1e-6)


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_garbage_in_a_kept_slot_does_reach_the_value(garbage):
    assert not np.isfinite(masked_mean(np.where(WHERE, np.float32(garbage), LOSSES), where=WHERE))


@pytest.mark.parametrize("denominator", [None, 5.0])
def test_nothing_kept_gives_zero_and_a_gradient_of_zeros(denominator):
    nothing = np.zeros_like(WHERE)
    function = jax.value_and_grad(lambda x: masked_mean(x, where=nothing, denominator=denominator))
    value, gradient = function(LOSSES * np.nan)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros_like(LOSSES))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_half_precision_is_summed_in_single(dtype):
    losses = np.full(5000, 100, dtype)
    value, gradient = jax.value_and_grad(lambda x: masked_mean(x, where=None))(losses)
    assert value.dtype == jnp.float32 and value == 100.0
    assert gradient.dtype == dtype


def test_bool_and_integer_losses_give_a_fraction():
    assert masked_mean(WHERE, where=None) == pytest.approx(0.5)
    assert masked_mean(LOSSES.astype(np.int32), where=WHERE) == pytest.approx(LOSSES[WHERE].mean())


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_garbage_reaches_no_tangent_and_no_second_derivative(garbage):
    dirty = np.where(WHERE, LOSSES, np.float32(garbage))

    def square(losses):
        return masked_mean(losses, where=WHERE) ** 2

    value, tangent = jax.jvp(lambda losses: masked_mean(losses, where=WHERE), (dirty,), (dirty,))
    assert value == tangent == pytest.approx(LOSSES[WHERE].mean())
    chex.assert_trees_all_equal(jax.hessian(square)(dirty), jax.hessian(square)(LOSSES))


def test_the_denominator_does_not_change_the_precision():
    with jax.enable_x64(True):
        for denominator in (16, np.float64(16), jnp.int32(16), jnp.float64(16)):
            assert masked_mean(LOSSES, where=WHERE, denominator=denominator).dtype == jnp.float32


def test_a_traced_denominator():
    assert jax.jit(lambda d: masked_mean(LOSSES, where=None, denominator=d))(63) == pytest.approx(1.0)


def test_refusals():
    with pytest.raises(ValueError, match="must be bool, not float32"):
        masked_mean(LOSSES, where=WHERE.astype(np.float32))
    with pytest.raises(ValueError, match=r"\(3,\) != losses \(2, 3\)"):
        masked_mean(LOSSES, where=WHERE[0])
    for denominator in (0, -1.0, float("nan"), np.array(0.0)):
        with pytest.raises(ValueError, match=f"denominator={denominator} must be positive"):
            masked_mean(LOSSES, where=WHERE, denominator=denominator)
    with pytest.raises(ValueError, match=r"denominator of shape \(2,\): give one number"):
        masked_mean(LOSSES, where=WHERE, denominator=jnp.array([2.0, 3.0]))


def test_the_mean_over_one_kept_unit_is_its_loss():
    assert masked_mean(jnp.array([3.0, 5.0]), where=jnp.array([False, True])) == 5.0


def test_complex_losses_are_refused():
    with pytest.raises(TypeError, match="losses of complex64"):
        masked_mean(jnp.ones(2, jnp.complex64), where=None)
