"""Fast R-CNN: sizes, the head one region at a time, and two-pass mining over it."""

import functools

import chex
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.mining import masked_mean, mine, top_k
from hardmine_jax.models import VGG16, FastRCNN, ResNet, ResNetTrunk, VGGTrunk
from hardmine_jax.models.fast_rcnn import from_torch
from hardmine_jax.models.resnet import torch_name

NUM_REGIONS = 12
TINY_TRUNK = VGGTrunk(((4,), (8, 8)), "batch")
TINY = FastRCNN(3, TINY_TRUNK, hidden=(16, 16))


def _normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _corner_pool(features, boxes):
    """[N, 7, 7, F] from the pixel in which a box begins: enough to see which box and image it was."""
    column, row = boxes[:, 0].astype(jnp.int32), boxes[:, 1].astype(jnp.int32)
    return jnp.broadcast_to(features[row, column][:, None, None], (len(boxes), 7, 7, features.shape[-1]))


def _boxes(batch=2, count=5) -> np.ndarray:
    corners = np.random.default_rng(0).integers(0, 8, (batch, count, 2))
    return np.concatenate([corners, corners + 3], axis=-1).astype(np.float32)


@pytest.fixture(scope="module")
def variables(random_variables):
    return random_variables(TINY, _normal(2, 16, 16, 3), _boxes())


@pytest.mark.parametrize(
    "model, stride, width",
    [
        (FastRCNN(20), 16, 512),
        (FastRCNN(3, VGGTrunk(((16,), (32, 32), (64, 64), (128,)), "batch"), hidden=(256, 256)), 8, 128),
        (FastRCNN(20, ResNetTrunk(50), hidden=(1024, 1024), pooling="align"), 16, 1024),
        (FastRCNN(20, ResNetTrunk(18), hidden=(64, 32), pooling="align"), 16, 256),
    ],
    ids=["vgg16", "laptop", "resnet50", "resnet18"],
)
@pytest.mark.parametrize("sides", [(240, 320), (160, 160)])
def test_sizes(model, stride, width, sides):
    images = jax.ShapeDtypeStruct((2, *sides, 3), jnp.float32)
    boxes = jax.ShapeDtypeStruct((2, 9, 4), jnp.float32)
    (logits, deltas), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images, boxes)
    chex.assert_shape(logits, (2, 9, model.num_classes + 1))
    chex.assert_shape(deltas, (2, 9, model.num_classes, 4))
    chex.assert_type([logits, deltas], jnp.float32)
    assert model.stride == stride
    features = jax.eval_shape(functools.partial(model.apply, method="features"), variables, images)
    chex.assert_shape(features, (2, -(-sides[0] // stride), -(-sides[1] // stride), width))


def test_parameter_counts_are_vgg16s_with_other_outputs():
    images, boxes = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 1, 4))
    params = jax.eval_shape(FastRCNN(20).init, jax.random.key(0), images, boxes)["params"]
    found = sum(x.size for x in jax.tree.leaves(params))
    assert found == 138_357_544 + 4097 * (21 + 80 - 1000) == 134_674_341


def test_a_resnet_trunk_ends_at_stride_16():
    """torchvision's ResNet-50 less its last stage (14,964,736) and classifier (2,049,000)."""
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(ResNetTrunk(50).init, jax.random.key(0), images)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == 25_557_032 - 14_964_736 - 2_049_000


def test_frozen_normalisation_keeps_its_statistics(random_variables):
    images = _normal(2, 32, 32, 3)
    frozen = ResNetTrunk(18, 4, frozen_norm=True)
    variables = random_variables(frozen, images)

    @functools.partial(jax.jit, static_argnums=0)
    def train(trunk):
        return trunk.apply(variables, images, train=True, mutable=["batch_stats"])

    features, after = train(frozen)
    chex.assert_trees_all_equal(after["batch_stats"], variables["batch_stats"])
    others, moved = train(frozen.clone(frozen_norm=False))
    assert not np.allclose(others, features)
    for before, now in zip(
        jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(moved["batch_stats"]), strict=True
    ):
        assert not np.array_equal(before, now)


def test_the_whole_is_trunk_pooling_and_head(variables):
    images, boxes = _normal(2, 16, 16, 3), _boxes()
    model = TINY.clone(pool=_corner_pool)
    logits, deltas = jax.jit(model.apply)(variables, images, boxes)
    features = TINY.apply(variables, images, method="features")
    for image in range(2):
        pooled = _corner_pool(features[image], boxes[image])
        expected = TINY.apply(variables, pooled, method="head")
        np.testing.assert_allclose(logits[image], expected[0], atol=1e-6)
        np.testing.assert_allclose(deltas[image], expected[1], atol=1e-6)


def test_outputs_start_small_as_published():
    init = jax.jit(TINY.init, compiler_options={"xla_backend_optimization_level": 0})
    params = init(jax.random.key(0), _normal(1, 16, 16, 3), _boxes(1))["params"]
    assert np.std(params["class_logits"]["kernel"]) == pytest.approx(0.01, rel=0.3)
    assert np.std(params["box_deltas"]["kernel"]) == pytest.approx(0.001, rel=0.3)


def test_without_a_pool_only_the_whole_is_refused(variables):
    with pytest.raises(ValueError, match="stride=model.stride"):
        TINY.apply(variables, _normal(2, 16, 16, 3), _boxes())


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 5, 5), (2, 4)])
def test_boxes_that_do_not_fit_are_named(shape, variables):
    with pytest.raises(ValueError, match=r"\[B, N, 4\], B=2") as raised:
        TINY.clone(pool=_corner_pool).apply(variables, _normal(2, 16, 16, 3), np.zeros(shape, np.float32))
    assert str(shape) in str(raised.value)


@pytest.mark.parametrize("options", [{"pooling": "mean"}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_options_that_do_not_exist_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        TINY.clone(**options).init(jax.random.key(0), _normal(1, 16, 16, 3), _boxes(1))


def _head(model, variables, pooled, **options):
    return jax.jit(functools.partial(model.apply, train=True, method="head", **options))(variables, pooled)


def test_dropout_belongs_to_the_region_and_not_to_its_place(variables):
    pooled, keys = _normal(NUM_REGIONS, 7, 7, 8), jax.random.split(jax.random.key(3), NUM_REGIONS)
    logits, deltas = _head(TINY, variables, pooled, keys=keys)
    order = np.array([7, 2, 11])
    few_logits, few_deltas = _head(TINY, variables, pooled[order], keys=keys[order])
    np.testing.assert_allclose(few_logits, logits[order], atol=1e-6)
    np.testing.assert_allclose(few_deltas, deltas[order], atol=1e-7)
    same = _head(TINY, variables, np.repeat(pooled[:1], NUM_REGIONS, 0), keys=keys)[0]
    assert len(np.unique(np.asarray(same), axis=0)) > NUM_REGIONS // 2


def test_dropout_keeps_the_expectation_at_its_rate(variables):
    """Of fc7's outputs, seen through one output that is their plain sum."""
    count = 4000
    params = {**variables["params"], "class_logits": {"kernel": jnp.ones((16, 4)), "bias": jnp.zeros(4)}}
    params["fc6"] = {"kernel": jnp.zeros((392, 16)), "bias": jnp.ones(16)}
    params["fc7"] = {"kernel": jnp.eye(16), "bias": jnp.zeros(16)}
    pooled, keys = np.zeros((count, 7, 7, 8), np.float32), jax.random.split(jax.random.key(0), count)
    for rate in (0.25, 0.5):
        logits, _ = _head(TINY.clone(dropout=rate), {"params": params}, pooled, keys=keys)
        # Two layers, each keeping with probability 1 - rate and dividing by it.
        keep = (1 - rate) ** 2
        assert float(logits[:, 0].mean()) == pytest.approx(16.0, rel=0.03)
        assert float(logits[:, 0].var()) == pytest.approx(16.0 * (1 / keep - 1), rel=0.1)


def test_without_keys_dropout_draws_from_its_stream_and_off_it_draws_nothing(variables):
    pooled = _normal(NUM_REGIONS, 7, 7, 8)
    drawn = [_head(TINY, variables, pooled, rngs={"dropout": jax.random.key(i)})[0] for i in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-4
    off = TINY.clone(dropout=0.0)
    evaluated = jax.jit(functools.partial(TINY.apply, method="head"))(variables, pooled)
    chex.assert_trees_all_close(_head(off, variables, pooled), evaluated, atol=1e-6)
    chex.assert_trees_all_equal(_head(off, variables, pooled), _head(off, variables, pooled))


@pytest.mark.parametrize("norm, way", [("batch", {}), ("group", {"chunk": 5}), ("batch", {"reuse": True})])
def test_mining_the_head_is_the_masked_path_with_dropout_on(norm, way, random_variables):
    """Value and every gradient, down to the trunk, whose batch statistics no region enters."""
    model = TINY.clone(trunk=TINY_TRUNK.clone(norm=norm))
    images, boxes = _normal(1, 16, 16, 3), jnp.asarray(_boxes(1, NUM_REGIONS)[0])
    variables = random_variables(model, images, boxes[None])
    keys, k = jax.random.split(jax.random.key(5), NUM_REGIONS), 4

    def unit_losses(params, features, boxes, keys):
        pooled = _corner_pool(features, boxes)
        logits, deltas = model.apply({"params": params}, pooled, train=True, keys=keys, method="head")
        return jax.nn.logsumexp(10.0 * logits, -1) + jnp.abs(deltas + boxes[:, None]).sum((-1, -2))

    def select(losses, *_):
        return top_k(losses, k=k)

    def features_of(params):
        run = {**variables, "params": params}
        features, _ = model.apply(run, images, train=True, method="features", mutable=["batch_stats"])
        return features[0]

    def mined(params):
        hard = mine(unit_losses, select, capacity=k, in_axes=(None, None, 0, 0), **way)
        found = hard(params, features_of(params), boxes, keys)
        return masked_mean(found.losses, where=found.keep)

    def masked(params):
        losses = unit_losses(params, features_of(params), boxes, keys)
        return masked_mean(losses, where=select(losses))

    found = jax.jit(jax.value_and_grad(mined))(variables["params"])
    expected = jax.jit(jax.value_and_grad(masked))(variables["params"])
    # The largest entries are near 10; some that cancel to 0.01 keep their rounding.
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    assert all(np.any(x) and np.isfinite(x).all() for x in jax.tree.leaves(found[1]["trunk"]))


def test_bfloat16_keeps_float32_outside(variables):
    pooled = _normal(NUM_REGIONS, 7, 7, 8)
    run = [
        jax.jit(functools.partial(model.apply, method="head"))
        for model in (TINY, TINY.clone(dtype=jnp.bfloat16))
    ]
    precise, rounded = (one(variables, pooled) for one in run)
    chex.assert_type(rounded, jnp.float32)
    assert 1e-6 < np.abs(precise[0] - rounded[0]).max() / np.abs(precise[0]).max() < 0.1


def test_the_score_dtype_of_mine_reaches_the_products(variables):
    pooled, keys = _normal(NUM_REGIONS, 7, 7, 8), jax.random.split(jax.random.key(0), NUM_REGIONS)
    scored = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (variables, pooled))
    run = functools.partial(TINY.apply, method="head", train=True, keys=keys)
    chex.assert_type(jax.eval_shape(run, *scored), jnp.float32)
    jaxpr = jax.make_jaxpr(run)(*scored)
    products = [x.outvars[0].aval.dtype for x in jaxpr.eqns if x.primitive.name == "dot_general"]
    assert products == [jnp.bfloat16] * 4


def _classifier_weights(model: VGG16) -> dict[str, np.ndarray]:
    """Under torchvision's names, for a trunk of two blocks with one convolution each."""
    first, last = model.widths[0][0], model.widths[1][0]
    shapes = {
        "features.0": (first, 3, 3, 3),
        "features.3": (last, first, 3, 3),
        "classifier.0": (16, last * 49),
        "classifier.3": (16, 16),
        "classifier.6": (1000, 16),
    }
    entries = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        entries[f"{name}.weight"] = _normal(*shape, seed=seed)
        entries[f"{name}.bias"] = _normal(shape[0], seed=seed)
    return entries


def test_from_torch_starts_from_a_classifier(random_variables):
    widths = ((4,), (6,))
    entries = _classifier_weights(VGG16(widths=widths, hidden=16))
    model = FastRCNN(3, VGGTrunk(widths), hidden=(16, 16))
    fresh = random_variables(model, _normal(1, 16, 16, 3), _boxes(1))
    loaded = from_torch(entries, fresh)
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded, fresh)
    params = loaded["params"]
    for name in ("class_logits", "box_deltas"):
        chex.assert_trees_all_equal(params[name], fresh["params"][name])
    np.testing.assert_array_equal(
        params["trunk"]["conv2_1"]["kernel"], entries["features.3.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(params["fc7"]["kernel"], entries["classifier.3.weight"].T)
    # A feature map through fc6, flattened in PyTorch's order there.
    maps = _normal(1, 7, 7, 6)
    there = maps.transpose(0, 3, 1, 2).reshape(1, -1) @ entries["classifier.0.weight"].T
    np.testing.assert_allclose(maps.reshape(1, -1) @ params["fc6"]["kernel"], there, rtol=1e-4, atol=1e-4)
    del entries["classifier.6.weight"], entries["classifier.6.bias"]
    chex.assert_trees_all_equal(from_torch(entries, fresh), loaded)
    with pytest.raises(ValueError, match=r"missing features.3.bias; nothing here takes other.bias"):
        from_torch({"other.bias" if k == "features.3.bias" else k: x for k, x in entries.items()}, fresh)


def test_from_torch_starts_a_resnet_trunk(random_variables):
    model = FastRCNN(3, ResNetTrunk(18, width=4), hidden=(16, 16), pooling="align")
    fresh = random_variables(model, _normal(1, 32, 32, 3), _boxes(1))
    donor = jax.tree.map(lambda x: x + 1, random_variables(ResNet(18, width=4), _normal(1, 32, 32, 3)))

    entries = {}
    for collection, leaves in (("params", ("kernel", "scale", "bias")), ("batch_stats", ("mean", "var"))):
        for path, leaf in flax.traverse_util.flatten_dict(donor[collection]).items():
            assert path[-1] in leaves
            ending = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
            module = torch_name(tuple(part for part in path[:-1] if part != "norm"))
            array = np.asarray(leaf)
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
            entries[f"{module}.{ending.get(path[-1], path[-1])}"] = array
    entries |= {"fc.weight": np.zeros((5, 32)), "fc.bias": np.zeros(5)}
    loaded = from_torch(entries, fresh)
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded, fresh)
    for collection in ("params", "batch_stats"):
        for name, tree in loaded[collection]["trunk"]["resnet"].items():
            chex.assert_trees_all_equal(tree, donor[collection][name])
    chex.assert_trees_all_equal(loaded["params"]["fc6"], fresh["params"]["fc6"])
    del entries["layer3.1.conv2.weight"]
    with pytest.raises(ValueError, match=r"missing layer3.1.conv2.weight"):
        from_torch(entries, fresh)
