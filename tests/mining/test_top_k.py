"""What is special to `top_k`; the laws it shares are in tests/test_selector_contract.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.mining import top_k


def _indices(keep) -> list[int]:
    return np.flatnonzero(keep).tolist()


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_names_both_numbers(k):
    with pytest.raises(ValueError, match=rf"k={k} < 1.*N=14"):
        top_k(jnp.zeros((2, 14)), k=k)


def test_k_above_n_names_both_numbers():
    with pytest.raises(ValueError, match="k=20 > N=14"):
        top_k(jnp.zeros((2, 14)), k=20)


@pytest.mark.parametrize("k", [True, 3.0, "3", None, jnp.float32(3), jnp.array(True)])
def test_k_must_be_an_integer(k):
    with pytest.raises(TypeError, match="must be a Python int|or a Python int"):
        top_k(jnp.zeros(5), k=k)


@pytest.mark.parametrize("num_units", [17, 100])
def test_a_traced_k_is_the_static_one_and_compiles_once(num_units):
    rng = np.random.default_rng(0)
    losses = rng.integers(0, 9, (4, num_units)).astype(np.float32)
    where = rng.random(losses.shape) < 0.8
    compiled = jax.jit(lambda k: top_k(losses, k=k, where=where))
    for k in (1, 2, num_units // 2, num_units):
        np.testing.assert_array_equal(compiled(k), top_k(losses, k=k, where=where))
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8, np.uint32])
@pytest.mark.parametrize("num_units", [17, 300])
def test_one_k_a_row_is_clipped_to_what_takes_part(num_units, dtype):
    k = np.array([0, 1, 5, 120], dtype)
    where = np.arange(num_units) < np.array([[9], [0], [9], [9]])
    keep = jax.jit(lambda k: top_k(jnp.zeros(where.shape), k=k, where=where))(k)
    np.testing.assert_array_equal(keep.sum(-1), [0, 0, 5, 9])
    assert not top_k(jnp.ones(num_units), k=jnp.int32(-3)).any()


def test_k_of_another_shape_names_both():
    with pytest.raises(ValueError, match=r"k of shape \(3,\) for losses \(2, 14\).*\(2,\)"):
        top_k(jnp.zeros((2, 14)), k=jnp.array([1, 2, 3]))


@pytest.mark.parametrize("k", [1, 1000, 99_999])
def test_many_units_with_ties_equal_a_stable_sort(k):
    rng = np.random.default_rng(k)
    losses = rng.choice(np.array([-np.inf, -2.0, -0.0, 0.0, 1e-40, 3.0, np.inf], np.float32), 100_000)
    where = rng.random(losses.shape) < 0.9
    order = np.argsort(-losses[where], kind="stable")[:k]
    expected = np.zeros(losses.shape, bool)
    expected[np.flatnonzero(where)[order]] = True
    np.testing.assert_array_equal(top_k(losses, k=k, where=where), expected)


def test_numpy_integers_are_integers():
    assert _indices(top_k(jnp.array([1.0, 2.0]), k=np.int64(1))) == [1]


@pytest.mark.parametrize("num_units", [4, 64, 65, 200])
def test_k_equal_to_n_keeps_all_that_take_part(num_units):
    where = np.arange(num_units) % 3 != 0
    np.testing.assert_array_equal(top_k(jnp.zeros(num_units), k=num_units, where=where), where)


def test_nan_is_the_hardest_and_reaches_the_loss():
    losses = jnp.array([jnp.inf, 1.0, jnp.nan, 3e38])
    assert _indices(top_k(losses, k=1)) == [2]
    assert _indices(top_k(losses, k=2)) == [0, 2]
    assert _indices(top_k(-losses, k=1)) == [2]


def test_a_loss_of_minus_infinity_still_takes_part():
    losses = jnp.array([5.0, -jnp.inf, -jnp.inf, 4.0])
    where = jnp.array([False, True, True, False])
    assert _indices(top_k(losses, k=3, where=where)) == [1, 2]
    assert _indices(top_k(losses, k=1, where=where)) == [1]


def test_signed_zeros_are_a_tie_and_subnormals_are_not():
    assert _indices(top_k(jnp.array([-0.0, 0.0]), k=1)) == [0]
    assert _indices(top_k(np.array([0.0, 1e-40], np.float32), k=1)) == [1]


def test_the_extremes_of_integers():
    info = np.iinfo(np.int32)
    assert _indices(top_k(np.array([info.min, 0, info.max], np.int32), k=2)) == [1, 2]
    assert _indices(top_k(np.array([0, 2**31, 2**32 - 1], np.uint32), k=2)) == [1, 2]
    where = np.array([False, True])
    assert _indices(top_k(np.array([info.min, info.min], np.int32), k=1, where=where)) == [1]


def test_bool_losses():
    assert _indices(top_k(np.array([False, True, False, True]), k=3)) == [0, 1, 3]


def test_doubles_are_not_rounded():
    with jax.enable_x64(True):
        assert _indices(top_k(np.array([1.0, 1.0 + 1e-12, 1.0 - 1e-12]), k=1)) == [1]
        assert _indices(top_k(np.array([-1.0, -1.0 - 1e-12, -np.inf, np.nan]), k=2)) == [0, 3]


def test_complex_losses_are_refused():
    with pytest.raises(TypeError, match="no order"):
        top_k(jnp.zeros(3, jnp.complex64), k=1)


def test_k_is_the_only_static_thing():
    """New losses and a new `where` do not compile again."""
    compiled = jax.jit(lambda losses, where: top_k(losses, k=2, where=where))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        compiled(rng.random((3, 5), np.float32), rng.random((3, 5)) < 0.5)
    assert compiled._cache_size() == 1
