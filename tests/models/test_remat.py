"""Blocks that are computed again for their gradient: the same parameters, the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax import models
from hardmine_jax.models.fast_rcnn import ResNetTrunk
from hardmine_jax.models.resnet import ResNet
from hardmine_jax.models.vgg import VGGTrunk

# Of each network how many blocks are computed again.
NETWORKS = {
    "resnet": (lambda **more: ResNetTrunk(18, 4, **more), 6),
    "vgg": (lambda **more: VGGTrunk(((4, 4), (8,)), norm="batch", **more), 2),
    "hrnet": (lambda **more: models.HRNet(4, 3, 4, 1, (1, 1), 2, **more), 1 + 2 * 2 + 1 + 3 * 2 + 1),
    "simple_baseline": (lambda **more: models.SimpleBaseline(18, 3, 4, 4, **more), 8),
    "cpn": (lambda **more: models.CPN(18, 3, 4, 8, **more), 8 + 6 + 1),
    "hourglass": (lambda **more: models.Hourglass(1, 3, 8, 1, **more), 3 + 5),
}
IMAGES = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)


def _gradients(model):
    def loss(params, others):
        outputs, new = model.apply({"params": params, **others}, IMAGES, train=True, mutable=list(others))
        return sum(jnp.square(leaf).mean() for leaf in jax.tree.leaves(outputs)), new

    return jax.value_and_grad(loss, has_aux=True)


def _kept(model, params, others):
    """Bytes of what the forward pass leaves for the gradient, as traced."""

    def left(params, others):
        def forward(params):
            return model.apply({"params": params, **others}, IMAGES, train=True, mutable=list(others))

        return jax.vjp(forward, params)[1]

    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(left, params, others))
    )


def _parts(variables):
    return variables["params"], {name: tree for name, tree in variables.items() if name != "params"}


def _count(jaxpr, name):
    values = [value for equation in jaxpr.eqns for value in equation.params.values()]
    inner = [getattr(value, "jaxpr", value) for value in values]
    return sum(equation.primitive.name == name for equation in jaxpr.eqns) + sum(
        _count(one, name) for one in inner if hasattr(one, "eqns")
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_is_computed_again_under_the_same_names(name):
    make, blocks = NETWORKS[name]
    variables, same = (
        jax.eval_shape(make(remat=remat).init, jax.random.key(0), IMAGES) for remat in (False, True)
    )
    assert jax.tree.map(lambda x: x.shape, variables) == jax.tree.map(lambda x: x.shape, same)
    again = jax.make_jaxpr(_gradients(make(remat=True)))(*_parts(variables)).jaxpr
    assert _count(again, "remat2") == blocks
    kept = [_kept(make(remat=remat), *_parts(variables)) for remat in (False, True)]
    assert kept[1] < 0.75 * kept[0]


@pytest.mark.parametrize(
    "make", [functools.partial(ResNet, 18, 4, 1), NETWORKS["vgg"][0]], ids=["resnet", "vgg"]
)
def test_gradients_and_batch_statistics_are_equal(make):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(make().init, jax.random.key(0), IMAGES)
    variables = jax.tree.map(lambda x: rng.uniform(0.1, 0.5, x.shape).astype(np.float32), shapes)
    expected, found = (jax.jit(_gradients(make(remat=remat)))(*_parts(variables)) for remat in (False, True))
    assert np.abs(jax.tree.leaves(expected[1])[0]).max() > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
