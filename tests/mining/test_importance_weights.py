"""What is special to `importance_weights`; the laws it shares are in tests/mining/test_weights.py."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.mining import importance_weights, masked_mean


def test_the_mean_gradient_over_draws_is_the_full_gradient():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(size=40).astype(np.float32) ** 3
    where = rng.random(40) < 0.8

    def units(parameters):
        return (inputs @ parameters - targets) ** 2

    def drawn(parameters, key):
        losses = units(parameters)
        weights = importance_weights(key, losses, k=5, where=where)
        return masked_mean(weights * losses, where=where)

    parameters = jnp.array([0.3, -0.2, 0.5])
    keys = jax.random.split(jax.random.key(0), 20_000)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(drawn), in_axes=(None, 0)))(parameters, keys)
    full = jax.value_and_grad(lambda parameters: masked_mean(units(parameters), where=where))(parameters)
    for draws, expected in zip((values[:, None], gradients), full, strict=True):
        draws = np.asarray(draws, np.float64)
        error = draws.std(axis=0) / np.sqrt(len(draws))
        assert (np.abs(draws.mean(axis=0) - np.asarray(expected)) < 4.5 * error + 1e-6).all()
        assert (error < 0.03 * np.abs(expected).max()).all(), "the test would notice too little"


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("k, grain", [(1, 512), (3, 512), (9, 512), (3, 32)])
def test_every_weight_has_the_expectation_1_exactly(k, grain, equal, monkeypatch):
    """Over all offsets, each as likely: with shares in coarse grains there are few enough to try each.

    At 32 grains the even part of a unit is less than one.
    """
    module = importlib.import_module("hardmine_jax.mining.importance_weights")
    monkeypatch.setattr(module, "_GRAIN", grain)
    losses = np.array([0.0, 1.0, 1e-3, 30.0, 5.0, 5.0, 2.0, np.nan, 0.1], np.float32)
    where = ~np.isnan(losses)
    losses = np.where(where, 1, losses) if equal else losses
    steps = []

    def every_offset(key, shape, low, high):
        steps.append(int(high.reshape(-1)[0]))
        return jnp.arange(shape[0], dtype=jnp.int32)[:, None] % high

    monkeypatch.setattr(jax.random, "randint", every_offset)
    key = jax.random.key(0)
    importance_weights(key, losses[None], k=k, where=where[None])
    rows = (steps[0], len(losses))
    weights = importance_weights(key, np.broadcast_to(losses, rows), k=k, where=np.broadcast_to(where, rows))
    np.testing.assert_allclose(np.asarray(weights, np.float64).mean(axis=0), where, rtol=1e-6)
    drawn = np.asarray(weights > 0).sum(-1)
    assert drawn.max() <= k


def test_harder_units_are_drawn_more_often_and_weigh_less():
    losses = jnp.array([1.0, 2.0, 4.0, 8.0])
    keys = jax.random.split(jax.random.key(1), 4000)
    weights = np.asarray(jax.vmap(lambda key: importance_weights(key, losses, k=1))(keys))
    rate = (weights > 0).mean(axis=0)
    np.testing.assert_allclose(rate, 0.9 * np.array([1, 2, 4, 8]) / 15 + 0.1 / 4, atol=0.03)
    assert (np.diff(weights.max(axis=0)) < 0).all()


def test_each_row_draws_its_own():
    drawn = np.asarray(importance_weights(jax.random.key(0), jnp.ones((20, 30)), k=3) > 0)
    assert len(np.unique(drawn, axis=0)) > 5


def test_draws_are_k_and_no_weight_is_beyond_its_bound():
    rng = np.random.default_rng(0)
    losses = rng.pareto(1.0, (50, 1000)).astype(np.float32)
    weights = np.asarray(importance_weights(jax.random.key(0), losses, k=64))
    share = 0.9 * losses / losses.sum(-1, keepdims=True) + 0.1 / 1000
    draws = weights * 64 * share
    np.testing.assert_allclose(draws, draws.round(), atol=0.02)
    np.testing.assert_array_equal(draws.round().sum(-1), np.full(50, 64))
    assert weights.max() <= 1.001 * 1000 / (64 * 0.1)
    assert (np.abs(draws - 64 * share) < 1.02).all(), "floor or ceil of the expected number"


def test_no_weight_is_beyond_2_where_nearly_all_are_drawn():
    """A unit with k p = 1.2 is drawn once or twice: its weight is 0.83 or 1.67."""
    losses = jnp.array([0.3] + [0.7 / 9] * 9)
    keys = jax.random.split(jax.random.key(0), 200)
    weights = jax.vmap(lambda key: importance_weights(key, losses, k=10, uniform=0.9))(keys)
    assert float(weights.max()) == pytest.approx(2 / 1.2, rel=1e-4)


def test_a_million_units_stay_unbiased():
    """A cumulated sum in float32 would lose most of a share of 1e-6."""
    losses = jnp.ones(1_000_000)
    weights = importance_weights(jax.random.key(0), losses, k=1000)
    assert float(masked_mean(weights, where=None)) == pytest.approx(1.0, rel=1e-3)
    gaps = np.diff(np.flatnonzero(weights))
    assert gaps.min() >= 999 and gaps.max() <= 1001


def test_less_variance_than_uniform_draws_where_few_units_carry_the_loss():
    losses = jnp.asarray(np.random.default_rng(0).pareto(1.5, 200), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 2000)

    def estimate(key, uniform):
        return masked_mean(importance_weights(key, losses, k=10, uniform=uniform) * losses, where=None)

    spread = [jax.vmap(lambda key, u=uniform: estimate(key, u))(keys).std() for uniform in (0.1, 1.0)]
    assert spread[0] < 0.3 * spread[1]


@pytest.mark.parametrize("size", [1e-36, 1.0, 3e38])
def test_the_unit_of_the_loss_does_not_matter(size):
    """With one draw a weight is 0 or 1 / p."""
    losses = np.float32(size) * np.array([0.1, 0.5, 0.2, 1.0], np.float32)
    keys = jax.random.split(jax.random.key(3), 400)
    weights = jax.vmap(lambda key: importance_weights(key, losses, k=1))(keys)
    share = 0.9 * np.array([0.1, 0.5, 0.2, 1.0]) / 1.8 + 0.1 / 4
    np.testing.assert_allclose(weights.max(axis=0), 1 / share, rtol=1e-4)


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_losses_beyond_float32_keep_their_proportions(size):
    with jax.enable_x64(True):
        losses = size * np.array([0.1, 0.5, 0.2, 1.0])
        keys = jax.random.split(jax.random.key(3), 400)
        weights = jax.vmap(lambda key: importance_weights(key, losses, k=1))(keys)
    share = 0.9 * np.array([0.1, 0.5, 0.2, 1.0]) / 1.8 + 0.1 / 4
    np.testing.assert_allclose(weights.max(axis=0), 1 / share, rtol=1e-4)


def test_without_any_loss_draws_are_uniform():
    weights = importance_weights(jax.random.key(0), jnp.zeros(12), k=4)
    np.testing.assert_allclose(np.sort(weights), [0] * 8 + [3] * 4, rtol=1e-6)


def test_no_gradient():
    losses = jnp.array([1.0, 2.0, 3.0])
    gradient = jax.grad(lambda losses: importance_weights(jax.random.key(0), losses, k=2).sum())(losses)
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_a_traced_k_draws_the_same():
    losses = jnp.arange(30.0)
    compiled = jax.jit(lambda k: importance_weights(jax.random.key(0), losses, k=k))
    for k in (1, 7, 30):
        np.testing.assert_allclose(compiled(k), importance_weights(jax.random.key(0), losses, k=k), rtol=1e-6)
    for k, clipped in ((-3, 1), (31, 30), (2**31 - 1, 30)):
        np.testing.assert_array_equal(compiled(k), compiled(clipped))


def test_refusals():
    key, losses = jax.random.key(0), jnp.ones(5)
    with pytest.raises(ValueError, match="k=6 > N=5"):
        importance_weights(key, losses, k=6)
    with pytest.raises(ValueError, match="k=0 < 1"):
        importance_weights(key, losses, k=0)
    for uniform in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"uniform={uniform} must lie in \(0, 1\]"):
            importance_weights(key, losses, k=2, uniform=uniform)
