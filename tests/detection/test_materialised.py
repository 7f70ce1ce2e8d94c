"""The array that is to lie in memory: the same numbers everywhere, and two loops about it on CPU."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from hardmine_jax.detection import roi_align
from hardmine_jax.detection.materialised import materialised
from hardmine_jax.mining import masked_mean, mine, top_k

BOXES, CHANNELS, UNITS = 20, 8, 5


def _arguments(num_images=3):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (num_images, BOXES, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 60, corner.shape)], -1).astype(np.float32)
    features = rng.normal(size=(num_images, 12, 15, CHANNELS)).astype(np.float32)
    return features, boxes, rng.normal(size=(49 * CHANNELS, UNITS)).astype(np.float32)


def _head(features, boxes, weight):
    """As in Fast R-CNN: [H, W, C], [N, 4] -> [N, UNITS]."""
    return roi_align(features, boxes, stride=8).reshape(len(boxes), -1) @ weight


def _loss(features, boxes, weight):
    return jnp.square(jax.vmap(_head, (0, 0, None))(features, boxes, weight)).mean()


@pytest.fixture
def merged(monkeypatch):
    """`roi_align` as it would be without."""
    module = importlib.import_module("hardmine_jax.detection.roi_align")
    monkeypatch.setattr(module, "materialised", lambda array: array)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_changes_no_number(dtype):
    array = jnp.asarray([[1.5, -0.0, jnp.inf], [jnp.nan, -2.0, 3e-39]], dtype)
    for run in (materialised, jax.jit(materialised), jax.vmap(materialised), jax.jit(jax.vmap(materialised))):
        assert run(array).dtype == dtype
        assert np.asarray(run(array)).tobytes() == np.asarray(array).tobytes()


def test_values_and_gradients_are_those_of_the_merged(request):
    run = jax.jit(jax.value_and_grad(_loss, argnums=(0, 2)))
    found = jax.device_get(run(*_arguments()))
    request.getfixturevalue("merged")
    expected = jax.device_get(jax.jit(jax.value_and_grad(_loss, argnums=(0, 2)))(*_arguments()))
    # The products sum in the same order: all bits but those of sums over threads.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def _reshaped_in_the_loop_of_a_gather(function, *arguments) -> bool:
    text = jax.jit(function).lower(*arguments).compile().as_text()
    loops = [part for part in text.split("\n\n") if " gather(" in part]
    assert loops and " dot(" in text
    return any(f",{49 * CHANNELS}]" in part.splitlines()[0].split("->")[1] for part in loops)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other compilers are not asked for it")
def test_no_loop_both_gathers_and_reshapes(request):
    one = [argument if argument.ndim == 2 else argument[0] for argument in _arguments()]
    cases = [(_head, one), (jax.vmap(_head, (0, 0, None)), _arguments()), (jax.grad(_loss), _arguments())]
    assert not any(_reshaped_in_the_loop_of_a_gather(function, *arguments) for function, arguments in cases)
    request.getfixturevalue("merged")
    # Where this fails the compiler has learned it: then `materialised` can go.
    assert all(_reshaped_in_the_loop_of_a_gather(function, *arguments) for function, arguments in cases[:2])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_are_given_the_array_as_it_is(platform):
    lowered = jax.jit(materialised).trace(jnp.ones(3)).lower(lowering_platforms=(platform,)).as_text()
    assert "while" not in lowered and "optimization_barrier" not in lowered
    assert "while" in jax.jit(materialised).trace(jnp.ones(3)).lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.skipif(jax.device_count() < 3, reason="needs 3 devices (tests/conftest.py simulates them)")
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma):
    mesh = Mesh(np.array(jax.devices()[:3]), ("data",))
    split, everywhere = PartitionSpec("data"), PartitionSpec()
    heads = jax.vmap(_head, (0, 0, None))
    run = jax.shard_map(
        heads, mesh=mesh, in_specs=(split, split, everywhere), out_specs=split, check_vma=check_vma
    )
    arguments = _arguments()
    np.testing.assert_allclose(jax.jit(run)(*arguments), jax.jit(heads)(*arguments), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"reuse": True}, {"score_dtype": jnp.bfloat16}], ids=str)
def test_two_pass_mining_pools_inside(options):
    features, boxes, weight = (a if a.ndim == 2 else a[0] for a in _arguments())

    def losses_of(features, boxes, weight):
        return jnp.square(_head(features, boxes, weight)).mean(-1)

    def loss(features, weight):
        hard = mine(
            losses_of, lambda losses, *_: top_k(losses, k=4), capacity=4, in_axes=(None, 0, None), **options
        )
        mined = hard(features, boxes, weight)
        return masked_mean(mined.losses, where=mined.keep), mined.indices

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, indices), found = run(features, weight)

    def expected(features, weight):
        return losses_of(features, boxes[np.asarray(indices)], weight).mean()

    wanted, gradient = jax.jit(jax.value_and_grad(expected, argnums=(0, 1)))(features, weight)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, gradient)
