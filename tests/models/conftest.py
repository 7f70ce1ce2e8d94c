import importlib.util
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec


def _fill(path, leaf: jax.ShapeDtypeStruct, rng: np.random.Generator) -> np.ndarray:
    name = path[-1].key
    if name == "kernel":
        return rng.normal(0.0, np.sqrt(2.0 / np.prod(leaf.shape[:-1])), leaf.shape).astype(leaf.dtype)
    return np.full(leaf.shape, 1.0 if name in ("scale", "var") else 0.0, leaf.dtype)


@pytest.fixture(scope="session")
def random_variables():
    """`(model, *inputs) -> variables` by numpy: compiling `model.init` takes longer than the tests."""

    def make(model, *inputs):
        shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        rng = np.random.default_rng(0)
        return jax.tree_util.tree_map_with_path(lambda path, leaf: _fill(path, leaf, rng), shapes)

    return make


@pytest.fixture(scope="session")
def torch_networks():
    """The benchmarks' `torch_networks.py`; what asks for it is skipped where there is no PyTorch."""
    pytest.importorskip("torch", reason="PyTorch is the oracle here, and is not installed")
    path = pathlib.Path(__file__).parents[2] / "experiments/benchmarks/torch_networks.py"
    spec = importlib.util.spec_from_file_location("torch_networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _jit(function):
    """Compiled with half the effort: these programs run for a millisecond."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="session")
def training_pass():
    """`(model, variables, images, choose) -> (updated batch statistics, gradients)`, compiled.

    The loss is against noise, of those heatmaps that `choose` returns.
    """

    def run(model, variables, images, choose=lambda heatmaps: heatmaps):
        def distance(maps):
            # A constant would not do: a normalised map is as far from it whatever it holds.
            return jnp.square(maps - jax.random.normal(jax.random.key(0), maps.shape)).mean()

        def loss(params):
            outputs, updated = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return sum(map(distance, jax.tree.leaves(choose(outputs)))), updated["batch_stats"]

        (_, after), gradients = _jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
        return after, gradients

    return run


@pytest.fixture(scope="session")
def check_training(training_pass):
    """Training moves all statistics and gives every parameter a gradient: nothing is computed for nothing."""

    def check(model, variables, images):
        after, gradients = training_pass(model, variables, images)
        same = jax.tree.map(np.array_equal, variables["batch_stats"], after)
        assert not any(jax.tree.leaves(same)), same
        for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
            # What only rounding is left of has no gradient.
            assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-6, path

    return check


@pytest.fixture(scope="session")
def check_evaluation():
    """Evaluation changes nothing, sees each image alone, and gives the same under `vmap` and in bfloat16."""

    def check(model, variables, images):
        apply = _jit(lambda images: model.apply(variables, images, train=False, mutable=["batch_stats"]))
        outputs, updated = apply(images)
        chex.assert_trees_all_equal(updated["batch_stats"], variables["batch_stats"])
        others, _ = apply(images.at[1:].set(7.0))
        mapped = _jit(jax.vmap(lambda one: model.apply(variables, one[None])))(images)
        coarse = _jit(model.clone(dtype=jnp.bfloat16).apply)(variables, images)
        rows = zip(*(jax.tree.leaves(x) for x in (outputs, others, mapped, coarse)), strict=True)
        for output, other, alone, rounded in rows:
            size = np.abs(output).max()
            np.testing.assert_allclose(other[0], output[0], atol=1e-5 * size)
            assert np.abs(other[1:] - output[1:]).max() > 1e-3 * size
            np.testing.assert_allclose(alone[:, 0], output, atol=1e-5 * size)
            chex.assert_type([output, rounded], jnp.float32)
            assert 1e-6 < np.abs(rounded - output).max() / size < 0.1

    return check


@pytest.fixture(scope="session")
def check_synchronised():
    """On 8 devices with `axis_name` a training pass sees the batch as on one: outputs and statistics."""

    def check(model, variables, images):
        def run(model):
            def forward(images):
                return model.apply(variables, images, train=True, mutable=["batch_stats"])

            return forward

        expected = _jit(run(model))(images)
        mesh, spec = Mesh(np.array(jax.devices()), ("devices",)), PartitionSpec("devices")
        assert mesh.size == 8
        forward = run(model.clone(axis_name="devices"))
        specs = dict(in_specs=spec, out_specs=(spec, PartitionSpec()))
        shared = jax.shard_map(forward, mesh=mesh, **specs, check_vma=False)
        found = _jit(shared)(images)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max(), rtol=1e-3)

    return check
