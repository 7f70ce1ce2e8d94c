import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.training import evaluation_variables, make_train_step, parallelise
from hardmine_jax.training.sharding import by_process

KINDS = ["jit", "pmap", "shard_map"]
# Sums over 8 parts are added in another order than over one: differences of the last bits of float32,
# which 20 steps of Adam (it divides by the gradient's own size) let grow.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def losses(tiny, kind, devices, accumulate=1, steps=20, **more):
    parallel = parallelise(
        lambda axis_name: tiny.make_step(axis_name, accumulate, **more),
        kind=kind,
        devices=jax.devices()[:devices],
    )
    state, metrics = parallel.put_state(tiny.state(steps)), []
    for i in range(steps):
        state, values = parallel.train_step(state, parallel.put_batch(tiny.batch(i)))
        metrics.append(parallel.get(values))
    return np.array([float(values["loss"]) for values in metrics]), parallel.get(state)


def test_all_kinds_on_1_and_8_devices_give_the_same_losses(tiny):
    expected, state = losses(tiny, "jit", 1)
    assert expected[-1] < 0.7 * expected[0]
    for kind, devices in [("jit", 8), ("pmap", 1), ("pmap", 8), ("shard_map", 1), ("shard_map", 8)]:
        actual, other = losses(tiny, kind, devices)
        np.testing.assert_allclose(actual, expected, **TOLERANCE, err_msg=f"{kind} on {devices}")
        chex.assert_trees_all_close(other.batch_stats, state.batch_stats, rtol=1e-4, atol=1e-5)
        assert jax.random.key_data(other.key).tolist() == jax.random.key_data(state.key).tolist()


@pytest.mark.parametrize("kind", ["jit", "shard_map"])
def test_a_mesh_that_the_caller_has_set_changes_nothing(tiny, kind):
    expected, _ = losses(tiny, kind, 2, steps=4)
    with jax.set_mesh(jax.make_mesh((2,), ("mine",), devices=jax.devices()[:2])):
        found, _ = losses(tiny, kind, 2, steps=4)
    np.testing.assert_array_equal(found, expected)


def test_micro_batches_are_the_same_however_many_devices(tiny):
    expected, _ = losses(tiny, "jit", 1, accumulate=2, steps=5)
    actual, _ = losses(tiny, "shard_map", 4, accumulate=2, steps=5)
    np.testing.assert_allclose(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("devices", [1, 8])
def test_only_the_first_step_compiles(tiny, kind, devices):
    parallel = parallelise(tiny.make_step, kind=kind, devices=jax.devices()[:devices])
    state = parallel.put_state(tiny.state(20))
    compiled = []

    def listen(event, seconds, **_):
        if "backend_compile" in event or "trace_duration" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        counts = []
        for i in range(4):
            state, _ = parallel.train_step(state, parallel.put_batch(tiny.batch(i)))
            counts.append(len(compiled))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert counts[0] > 0
    assert counts == [counts[0]] * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("devices", [1, 8])
def test_evaluate_step_gives_numpy_in_order(tiny, kind, devices):
    parallel = parallelise(tiny.make_step, kind=kind, devices=jax.devices()[:devices])
    state = tiny.state(20)

    def fn(state, batch):
        predicted = tiny.Net().apply(evaluation_variables(state), batch["images"])
        return {"predicted": predicted, "index": batch["index"]}

    batch = {"images": tiny.batch(0)["images"], "index": np.arange(tiny.BATCH)}
    outputs = parallel.evaluate_step(fn)(parallel.put_state(state), batch)
    assert type(outputs["predicted"]) is np.ndarray
    np.testing.assert_array_equal(outputs["index"], np.arange(tiny.BATCH))
    np.testing.assert_allclose(outputs["predicted"], fn(state, batch)["predicted"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_donated_but_the_callers_is_not(tiny, kind):
    parallel, state = parallelise(tiny.make_step, kind=kind), tiny.state(20)
    placed = parallel.put_state(state)
    new, _ = parallel.train_step(placed, parallel.put_batch(tiny.batch(0)))
    assert all(x.is_deleted() for x in jax.tree.leaves(placed.params))
    assert not any(x.is_deleted() for x in jax.tree.leaves(state))
    assert int(parallel.get(new).step) == 1


def test_statistics_without_synchronised_batchnorm_are_the_same_on_every_device(tiny):
    def make_step(axis_name):
        def loss_fn(params, batch_stats, batch, key, step):
            return (params["Dense_0"]["bias"] ** 2).sum(), ({"mean": batch["images"].mean()}, {})

        return make_train_step(loss_fn, axis_name=axis_name)

    parallel = parallelise(make_step, kind="shard_map")
    state = tiny.state(20).replace(batch_stats={"mean": jnp.zeros(())})
    batch = tiny.batch(0)
    new, _ = parallel.train_step(parallel.put_state(state), parallel.put_batch(batch))
    copies = [float(shard.data) for shard in new.batch_stats["mean"].addressable_shards]
    np.testing.assert_allclose(copies, batch["images"].mean(), rtol=1e-5, atol=1e-6)
    assert len(set(copies)) == 1


def test_auto_takes_jit_on_one_device_and_shard_map_on_several(tiny):
    one, several = (parallelise(tiny.make_step, devices=jax.devices()[:n]) for n in (1, 8))
    assert (one.kind, one.axis_name, one.num_devices) == ("jit", None, 1)
    assert (several.kind, several.axis_name, several.num_devices) == ("shard_map", "devices", 8)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_that_does_not_split(tiny, kind):
    parallel = parallelise(tiny.make_step, kind=kind)
    with pytest.raises(ValueError, match="batch of 12 examples does not split over 8 devices"):
        parallel.put_batch({"images": np.zeros((12, 6, 6, 3))})


def test_unknown_kind(tiny):
    with pytest.raises(ValueError, match="kind='xmap'.*shard_map"):
        parallelise(tiny.make_step, kind="xmap")


class FakeDevice(NamedTuple):
    """As a device of a slice of a TPU pod tells where it is."""

    id: int
    process_index: int
    slice_index: int


def test_devices_of_several_slices_come_slice_by_slice_and_process_by_process():
    """Two slices of two processes of four chips, in whatever order the runtime lists them."""
    devices = [
        FakeDevice(100_000 * (p // 2 + 1) + 4 * (p % 2) + n, p, p // 2) for p in range(4) for n in range(4)
    ]
    for seed in range(5):
        shuffled = [devices[i] for i in np.random.default_rng(seed).permutation(len(devices))]
        assert by_process(shuffled) == devices
    assert [device.slice_index for device in devices] == [0] * 8 + [1] * 8


@pytest.mark.parametrize("kind", ["shard_map", "pmap"])
def test_gradients_are_exchanged_as_asked_for(tiny, kind):
    """In the program that is given to the compiler: bfloat16 for gradients, float32 for all else."""

    def exchanged(dtype):
        parallel = parallelise(lambda axis: tiny.make_step(axis, gradient_dtype=dtype), kind=kind)
        text = parallel.train_step.lower(
            parallel.put_state(tiny.state(5)), parallel.put_batch(tiny.batch(0))
        ).as_text()
        # An all-reduce ends with the types of what it reduces: weights of the convolution, of the last layer.
        types = re.findall(r"\}\) : \(.*\) -> \(?(?:tensor<)(.*?)>", text)
        return {kind for kind in types if kind.startswith(("3x3x3x8x", "8x4x"))}

    assert exchanged(None) == {"3x3x3x8xf32", "8x4xf32"}
    assert exchanged("bfloat16") == {"3x3x3x8xbf16", "8x4xbf16"}


@pytest.mark.parametrize("kind", ["shard_map", "pmap"])
def test_rounded_gradients_train_alike_and_replicas_stay_the_same(tiny, kind):
    expected, _ = losses(tiny, kind, 4, steps=8)
    rounded, state = losses(tiny, kind, 4, steps=8, gradient_dtype="bfloat16")
    assert not np.array_equal(rounded, expected)
    np.testing.assert_allclose(rounded, expected, rtol=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_on_one_device_nothing_is_rounded(tiny):
    expected, _ = losses(tiny, "jit", 1, steps=3)
    found, _ = losses(tiny, "jit", 1, steps=3, gradient_dtype="bfloat16")
    np.testing.assert_array_equal(found, expected)
