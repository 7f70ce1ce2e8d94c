"""`global_top_k` over eight devices; the laws it shares are in tests/test_selector_contract.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from experiments.benchmarks import mining as benchmark
from hardmine_jax.mining import global_top_k, masked_mean, top_k

# The module that the script itself imported.
collective_bytes = benchmark.mining_devices.collective_bytes

pytestmark = pytest.mark.skipif(
    jax.device_count() < 8, reason="needs 8 devices (tests/conftest.py simulates them on CPU)"
)


def _shard_map(k, with_where=True):
    """Losses [..., 8 N] and where alike, the last axis over the devices."""

    def select(losses, where):
        return global_top_k(losses, k=k, axis_name="data", where=where if with_where else None)

    def mapped(losses, where):
        spec = PartitionSpec(*[None] * (losses.ndim - 1), "data")
        mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
        return jax.shard_map(select, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(losses, where)

    return jax.jit(mapped)


def _pmap(k):
    """Losses [8, ..., N]."""
    return jax.pmap(
        lambda losses, where: global_top_k(losses, k=k, axis_name="data", where=where), axis_name="data"
    )


def _blocks(array):
    return np.moveaxis(array.reshape(*array.shape[:-1], 8, -1), -2, 0)


def _example(shape, seed=0, levels=5):
    """Few different losses, so that ties lie across devices."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, levels, shape).astype(np.float32), rng.random(shape) < 0.7


@pytest.mark.parametrize("num_units", [3, 100])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_equals_one_device_with_ties_across_devices(num_units, k):
    """A row is the devices' units laid end to end: the lowest index is the lowest (device, index)."""
    mapped, pmapped = _shard_map(k), _pmap(k)
    for seed in range(5):
        losses, where = _example((2, 8 * num_units), seed)
        expected = top_k(losses, k=k, where=where)
        np.testing.assert_array_equal(mapped(losses, where), expected)
        np.testing.assert_array_equal(pmapped(_blocks(losses), _blocks(where)), _blocks(np.asarray(expected)))


VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0, np.inf, -np.inf, np.nan, 1e-40])
_NASTY = {k: _shard_map(k) for k in (1, 7, 24)}


@pytest.mark.parametrize("k", list(_NASTY))
@settings(max_examples=25, deadline=None)
@given(units=st.lists(st.tuples(VALUES, st.booleans()), min_size=24, max_size=24))
def test_equals_one_device_whatever_the_losses(k, units):
    losses, where = np.array([loss for loss, _ in units], np.float32), np.array([part for _, part in units])
    np.testing.assert_array_equal(_NASTY[k](losses, where), top_k(losses, k=k, where=where))


def test_all_of_one_device_or_none():
    losses = np.zeros((8, 4), np.float32)
    losses[5] = 1.0
    keep = np.asarray(_pmap(4)(losses, np.ones(losses.shape, bool)))
    np.testing.assert_array_equal(keep, losses == 1.0)
    np.testing.assert_array_equal(
        _pmap(6)(np.ones_like(losses), np.ones(losses.shape, bool)), np.arange(32).reshape(8, 4) < 6
    )


def test_fewer_take_part_than_k():
    losses, _ = _example((80,))
    where = np.isin(np.arange(80), [3, 4, 77])
    np.testing.assert_array_equal(_shard_map(20)(losses, where), where)


@pytest.mark.parametrize("num_units", [8, 100])
def test_without_where_every_unit_takes_part(num_units):
    losses, where = _example((2, 8 * num_units))
    np.testing.assert_array_equal(_shard_map(9, with_where=False)(losses, where), top_k(losses, k=9))


def test_over_two_mesh_axes_the_first_is_the_slowest():
    losses, where = _example((2, 64))
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("host", "core"))
    spec = PartitionSpec(None, ("host", "core"))
    mapped = jax.shard_map(
        lambda losses, where: global_top_k(losses, k=9, axis_name=("host", "core"), where=where),
        mesh=mesh,
        in_specs=(spec, spec),
        out_specs=spec,
    )
    np.testing.assert_array_equal(jax.jit(mapped)(losses, where), top_k(losses, k=9, where=where))


def test_over_one_of_two_mesh_axes_the_other_is_batch():
    losses, where = _example((2, 64))
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("batch", "units"))
    spec = PartitionSpec("batch", "units")
    mapped = jax.shard_map(
        lambda losses, where: global_top_k(losses, k=9, axis_name="units", where=where),
        mesh=mesh,
        in_specs=(spec, spec),
        out_specs=spec,
    )
    np.testing.assert_array_equal(jax.jit(mapped)(losses, where), top_k(losses, k=9, where=where))


def test_mean_and_gradient_are_those_of_one_device():
    losses, where = _example((96,), levels=50)

    def share(losses, where):
        keep = global_top_k(losses, k=12, axis_name="data", where=where)
        return jax.lax.pmean(masked_mean(losses, where=keep, denominator=12 / 8), "data")

    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    spec = PartitionSpec("data")
    mapped = jax.shard_map(share, mesh=mesh, in_specs=(spec, spec), out_specs=PartitionSpec())

    def whole(losses, where):
        return masked_mean(losses, where=top_k(losses, k=12, where=where), denominator=12)

    value, gradient = jax.jit(jax.value_and_grad(mapped))(losses, where)
    expected_value, expected_gradient = jax.value_and_grad(whole)(losses, where)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)


@pytest.mark.parametrize("num_units, k", [(5, 16), (1000, 16), (100_000, 16), (1000, 300)])
@pytest.mark.parametrize("kind", ["shard_map", "pmap"])
def test_moves_at_most_eight_bytes_times_k_times_devices(kind, num_units, k):
    if kind == "pmap":
        shapes = (jax.ShapeDtypeStruct((8, num_units), dtype) for dtype in (jnp.float32, bool))
        lowered = _pmap(k).lower(*shapes)
    else:
        shapes = (jax.ShapeDtypeStruct((8 * num_units,), dtype) for dtype in (jnp.float32, bool))
        lowered = _shard_map(k).lower(*shapes)
    number, moved = collective_bytes(lowered.compile().as_text())
    assert number == 1
    assert moved == 4 * min(k, num_units) * 8 <= 8 * k * 8


def test_the_count_of_bytes_sees_a_gather_of_everything():
    def everything(losses, where):
        return jax.lax.all_gather(losses, "data").sum(axis=0) + jax.lax.psum(
            where.sum(dtype=losses.dtype), "data"
        )

    shapes = (jax.ShapeDtypeStruct((8, 100), dtype) for dtype in (jnp.float32, bool))
    hlo = jax.pmap(everything, axis_name="data").lower(*shapes).compile().as_text()
    number, moved = collective_bytes(hlo)
    assert number == 2 and moved == 4 * 100 * 8 + 4


def test_refusals():
    losses = jnp.zeros((8, 5))
    with pytest.raises(ValueError, match="k=41 > N=40"):
        _pmap(41)(losses, losses == 0)
    with pytest.raises(ValueError, match="k=0 < 1"):
        _pmap(0)(losses, losses == 0)
    with pytest.raises(TypeError, match="must be a Python int, known before tracing"):
        jax.pmap(lambda k: global_top_k(losses, k=k, axis_name="data"), axis_name="data")(np.arange(8))
    with pytest.raises(NameError, match="data"):
        global_top_k(losses, k=3, axis_name="data")
