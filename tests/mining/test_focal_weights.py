"""What is special to `focal_weights`; the laws it shares are in tests/mining/test_weights.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.mining import focal_weights, masked_mean


def _cross_entropy(logits, positive):
    return jnp.where(positive, jax.nn.softplus(-logits), jax.nn.softplus(logits))


def _focal_loss(logits, positive, gamma):
    """As written in the paper, equation 4, from the probability of the right class."""
    probability = jax.nn.sigmoid(jnp.where(positive, logits, -logits))
    return -((1 - probability) ** gamma) * jnp.log(probability)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_the_weighted_cross_entropy_is_the_focal_loss_in_value_and_gradient(gamma):
    logits = jnp.linspace(-6, 6, 41)
    positive = jnp.arange(41) % 3 == 0

    def weighted(logits):
        losses = _cross_entropy(logits, positive)
        return masked_mean(focal_weights(losses, gamma=gamma) * losses, where=None)

    found = jax.jit(jax.value_and_grad(weighted))(logits)
    expected = jax.value_and_grad(lambda logits: _focal_loss(logits, positive, gamma).mean())(logits)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-7)


def test_gamma_0_is_the_plain_loss():
    losses = jnp.array([0.0, 1e-6, 1.0, 100.0])
    np.testing.assert_array_equal(focal_weights(losses, gamma=0.0), np.ones(4))
    gradient = jax.grad(lambda losses: (focal_weights(losses, gamma=0.0) * losses).sum())(losses)
    np.testing.assert_allclose(gradient, np.ones(4))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_ends_are_finite(gamma):
    losses = jnp.array([-1.0, 0.0, 1e-30, 1e4])
    # Not even on the way, where `jax_debug_nans` would stop.
    with jax.debug_nans(True):
        gradient = jax.grad(lambda losses: (focal_weights(losses, gamma=gamma) * losses).sum())(losses)
    assert np.isfinite(gradient).all()
    weights = focal_weights(losses, gamma=gamma)
    np.testing.assert_array_equal(weights[jnp.array([0, 1, 3])], [gamma == 0, gamma == 0, 1])


def test_small_losses_keep_their_digits():
    """1 - exp(-1e-6) has lost all but one digit in float32."""
    np.testing.assert_allclose(focal_weights(jnp.array([1e-6]), gamma=1.0), [1e-6], rtol=1e-5)


def test_it_rises_with_the_loss_and_gamma_may_be_traced():
    losses = jnp.linspace(0.01, 5, 50)
    compiled = jax.jit(lambda gamma: focal_weights(losses, gamma=gamma))
    for gamma in (0.5, 2.0):
        assert (np.diff(compiled(gamma)) > 0).all()
    assert (compiled(2.0) < compiled(0.5)).all() and compiled._cache_size() == 1


def test_refusals():
    for gamma in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"gamma={gamma} must be finite and 0 or more"):
            focal_weights(jnp.zeros(3), gamma=gamma)
    with pytest.raises(ValueError, match=r"gamma of shape \(3,\): give one number for all units"):
        focal_weights(jnp.zeros(3), gamma=jnp.ones(3))
