"""What is special to `random_k`; the laws it shares are in tests/test_selector_contract.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.mining import random_k


def test_every_participating_unit_is_equally_likely():
    rows = 4000
    where = jnp.broadcast_to(jnp.array([True, True, False, True, True, True]), (rows, 6))
    rate = random_k(jax.random.key(0), jnp.zeros((rows, 6)), k=2, where=where).mean(axis=0)
    # Each is kept with probability 2/5: a standard deviation of 0.0077.
    np.testing.assert_allclose(rate, [0.4, 0.4, 0.0, 0.4, 0.4, 0.4], atol=0.04)


def test_every_pair_is_equally_likely():
    rows = 6000
    keep = np.asarray(random_k(jax.random.key(1), jnp.zeros((rows, 4)), k=2))
    rate = np.bincount(keep @ np.array([1, 2, 4, 8]), minlength=16) / rows
    np.testing.assert_allclose(rate[[3, 5, 6, 9, 10, 12]], np.full(6, 1 / 6), atol=0.025)


def test_the_losses_do_not_matter_and_the_key_does():
    key, shape = jax.random.key(0), (16, 9)
    keep = random_k(key, jnp.zeros(shape), k=4)
    np.testing.assert_array_equal(keep, random_k(key, jax.random.normal(key, shape), k=4))
    assert (keep != random_k(jax.random.key(1), jnp.zeros(shape), k=4)).any()
    assert (keep[:1] != keep).any(), "rows must not share their draw"


def test_a_traced_k_draws_the_same_units():
    key, losses = jax.random.key(0), jnp.zeros((3, 100))
    compiled = jax.jit(lambda k: random_k(key, losses, k=k))
    for k in (1, 30, 100):
        np.testing.assert_array_equal(compiled(k), random_k(key, losses, k=k))


def test_k_out_of_range_names_both_numbers():
    with pytest.raises(ValueError, match="k=6 > N=5"):
        random_k(jax.random.key(0), jnp.zeros(5), k=6)
    with pytest.raises(ValueError, match="k=0 < 1.*N=5"):
        random_k(jax.random.key(0), jnp.zeros(5), k=0)
