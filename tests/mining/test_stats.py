"""stats: what it counts, and that it stays finite."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.mining import random_k, stats, top_k


def test_equals_numpy():
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=(4, 5, 17)).astype(np.float32)
    where = rng.random(losses.shape) < 0.7
    keep = np.asarray(top_k(losses, k=4, where=where))
    found = jax.jit(stats)(losses, keep, where)
    np.testing.assert_allclose(found.fraction_kept, keep.sum() / where.sum(), rtol=1e-6)
    np.testing.assert_allclose(found.loss_captured, losses[keep].sum() / losses[where].sum(), rtol=1e-5)
    counts = keep.reshape(-1, 17).sum(0)
    portion = counts[counts > 0] / counts.sum()
    np.testing.assert_allclose(found.entropy, -(portion * np.log(portion)).sum(), rtol=1e-5)
    np.testing.assert_allclose(found.unit_rate, counts / where.reshape(-1, 17).sum(0), rtol=1e-6)


def test_entropy_tells_one_unit_from_all():
    losses = jax.random.uniform(jax.random.key(0), (4000, 10))
    everywhere = stats(losses, random_k(jax.random.key(1), losses, k=2))
    assert float(everywhere.entropy) == pytest.approx(np.log(10), abs=0.01)
    np.testing.assert_allclose(everywhere.unit_rate, np.full(10, 0.2), atol=0.03)
    always = stats(losses, jnp.broadcast_to(jnp.arange(10) == 3, losses.shape))
    assert float(always.entropy) == 0.0
    np.testing.assert_array_equal(always.unit_rate, np.arange(10) == 3)


def test_everything_kept():
    losses = jnp.array([[1.0, 2.0, 3.0]])
    found = stats(losses, jnp.ones((1, 3), bool))
    assert float(found.fraction_kept) == float(found.loss_captured) == 1.0
    assert float(found.entropy) == pytest.approx(np.log(3))


@pytest.mark.parametrize("shape", [(5,), (2, 5), (0, 5)])
@pytest.mark.parametrize("kept", [False, True])
def test_nothing_takes_part(shape, kept):
    found = stats(jnp.full(shape, jnp.nan), jnp.full(shape, kept), jnp.zeros(shape, bool))
    chex.assert_trees_all_equal(found, jax.tree.map(jnp.zeros_like, found))
    chex.assert_shape(found.unit_rate, (5,))


def test_nothing_kept_or_no_loss_at_all():
    nothing = stats(jnp.ones((2, 5)), jnp.zeros((2, 5), bool))
    chex.assert_trees_all_equal(nothing, jax.tree.map(jnp.zeros_like, nothing))
    found = stats(jnp.zeros((2, 5)), jnp.ones((2, 5), bool))
    assert float(found.loss_captured) == 0.0 and float(found.fraction_kept) == 1.0
    # Losses below 0 may cancel out.
    assert float(stats(jnp.array([-1.0, 1.0]), jnp.array([False, True])).loss_captured) == 0.0


@pytest.mark.parametrize("kept", [False, True])
def test_no_nan_arises_on_the_way(kept):
    """Who looks for the NaN of a network by `jax_debug_nans` is not led here."""
    with jax.debug_nans(True):
        found = stats(
            jnp.zeros((2, 3)), jnp.array([[kept, False, False]] * 2), jnp.array([[True, True, False]] * 2)
        )
    chex.assert_tree_all_finite(found)


def test_garbage_where_nothing_takes_part_is_harmless():
    losses = jnp.array([1.0, 3.0, jnp.nan])
    where = jnp.array([True, True, False])
    found = stats(losses, top_k(losses, k=1, where=where), where)
    np.testing.assert_allclose([found.fraction_kept, found.loss_captured], [0.5, 0.75])


def test_no_gradient():
    losses = jnp.array([1.0, 3.0, 2.0])
    gradient = jax.grad(lambda losses: stats(losses, losses > 1.5).loss_captured)(losses)
    np.testing.assert_array_equal(gradient, np.zeros(3))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.int32])
def test_sums_in_single_precision(dtype):
    losses = np.full((5000, 2), 2, dtype)
    found = stats(losses, np.arange(5000)[:, None] * np.ones((1, 2), int) < 1000)
    chex.assert_type(found, jnp.float32)
    np.testing.assert_allclose([found.fraction_kept, found.loss_captured], [0.2, 0.2], rtol=1e-6)


def test_refusals():
    with pytest.raises(ValueError, match="keep must be bool, not float32.*what the selector returned"):
        stats(jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"keep of shape \(3,\) != losses \(2, 3\)"):
        stats(jnp.zeros((2, 3)), jnp.zeros(3, bool))


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_describes_the_rows_of_all_devices_together(kind):
    """Devices that label and keep unlike numbers of units, so that a mean of ratios would be wrong."""
    rng = np.random.default_rng(1)
    losses = jnp.asarray(rng.exponential(size=(8, 3, 6)), jnp.float32)
    where = jnp.asarray(rng.random(losses.shape) < np.linspace(0.2, 1, 8)[:, None, None])
    keep = top_k(losses, k=2, where=where)

    def described(losses, keep, where):
        return stats(losses, keep, where, axis_name="device")

    if kind == "pmap":
        found = jax.tree.map(lambda leaf: leaf[0], jax.pmap(described, "device")(losses, keep, where))
    else:
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("device",))
        split, everywhere = jax.sharding.PartitionSpec("device"), jax.sharding.PartitionSpec()
        spread = jax.shard_map(described, mesh=mesh, in_specs=split, out_specs=everywhere)
        found = jax.jit(spread)(losses, keep, where)
    chex.assert_trees_all_close(found, stats(losses, keep, where), rtol=1e-5)
