"""What is special to `ghm_weights`; the laws it shares are in tests/mining/test_weights.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.mining import ghm_weights, gradient_histogram, masked_mean


def _oracle(norms, num_bins, where):
    """The paper's algorithm over bins, one row."""
    weights, occupied = np.zeros(len(norms)), 0
    for number in range(num_bins):
        low, high = number / num_bins, (number + 1) / num_bins
        inside = where & (norms >= low) & ((norms < high) | (number == num_bins - 1))
        if inside.any():
            occupied += 1
            weights[inside] = where.sum() / inside.sum()
    return weights / max(occupied, 1)


@pytest.mark.parametrize("num_bins", [1, 4, 32])
def test_equals_a_loop_over_bins(num_bins):
    rng = np.random.default_rng(0)
    norms = (rng.beta(0.3, 1.0, (3, 500))).astype(np.float32)
    norms[:, :4] = [0.0, 1.0, 0.25, 0.5]
    where = rng.random(norms.shape) < 0.8
    weights = jax.jit(lambda norms, where: ghm_weights(norms, num_bins=num_bins, where=where))(norms, where)
    expected = np.stack([_oracle(row, num_bins, part) for row, part in zip(norms, where, strict=True)])
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_every_bin_that_is_not_empty_has_the_same_total_and_the_mean_is_1():
    norms = np.random.default_rng(1).beta(0.3, 1.0, 2000).astype(np.float32)
    weights = np.asarray(ghm_weights(norms, num_bins=10))
    totals = np.bincount((norms * 10).astype(int).clip(max=9), weights, minlength=10)
    np.testing.assert_allclose(totals, np.full(10, 200.0), rtol=1e-4)
    assert float(masked_mean(weights, where=None)) == pytest.approx(1.0, rel=1e-5)


def test_the_histogram_counts_those_that_take_part():
    norms = np.array([[0.0, 0.09, 0.1, 0.95, 1.0, 1.5, -1.0], [0.5] * 7], np.float32)
    where = np.array([[True] * 7, [True, False] * 3 + [False]])
    counts = gradient_histogram(norms, num_bins=10, where=where)
    np.testing.assert_array_equal(counts[0], [3, 1, 0, 0, 0, 0, 0, 0, 0, 3])
    np.testing.assert_array_equal(counts[1], np.eye(10)[5] * 3)


def test_nan_counts_as_the_strongest_gradient():
    norms = jnp.array([jnp.nan, 0.1, 0.1, 0.9])
    np.testing.assert_array_equal(gradient_histogram(norms, num_bins=2), [2, 2])
    np.testing.assert_array_equal(ghm_weights(norms, num_bins=2), np.ones(4))


def test_counts_may_be_those_of_all_devices():
    norms = np.random.default_rng(2).random((4, 50), np.float32)

    def share(norms):
        counts = jax.lax.psum(gradient_histogram(norms, num_bins=6), "data")
        return ghm_weights(norms, num_bins=6, counts=counts)

    together = ghm_weights(norms.reshape(-1), num_bins=6).reshape(4, 50)
    np.testing.assert_allclose(jax.vmap(share, axis_name="data")(norms), together, rtol=1e-5)


def test_counts_that_lack_a_unit_give_no_infinite_weight():
    weights = ghm_weights(jnp.array([0.1, 0.9]), num_bins=2, counts=jnp.array([10.0, 0.0]))
    np.testing.assert_allclose(weights, [1.0, 10.0])


def test_no_gradient():
    norms, counts = jnp.array([0.1, 0.2, 0.9]), jnp.array([2.0, 1.0])

    def total(norms, counts):
        return ghm_weights(norms, num_bins=2, counts=counts).sum()

    np.testing.assert_array_equal(jax.grad(lambda norms: ghm_weights(norms).sum())(norms), np.zeros(3))
    gradients = jax.grad(total, argnums=(0, 1))(norms, counts)
    np.testing.assert_array_equal(np.concatenate(gradients), np.zeros(5))


def test_refusals():
    with pytest.raises(ValueError, match="num_bins=0 < 1"):
        ghm_weights(jnp.zeros(3), num_bins=0)
    with pytest.raises(ValueError, match=r"counts of shape \(4,\) != \(2, 5\)"):
        ghm_weights(jnp.zeros((2, 3)), num_bins=5, counts=jnp.ones(4))


@pytest.mark.parametrize("num_bins", [2.5, 3.0, True])
def test_the_number_of_bins_is_an_integer(num_bins):
    for function in (ghm_weights, gradient_histogram):
        with pytest.raises(TypeError, match="must be a Python int"):
            function(jnp.array([0.0, 0.5, 1.0]), num_bins=num_bins)


def test_counts_that_have_seen_nothing_weigh_nothing():
    weights = ghm_weights(jnp.array([0.2, 0.9]), num_bins=4, counts=jnp.zeros(4))
    np.testing.assert_array_equal(weights, [0, 0])
