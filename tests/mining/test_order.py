"""The exact order and the choice from it, apart from what selectors make of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardmine_jax.mining import order

INT32 = np.iinfo(np.int32)
KEYS = st.sampled_from([INT32.min, INT32.min + 1, -2, -1, 0, 1, 2, INT32.max - 1, INT32.max])


def _first(keys, k, where):
    taken = np.zeros(keys.shape, bool)
    candidates = np.flatnonzero(where)
    # The two lowest integers are one key to `keep_first`.
    values = np.maximum(keys[candidates].astype(object), np.iinfo(keys.dtype).min + 1)
    order = sorted(range(len(candidates)), key=lambda i: (-values[i], i))
    taken[candidates[order[: max(k, 0)]]] = True
    return taken


@pytest.mark.parametrize("num_units", [1, 64, 65, 129])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_keep_first_is_a_stable_sort(num_units, data):
    keys = np.array(data.draw(st.lists(KEYS, min_size=num_units, max_size=num_units)), np.int32)
    where = np.array(data.draw(st.lists(st.booleans(), min_size=num_units, max_size=num_units)))
    k = data.draw(st.integers(-1, num_units + 1))
    keep = _keep_first(keys, np.int32(k), where)
    np.testing.assert_array_equal(keep, _first(keys, k, where))


_keep_first = jax.jit(lambda keys, k, where: order.keep_first(keys, k=k, where=where))


@pytest.mark.parametrize("num_units", [5, 200])
def test_keep_first_of_64_bits(num_units):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        info = np.iinfo(np.int64)
        keys = rng.choice(np.array([info.min, -(2**40), -1, 0, 1, 2**40, 2**40 + 1, info.max]), num_units)
        where = rng.random(num_units) < 0.7
        for k in (0, 1, num_units // 2, num_units):
            keep = order.keep_first(jnp.asarray(keys), k=k, where=jnp.asarray(where))
            np.testing.assert_array_equal(keep, _first(keys, k, where))


@pytest.mark.parametrize("first", [order._first_by_words, order._first_by_sorting, order._first_by_bytes])
@pytest.mark.parametrize("num_units", [65, 9000])
def test_every_platforms_formulation_is_a_stable_sort(first, num_units):
    """Random keys, ties about every level, keys at both ends; k from none to all."""
    rng = np.random.default_rng(num_units)
    for integer in (np.int32, np.int64):
        info = np.iinfo(integer)
        ends = rng.choice(np.array([info.min, info.min + 1, -1, 0, 1, info.max - 1, info.max]), num_units)
        random = rng.integers(info.min, info.max, num_units, integer)
        keys = np.stack([random, ends, ends % 3, np.full(num_units, info.max), np.full(num_units, info.min)])
        with jax.enable_x64(integer is np.int64):
            run = jax.jit(first)
            for k in ({0, 1, num_units // 2, num_units - 1, num_units}, (num_units // 3,))[num_units > 999]:
                wanted = np.array([[k], [k], [num_units - k], [k], [k]], np.int32)
                found = run(jnp.asarray(keys, integer), jnp.asarray(wanted))
                for row, n, keep in zip(keys, wanted[:, 0], found, strict=True):
                    expected = np.zeros(num_units, bool)
                    expected[np.lexsort((np.arange(num_units), -row.astype(object)))[:n]] = True
                    np.testing.assert_array_equal(keep, expected)


@pytest.mark.parametrize("num_units", [6, 3000])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_highest_are_the_highest(num_units, k):
    rng = np.random.default_rng(k)
    keys = rng.integers(-50, 50, (3, num_units), np.int32)
    where = np.stack([rng.random(num_units) < 0.7, np.zeros(num_units, bool), np.arange(num_units) == 2])
    found = np.sort(order.highest(jnp.asarray(keys), k=k, where=jnp.asarray(where)), axis=-1)
    expected = np.sort(np.where(where, keys, INT32.min), axis=-1)[:, num_units - k :]
    np.testing.assert_array_equal(found, expected)


def test_order_of_keys_is_the_order_of_losses():
    losses = np.array([-np.inf, -3e38, -1.0, -1e-40, 0.0, 1e-40, 1.0, 3e38, np.inf, np.nan], np.float32)
    keys = np.asarray(order.order_keys(jnp.asarray(losses)))
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    assert order.order_keys(jnp.float32(-0.0)) == order.order_keys(jnp.float32(0.0))
    assert order.order_keys(-jnp.float32(jnp.nan)) == INT32.max


@pytest.mark.parametrize("beside", [lambda losses: losses > 2, lambda losses: losses == 2, jnp.isnan])
@pytest.mark.parametrize("num_units", [7, 70])
def test_a_subnormal_bfloat16_has_one_key_also_where_it_is_compared_beside(num_units, beside):
    """Made anew for each of its uses, its key was 0 in some: not even the only unit came first."""
    losses = np.zeros((5, num_units)).astype(jnp.bfloat16)
    losses[:, -1] = [1e-40, 1e-38, -1e-40, -1e-38, 1]
    losses[:, -2] = [0, 1e-39, -1e-39, -np.inf, 1e-40]
    hardest = np.broadcast_to(np.arange(num_units) == num_units - 1, losses.shape)

    @jax.jit
    def first(losses, where):
        return order.keep_first(order.order_keys(losses), k=1, where=where & ~beside(losses))

    for others in (0, 1):
        where = np.broadcast_to(np.arange(num_units) >= num_units - 1 - others, losses.shape)
        np.testing.assert_array_equal(first(losses, where), hardest)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_strict_promotion_of_types_is_no_obstacle(dtype):
    losses = jnp.asarray([3, 1, 2], dtype)
    with jax.numpy_dtype_promotion("strict"):
        keep = order.keep_first(order.order_keys(losses), k=2, where=jnp.ones(3, bool))
    np.testing.assert_array_equal(keep, [True, False, True])
