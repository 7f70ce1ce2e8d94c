import jax
import numpy as np
import pytest


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
