"""schedule: its ends, its shape, and its use as a traced k."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax import mining
from hardmine_jax.mining import schedule


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_goes_from_start_to_k_without_turning_back(shape):
    numbers = schedule(jnp.arange(-5, 300), start=133, k=8, steps=200, begin=50, shape=shape)
    assert numbers.dtype == jnp.int32 and numbers.shape == (305,)
    assert (numbers[: 50 + 6] == 133).all() and (numbers[250 + 5 :] == 8).all()
    assert (np.diff(numbers) <= 0).all() and (np.diff(numbers) < 0).sum() > 60
    assert int(schedule(150, start=133, k=8, steps=200, begin=50, shape=shape)) in (70, 71)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_equals_numpy(shape):
    step = np.arange(1000)
    portion = np.clip(step / 777, 0, 1)
    portion = portion if shape == "linear" else (1 - np.cos(np.pi * portion)) / 2
    numbers = np.asarray(schedule(step, start=2000, k=64, steps=777, shape=shape))
    assert np.abs(numbers - (2000 + (64 - 2000) * portion)).max() <= 0.501


def test_a_late_step_is_not_rounded():
    begin = 2**25
    steps = begin + jnp.arange(5)
    np.testing.assert_array_equal(schedule(steps, start=5, k=1, steps=4, begin=begin), [5, 4, 3, 2, 1])


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("start, k", [(33_554_436, 1), (33_554_435, 1), (1, 33_554_436)])
def test_the_ends_are_exact_above_the_integers_of_float32(start, k, shape):
    steps = jnp.array([0, 1, 50_000, 99_999, 100_000, 100_001])
    numbers = np.asarray(schedule(steps, start=start, k=k, steps=100_000, shape=shape))
    assert numbers[0] == start and (numbers[4:] == k).all()
    assert numbers.min() == min(start, k) and numbers.max() == max(start, k)


def test_numpy_integers_do_not_wrap():
    assert int(schedule(5, start=np.uint8(1), k=np.uint8(3), steps=np.uint8(10))) == 2
    assert int(schedule(5, start=np.uint8(3), k=np.uint8(1), steps=np.uint8(10))) == 2


def test_a_step_of_few_bits_does_not_wrap_before_it_begins():
    steps = np.array([5, 60, 255], np.uint8)
    np.testing.assert_array_equal(schedule(steps, start=9, k=1, steps=80, begin=50), [9, 8, 1])


def test_it_may_rise_and_may_stay():
    assert [int(schedule(step, start=1, k=3, steps=2)) for step in range(4)] == [1, 2, 3, 3]
    assert int(schedule(5, start=8, k=8, steps=10)) == 8


LOSSES = np.random.default_rng(0).random((3, 100), np.float32)
SELECTORS = {
    "top_k": lambda k: mining.top_k(LOSSES, k=k),
    "random_k": lambda k: mining.random_k(jax.random.key(0), LOSSES, k=k),
    "threshold": lambda k: mining.threshold(LOSSES, min_loss=2.0, min_kept=k),
    "hard_negatives": lambda k: mining.hard_negatives(LOSSES, positive=LOSSES > 2, min_negatives=k),
    "harder_than_easiest": lambda k: mining.harder_than_easiest(LOSSES, min_kept=0, max_kept=k, ratio=1.0),
    "importance_weights": lambda k: mining.importance_weights(jax.random.key(0), LOSSES * 0, k=k) > 0,
}


@pytest.mark.parametrize("name", SELECTORS)
def test_selectors_take_it_inside_jit_and_compile_once(name):
    compiled = jax.jit(lambda step: SELECTORS[name](schedule(step, start=100, k=10, steps=9)))
    for step in (0, 3, 9, 50):
        number = int(schedule(step, start=100, k=10, steps=9))
        np.testing.assert_array_equal(compiled(step).sum(-1), np.full(3, number))
    assert compiled._cache_size() == 1


def test_refusals():
    with pytest.raises(ValueError, match="k=0 < 1"):
        schedule(0, start=5, k=0, steps=10)
    with pytest.raises(ValueError, match="steps=0 < 1"):
        schedule(0, start=5, k=1, steps=0)
    with pytest.raises(ValueError, match="steps=2147483648 must be below"):
        schedule(0, start=5, k=1, steps=2**31)
    with pytest.raises(TypeError, match="start=5.0 must be a Python int"):
        schedule(0, start=5.0, k=1, steps=10)
    with pytest.raises(ValueError, match="shape='step' must be 'linear' or 'cosine'"):
        schedule(0, start=5, k=1, steps=10, shape="step")


@pytest.mark.parametrize(
    "step",
    [jnp.uint32(3_000_000_000), 3_000_000_000, np.uint64(2**63 + 5), jnp.uint8(250), jnp.float32(3e9), 2**70],
    ids=str,
)
def test_a_late_step_of_any_dtype_does_not_wrap(step):
    assert int(schedule(step, start=17, k=8, steps=100)) == 8


def test_a_change_that_begins_beyond_int32():
    begin = 3_000_000_000
    for step in (begin + 2, jnp.uint32(begin + 2)):
        assert int(schedule(step, start=5, k=1, steps=4, begin=begin)) == 3
    assert int(schedule(jnp.int32(2**31 - 1), start=5, k=1, steps=4, begin=begin)) == 5
    assert int(schedule(jnp.uint32(0), start=5, k=1, steps=4, begin=-2)) == 3
    with pytest.raises(TypeError, match="step of complex64"):
        schedule(jnp.complex64(1), start=5, k=1, steps=4)
