"""RetinaNet: published size, what each level reads, where its outputs look, where it starts."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.detection import make_anchors
from hardmine_jax.models import RetinaNet
from hardmine_jax.models.retinanet import AnchorHead, FeaturePyramid
from hardmine_jax.models.torch_weights import init_shapes

TINY = RetinaNet(3, depth=18, num_anchors=2, width=4, features=8, head_depth=1)


def _images(batch=2, sides=(64, 96)) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, *sides, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(random_variables):
    return random_variables(TINY, _images())


def _count(model: RetinaNet) -> int:
    return sum(x.size for x in jax.tree.leaves(init_shapes(model)["params"]))


def test_published_size():
    """torchvision says 34,014,999 for its COCO_V1 weights, without the 53,120 of its frozen normalisation."""
    assert _count(RetinaNet(91, coarse="p5")) == 34_014_999 + 53_120
    assert _count(RetinaNet(80)) == 37_968_692


@pytest.mark.parametrize("sides", [(64, 96), (63, 97), (200, 130)])
def test_one_output_an_anchor(sides):
    images = jax.ShapeDtypeStruct((2, *sides, 3), jnp.float32)
    model = RetinaNet(5, depth=18, width=4, features=8)
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    count = len(make_anchors(sides))
    chex.assert_shape(outputs, [(2, count, 5), (2, count, 4)])
    chex.assert_type(outputs, jnp.float32)


def test_a_networks_outputs_look_at_their_anchors(random_variables):
    """With kernels that average, what moves an output lies around the centre of its anchor, odd sides or not.

    On stride 32: finer levels look at the coarser pixel that covers them as well, which reaches to one side.
    """
    model = RetinaNet(1, depth=18, num_anchors=1, width=4, features=4, head_depth=1)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 490, 530, 3)), jnp.float32)

    def averaging(x):
        return jnp.abs(x) / jnp.abs(x).sum((0, 1, 2), keepdims=True) if x.ndim == 4 else x

    variables = jax.tree.map(averaging, random_variables(model, images))
    anchors = np.asarray(make_anchors(images.shape[1:3], scales=(4.0,), ratios=(1.0,)))
    centres, strides = (anchors[:, :2] + anchors[:, 2:]) / 2, (anchors[:, 2] - anchors[:, 0]) / 4

    @jax.jit
    def seen(variables, images, index):
        gradient = jax.grad(lambda images: model.apply(variables, images)[0][0, index, 0])(images)
        return gradient[0].sum(-1)

    middle = np.abs(centres - np.array([265, 245])).max(1) < 40
    indices = np.flatnonzero(middle & np.isclose(strides, 32))
    assert len(indices) >= 4
    for index in indices:
        weights = np.asarray(seen(variables, images, index))
        found = [weights.sum(axis) @ np.arange(weights.shape[1 - axis]) for axis in (0, 1)] / weights.sum()
        assert np.abs(found - centres[index]).max() < 8, (found, centres[index])


def test_training(check_training, variables):
    check_training(TINY, variables, _images())


def test_evaluation(check_evaluation, variables):
    check_evaluation(TINY, variables, _images())


def test_synchronised_statistics(check_synchronised, variables):
    check_synchronised(TINY, variables, _images(8))


def test_frozen_normalisation_keeps_its_statistics(variables):
    frozen = TINY.clone(frozen_norm=True)
    train = jax.jit(lambda images: frozen.apply(variables, images, train=True, mutable=["batch_stats"]))
    outputs, updated = train(_images())
    chex.assert_trees_all_equal(updated["batch_stats"], variables["batch_stats"])
    chex.assert_trees_all_close(outputs, jax.jit(TINY.apply)(variables, _images()), rtol=1e-3, atol=1e-3)


def _reads(pyramid: FeaturePyramid, levels) -> np.ndarray:
    """bool [outputs, inputs]: which level of the trunk each of the pyramid's depends on."""
    variables = jax.jit(pyramid.init)(jax.random.key(0), levels)

    def sums(levels):
        return jnp.stack([jnp.square(level).sum() for level in pyramid.apply(variables, levels)])

    gradients = jax.jit(jax.jacobian(sums))(levels)
    return np.stack([np.abs(x).reshape(len(x), -1).max(1) > 0 for x in gradients], axis=1)


@pytest.mark.parametrize("coarse", ["c5", "p5"])
def test_what_each_level_reads(coarse):
    """A level reads itself and the coarser ones; the two coarsest only the last, odd sides or not."""
    rng = np.random.default_rng(0)
    sizes = ((7, 10), (4, 5), (2, 3))
    levels = tuple(jnp.asarray(rng.normal(size=(1, *size, 6)), jnp.float32) for size in sizes)
    pyramid = FeaturePyramid(8, coarse)
    assert _reads(pyramid, levels).astype(int).tolist() == [
        [1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1],
    ]  # fmt: skip
    outputs, variables = jax.eval_shape(pyramid.init_with_output, jax.random.key(0), levels)
    chex.assert_shape(outputs, [(1, *size, 8) for size in (*sizes, (1, 2), (1, 1))])
    kernel = variables["params"]["p6"]["kernel"]
    chex.assert_shape(kernel, (3, 3, 6 if coarse == "c5" else 8, 8))


def test_a_coarse_level_is_repeated_below_where_it_lies():
    """With lateral convolutions of nothing below, each pixel of p3 is the pixel of c5 that covers it."""
    pyramid = FeaturePyramid(1)
    levels = tuple(jnp.ones((1, *size, 1)) for size in ((7, 10), (4, 5), (2, 3)))
    coarse = jnp.arange(6.0).reshape(1, 2, 3, 1)
    params = jax.tree.map(jnp.zeros_like, pyramid.init(jax.random.key(0), levels)["params"])
    params["lateral5"]["kernel"] += 1
    for name in ("output3", "output4", "output5"):
        params[name]["kernel"] = params[name]["kernel"].at[1, 1].set(1.0)
    p3, p4, p5, *_ = pyramid.apply({"params": params}, (*levels[:2], coarse))
    np.testing.assert_array_equal(p5, coarse)
    for fine, factor in ((p4, 2), (p3, 4)):
        rows, columns = (np.arange(side) // factor for side in fine.shape[1:3])
        np.testing.assert_array_equal(fine[0, ..., 0], coarse[0, rows][:, columns, 0])


def test_the_numbers_of_an_anchor_stay_together():
    """Channel `anchor * numbers + number` of a place becomes row `place * num_anchors + anchor`."""
    head = AnchorHead(num_anchors=3, numbers=2, depth=0)
    features = jnp.zeros((1, 2, 2, 4))
    params = head.init(jax.random.key(0), features)["params"]
    params["output"]["bias"] = jnp.arange(6.0)
    outputs = head.apply({"params": params}, features)
    np.testing.assert_array_equal(outputs, np.tile(np.arange(6.0).reshape(3, 2), (4, 1))[None])


@pytest.mark.parametrize("model, prior", [(TINY, 0.01), (TINY.clone(prior=0.1), 0.1)])
def test_every_class_starts_at_its_prior(model, prior):
    fast = {"xla_backend_optimization_level": 0}
    init = jax.jit(model.init_with_output, compiler_options=fast)
    (logits, deltas), variables = init(jax.random.key(0), _images())
    np.testing.assert_allclose(jax.nn.sigmoid(logits), prior, rtol=0.5)
    assert np.abs(deltas).max() < 0.5
    for path, x in jax.tree_util.tree_leaves_with_path(variables["params"]):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if where.endswith("bias") and where != "class_head/output/bias":
            assert not np.any(x), where


def _input_types(jaxpr, found: set) -> set:
    """Types of what is multiplied, by convolutions and by matrix products."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            found |= {variable.aval.dtype.name for variable in equation.invars}
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                _input_types(inner.jaxpr, found)
    return found


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_everything_is_multiplied_in_the_type_asked_for(dtype, variables):
    model = TINY.clone(dtype=dtype)
    traced = jax.make_jaxpr(lambda images: model.apply(variables, images))(_images())
    assert _input_types(traced.jaxpr, set()) == {jnp.dtype(dtype).name}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"coarse": "c6"}, "coarse='c6': choose c5 or p5"),
        ({"prior": 0.0}, "prior=0.0: a probability"),
        ({"prior": 1.0}, "prior=1.0: a probability"),
    ],
)
def test_options_that_do_not_exist_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        init_shapes(TINY.clone(**options))


@pytest.mark.parametrize("shape", [(64, 64, 3), (1, 64, 64, 1)])
def test_what_is_no_batch_of_images_is_named(shape):
    with pytest.raises(ValueError, match=rf"images \[B, H, W, 3\], got {re.escape(str(shape))}"):
        jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros(shape))
