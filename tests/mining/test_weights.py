"""The soft schemes under the same laws. A new one is one row of SCHEMES."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax import mining


class Row(NamedTuple):
    name: str
    weigh: Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]  # key, losses, where -> weights


SCHEMES = [
    Row("focal", lambda key, losses, where: mining.focal_weights(losses, where=where)),
    Row("ghm", lambda key, losses, where: mining.ghm_weights(losses, num_bins=5, where=where)),
    Row("importance", lambda key, losses, where: mining.importance_weights(key, losses, k=3, where=where)),
]
KEY = np.array([0, 7], np.uint32)
every = pytest.mark.parametrize("row", SCHEMES, ids=lambda row: row.name)
_JITTED = {row.name: jax.jit(row.weigh) for row in SCHEMES}


def _example(rows: int = 4, num_units: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((rows, num_units), np.float32), rng.random((rows, num_units)) < 0.66


@every
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16, np.int32])
def test_is_float32_not_negative_and_0_where_a_unit_takes_no_part(row, dtype):
    losses, where = _example()
    weights = _JITTED[row.name](KEY, (losses * 3).astype(dtype), where)
    chex.assert_shape(weights, losses.shape)
    chex.assert_type(weights, jnp.float32)
    assert (weights >= 0).all() and (np.asarray(weights)[~where] == 0).all()
    assert (weights > 0).any()


@every
def test_nothing_takes_part(row):
    losses = np.full((2, 9), np.nan, np.float32)
    where = np.zeros(losses.shape, bool)

    def loss(losses):
        return mining.masked_mean(row.weigh(KEY, losses, where) * losses, where=where)

    np.testing.assert_array_equal(row.weigh(KEY, losses, where), np.zeros_like(losses))
    value, gradient = jax.value_and_grad(loss)(np.ones_like(losses))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros_like(losses))


@every
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_garbage_in_slots_that_take_no_part_is_harmless(row, garbage):
    losses, where = _example()
    dirty = np.where(where, losses, np.float32(garbage))

    def loss(losses):
        weights = row.weigh(KEY, losses, where)
        return mining.masked_mean(weights * jnp.where(where, losses, 0), where=where)

    chex.assert_trees_all_equal(row.weigh(KEY, dirty, where), row.weigh(KEY, losses, where))
    chex.assert_trees_all_equal(jax.value_and_grad(loss)(dirty), jax.value_and_grad(loss)(losses))


@every
def test_everything_takes_part_without_where(row):
    losses, _ = _example()
    everything = np.ones(losses.shape, bool)
    chex.assert_trees_all_equal(row.weigh(KEY, losses, None), row.weigh(KEY, losses, everything))


@every
def test_jit_is_eager_and_vmap_is_a_loop(row):
    losses, where = _example()
    eager = row.weigh(KEY, losses, where)
    chex.assert_trees_all_close(_JITTED[row.name](KEY, losses, where), eager, rtol=1e-6)
    keys = np.stack([np.full(len(losses), 3), np.arange(len(losses))], -1).astype(np.uint32)
    mapped = jax.jit(jax.vmap(row.weigh))(keys, losses, where)
    looped = np.stack([_JITTED[row.name](*args) for args in zip(keys, losses, where, strict=True)])
    chex.assert_trees_all_close(mapped, looped, rtol=1e-6)


@every
def test_leading_axes_are_free(row):
    losses, where = _example()
    for shape in [(9,), (1, 9), (2, 2, 9), (0, 9)]:
        part, takes_part = (
            x.reshape(-1)[: np.prod(shape, dtype=int)].reshape(shape) for x in (losses, where)
        )
        chex.assert_shape(row.weigh(KEY, part, takes_part), shape)


@every
def test_nan_that_takes_part_reaches_the_loss(row):
    losses, _ = _example()
    losses[0, 3] = np.nan
    weights = row.weigh(KEY, losses, None)
    assert np.isnan(mining.masked_mean(weights * losses, where=None))


@every
def test_pmap_and_shard_map_are_a_loop(row):
    if jax.device_count() < 8:
        pytest.skip(f"{jax.device_count()} devices, 8 are needed (tests/conftest.py simulates them on CPU)")
    losses, where = _example(rows=8)
    keys = np.stack([np.full(8, 3), np.arange(8)], -1).astype(np.uint32)
    looped = np.stack([_JITTED[row.name](*args) for args in zip(keys, losses, where, strict=True)])
    chex.assert_trees_all_close(jax.pmap(row.weigh)(keys, losses, where), looped, rtol=1e-6)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    one_device = jax.shard_map(
        lambda key, losses, where: row.weigh(key[0], losses[0], where[0])[None],
        mesh=mesh,
        in_specs=jax.sharding.PartitionSpec("data"),
        out_specs=jax.sharding.PartitionSpec("data"),
    )
    chex.assert_trees_all_close(jax.jit(one_device)(keys, losses, where), looped, rtol=1e-6)


@every
def test_where_must_be_bool_and_of_the_same_shape(row):
    losses, where = _example()
    with pytest.raises(ValueError, match="must be bool, not float32"):
        row.weigh(KEY, losses, where.astype(np.float32))
    with pytest.raises(ValueError, match=r"\(9,\) != losses \(4, 9\)"):
        row.weigh(KEY, losses, where[0])
    with pytest.raises(ValueError, match="the last axis must be the units"):
        row.weigh(KEY, np.float32(1.0), None)
