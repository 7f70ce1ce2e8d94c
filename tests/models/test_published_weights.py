"""Published weights under their published names give PyTorch's numbers; what does not fit is named."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.models import (
    CPN,
    HRNet,
    ResNet,
    RetinaNet,
    SimpleBaseline,
    cpn,
    hrnet,
    resnet,
    retinanet,
    simple_baseline,
)
from hardmine_jax.models.resnet import ResNetClassifier
from hardmine_jax.models.torch_weights import WeightsError, init_shapes

THIN_HRNET = HRNet(4, num_keypoints=5, stem_features=4, stem_blocks=2, modules=(1, 2, 2), blocks=1)
THIN_BASELINE = SimpleBaseline(18, num_keypoints=5, width=4, deconvolution_features=6)
THIN_RETINANET = RetinaNet(5, 18, num_anchors=3, width=4, features=6, head_depth=2, coarse="p5")


def _images(*sides, batch=2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, *sides, 3)).astype(np.float32)


def _difference(found, expected) -> float:
    """Largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


def _parity(torch_networks, network, from_torch, model, sides) -> float:
    network = torch_networks.randomise(network)
    images = _images(*sides)
    (expected,) = torch_networks.run(network, images)
    found = jax.jit(model.apply)(from_torch(network.state_dict()), images)
    return _difference(found, expected)


def test_hrnet_is_pytorchs(torch_networks):
    network = torch_networks.HRNet(4, 5, stem=4, stem_blocks=2, modules=(1, 2, 2), blocks=1)
    assert _parity(torch_networks, network, hrnet.from_torch, THIN_HRNET, (64, 96)) < 1e-5


def test_simple_baseline_is_pytorchs(torch_networks):
    network = torch_networks.SimpleBaseline(18, 5, width=4, features=6)
    assert _parity(torch_networks, network, simple_baseline.from_torch, THIN_BASELINE, (64, 96)) < 1e-5


def test_resnet_is_pytorchs_at_every_level(torch_networks):
    """An odd side too, in which a stride pads otherwise."""
    network, images = torch_networks.randomise(torch_networks.ResNet(50, 2, 7)), _images(62, 97)
    variables = resnet.from_torch(network.state_dict())
    found = jax.jit(ResNet(50, 2).apply)(variables, images)
    for level, expected in zip(found, torch_networks.run(network.levels, images), strict=True):
        assert _difference(level, expected) < 1e-5
    three = ResNet(50, 2, stages=3)
    chex.assert_trees_all_equal_shapes(
        resnet.from_torch(network.state_dict(), model=three), init_shapes(three)
    )


def test_the_classifier_is_pytorchs(torch_networks):
    model, network = ResNetClassifier(18, 7, 4), torch_networks.ResNet(18, 4, 7)
    from_torch = functools.partial(resnet.from_torch, model=model)
    assert _parity(torch_networks, network, from_torch, model, (64, 64)) < 1e-5


@pytest.mark.parametrize("coarse", ["c5", "p5"])
def test_retinanet_is_pytorchs(coarse, torch_networks):
    """Odd sides too, which the upsampled level above is one too large for."""
    network = torch_networks.RetinaNet(18, 5, width=4, features=6, num_anchors=3, depth=2, coarse=coarse)
    network, images = torch_networks.randomise(network), _images(70, 97)
    variables = retinanet.from_torch(network.state_dict())
    found = jax.jit(THIN_RETINANET.clone(coarse=coarse).apply)(variables, images)
    for output, expected in zip(found, torch_networks.run(network, images), strict=True):
        assert _difference(output, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("width", [32, 48])
def test_hrnet_is_pytorchs_at_full_size(width, torch_networks):
    network, model = torch_networks.HRNet(width), HRNet(width)
    assert _parity(torch_networks, network, hrnet.from_torch, model, (256, 192)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 50])
def test_simple_baseline_is_pytorchs_at_full_size(depth, torch_networks):
    network, model = torch_networks.SimpleBaseline(depth), SimpleBaseline(depth)
    assert _parity(torch_networks, network, simple_baseline.from_torch, model, (256, 192)) < 1e-3


@pytest.mark.slow
def test_resnet_is_pytorchs_at_full_size(torch_networks):
    network, model = torch_networks.ResNet(50), ResNetClassifier(50)
    from_torch = functools.partial(resnet.from_torch, model=model)
    assert _parity(torch_networks, network, from_torch, model, (224, 224)) < 1e-3


def test_an_imagenet_hrnet_starts_a_pose_network(torch_networks):
    classifier = torch_networks.HRNet(4, 5, 4, 2, (1, 2, 2), 1, classifier=True)
    _assert_trunk_starts(torch_networks.randomise(classifier).state_dict())


def _norm(name: str, features: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.{leaf}": (features,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{name}.num_batches_tracked": ()}


def _conv_norm(conv: str, norm: str, features: int, channels: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{conv}.weight": (features, channels, size, size)} | _norm(norm, features)


def _pair(name: str, features: int, channels: int, size: int) -> dict[str, tuple[int, ...]]:
    return _conv_norm(f"{name}.0", f"{name}.1", features, channels, size)


def _blocks(
    name: str, count: int, channels: int, width: int, *, bottleneck: bool = False, project: bool = False
):
    """Of one `nn.Sequential` of residual blocks."""
    outs, sizes = ((width, width, 4 * width), (1, 3, 1)) if bottleneck else ((width, width), (3, 3))
    shapes = {}
    for index in range(count):
        inputs = channels
        if index == 0 and project:
            shapes |= _pair(f"{name}.0.downsample", outs[-1], channels, 1)
        for place, (features, size) in enumerate(zip(outs, sizes, strict=True), start=1):
            block = f"{name}.{index}"
            shapes |= _conv_norm(f"{block}.conv{place}", f"{block}.bn{place}", features, inputs, size)
            inputs = features
        channels = outs[-1]
    return shapes


def _resnet_shapes(depth: int, width: int) -> dict[str, tuple[int, ...]]:
    counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
    shapes, channels = _conv_norm("conv1", "bn1", width, 3, 7), width
    for stage, count in enumerate(counts[depth]):
        features = width * 2**stage
        deep = depth >= 50
        project = deep or stage > 0
        shapes |= _blocks(f"layer{stage + 1}", count, channels, features, bottleneck=deep, project=project)
        channels = 4 * features if deep else features
    return shapes


def _baseline_shapes(depth: int, width: int, features: int, num_keypoints: int) -> dict[str, tuple[int, ...]]:
    channels = 8 * width * (1 if depth < 50 else 4)
    shapes = _resnet_shapes(depth, width)
    for place, inputs in ((0, channels), (3, features), (6, features)):
        shapes[f"deconv_layers.{place}.weight"] = (inputs, features, 4, 4)
        shapes |= _norm(f"deconv_layers.{place + 1}", features)
    return shapes | {
        "final_layer.weight": (num_keypoints, features, 1, 1),
        "final_layer.bias": (num_keypoints,),
    }


def _hrnet_shapes(width, num_keypoints, stem, stem_blocks, modules, blocks, *, classifier=False):
    shapes = _conv_norm("conv1", "bn1", stem, 3, 3) | _conv_norm("conv2", "bn2", stem, stem, 3)
    shapes |= _blocks("layer1", stem_blocks, stem, stem, bottleneck=True, project=True)
    shapes |= _pair("transition1.0", width, 4 * stem, 3) | _pair("transition1.1.0", 2 * width, 4 * stem, 3)
    shapes |= _pair("transition2.2.0", 4 * width, 2 * width, 3)
    shapes |= _pair("transition3.3.0", 8 * width, 4 * width, 3)
    for stage, count in enumerate(modules, start=2):
        for module in range(count):
            name = f"stage{stage}.{module}"
            for branch in range(stage):
                features = width * 2**branch
                shapes |= _blocks(f"{name}.branches.{branch}", blocks, features, features)
            alone = stage == 4 and module == count - 1 and not classifier
            for target in range(1 if alone else stage):
                shapes |= _fuse(f"{name}.fuse_layers.{target}", target, stage, width)
    if classifier:
        shapes |= _blocks("incre_modules.0", 1, width, 8, bottleneck=True, project=True)
        shapes |= _pair("downsamp_modules.0", 32, 32, 3) | _pair("final_layer", 64, 32, 1)
        return shapes | {"classifier.weight": (10, 64), "classifier.bias": (10,)}
    return shapes | {"final_layer.weight": (num_keypoints, width, 1, 1), "final_layer.bias": (num_keypoints,)}


def _fuse(name: str, target: int, branches: int, width: int) -> dict[str, tuple[int, ...]]:
    """Everything that comes to one branch in one exchange."""
    shapes = {}
    for source in range(branches):
        there, here = width * 2**source, width * 2**target
        if source > target:
            shapes |= _pair(f"{name}.{source}", here, there, 1)
        for step in range(target - source):
            last = step == target - source - 1
            shapes |= _pair(f"{name}.{source}.{step}", here if last else there, there, 3)
    return shapes


def _retinanet_shapes(depth, num_classes, num_anchors, width, features, head_depth, coarse):
    shapes = {f"backbone.body.{name}": shape for name, shape in _resnet_shapes(depth, width).items()}

    def convolution(name: str, outputs: int, inputs: int, size: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}

    channels = [2 * width, 4 * width, 8 * width]
    for place, inputs in enumerate(channels):
        shapes |= convolution(f"backbone.fpn.inner_blocks.{place}.0", features, inputs, 1)
        shapes |= convolution(f"backbone.fpn.layer_blocks.{place}.0", features, features, 3)
    into_p6 = channels[-1] if coarse == "c5" else features
    shapes |= convolution("backbone.fpn.extra_blocks.p6", features, into_p6, 3)
    shapes |= convolution("backbone.fpn.extra_blocks.p7", features, features, 3)
    for head, last, numbers in (("classification", "cls_logits", num_classes), ("regression", "bbox_reg", 4)):
        for place in range(head_depth):
            shapes |= convolution(f"head.{head}_head.conv.{place}.0", features, features, 3)
        shapes |= convolution(f"head.{head}_head.{last}", num_anchors * numbers, features, 3)
    return shapes


def _entries(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


THIN_ARGUMENTS = (4, 5, 4, 2, (1, 2, 2), 1)
HRNET_ENTRIES = _entries(_hrnet_shapes(*THIN_ARGUMENTS))
BASELINE_ENTRIES = _entries(_baseline_shapes(18, 4, 6, 5))
RETINANET_ENTRIES = _entries(_retinanet_shapes(18, 5, 3, 4, 6, 2, "p5"))
CASES = {
    "hrnet": (hrnet.from_torch, THIN_HRNET, HRNET_ENTRIES),
    "simple_baseline": (simple_baseline.from_torch, THIN_BASELINE, BASELINE_ENTRIES),
    "resnet18": (resnet.from_torch, ResNet(18, 4), _entries(_resnet_shapes(18, 4))),
    "resnet50": (resnet.from_torch, ResNet(50, 2), _entries(_resnet_shapes(50, 2))),
    "retinanet": (retinanet.from_torch, THIN_RETINANET, RETINANET_ENTRIES),
}
EVERY_NETWORK = pytest.mark.parametrize("from_torch, model, entries", CASES.values(), ids=CASES)


@EVERY_NETWORK
def test_from_torch_makes_what_init_makes(from_torch, model, entries):
    variables = from_torch(entries)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, init_shapes(model))
    chex.assert_trees_all_equal(variables, from_torch(entries, model=model))


@EVERY_NETWORK
def test_every_entry_arrives_once(from_torch, model, entries):
    wanted = [x for name, x in entries.items() if not name.endswith("num_batches_tracked")]
    arrived = jax.tree.leaves(from_torch(entries))
    assert sorted(float(x.sum()) for x in arrived) == pytest.approx(
        sorted(float(x.sum()) for x in wanted), abs=1e-4
    )


def _at(variables, path: str):
    for key in path.split("/"):
        variables = variables[key]
    return variables


@pytest.mark.parametrize(
    "path, name",
    [
        ("params/stem2/conv/kernel", "conv2.weight"),
        ("batch_stats/stem1/bn/norm/mean", "bn1.running_mean"),
        ("batch_stats/layer1_0/downsample_bn/norm/var", "layer1.0.downsample.1.running_var"),
        ("params/transition1_0/bn/norm/scale", "transition1.0.1.weight"),
        ("params/transition1_1/conv/kernel", "transition1.1.0.0.weight"),
        ("params/stage4_1_branch3_0/conv2/kernel", "stage4.1.branches.3.0.conv2.weight"),
        ("params/stage4_1_exchange/from2_to0/conv/kernel", "stage4.1.fuse_layers.0.2.0.weight"),
        ("params/stage3_1_exchange/from0_to2_1/bn/norm/bias", "stage3.1.fuse_layers.2.0.1.1.bias"),
        ("params/stage4_0_exchange/from1_to3_2/conv/kernel", "stage4.0.fuse_layers.3.1.1.0.weight"),
        ("params/final_layer/bias", "final_layer.bias"),
    ],
)
def test_where_hrnets_entries_go(path, name):
    found, entry = _at(hrnet.from_torch(HRNET_ENTRIES), path), HRNET_ENTRIES[name]
    np.testing.assert_array_equal(found, entry.transpose(2, 3, 1, 0) if entry.ndim == 4 else entry)


def test_a_transposed_convolution_has_its_inputs_first():
    variables = simple_baseline.from_torch(BASELINE_ENTRIES)
    kernel, weight = variables["params"]["deconv0"]["kernel"], BASELINE_ENTRIES["deconv_layers.0.weight"]
    assert weight.shape == (32, 6, 4, 4)
    np.testing.assert_array_equal(kernel, weight.transpose(2, 3, 0, 1))


@EVERY_NETWORK
def test_wrong_entries_are_all_named(from_torch, model, entries):
    wrong = dict(entries)
    trunk = "backbone.body." if from_torch is retinanet.from_torch else ""
    del wrong[f"{trunk}layer1.0.bn1.running_var"]
    wrong[f"{trunk}layer1.1.conv1.weight"] = np.zeros((1, 2, 3, 3), np.float32)
    wrong["head.weight"] = np.zeros(3, np.float32)
    with pytest.raises(
        ValueError, match=f"missing {trunk}layer1.0.bn1.running_var; nothing here takes head.weight;"
    ) as raised:
        from_torch(wrong)
    assert f"{trunk}layer1.1.conv1.weight is (1, 2, 3, 3), not (" in str(raised.value)


def test_retinanets_names_before_torchvision_0_13():
    old = {_before_0_13(name): x for name, x in RETINANET_ENTRIES.items()}
    assert "backbone.fpn.inner_blocks.2.bias" in old and "head.regression_head.conv.2.weight" in old
    assert len(set(old) - set(RETINANET_ENTRIES)) == 2 * (3 + 3 + 2 + 2)
    chex.assert_trees_all_equal(retinanet.from_torch(old), retinanet.from_torch(RETINANET_ENTRIES))


def test_a_name_before_0_13_beside_its_successor_is_left_over():
    for number in (1, 2):
        extra = f"head.classification_head.conv.{number}.bias"
        with pytest.raises(WeightsError, match=f"nothing here takes {extra}"):
            retinanet.from_torch({extra: np.full(6, 7.0)} | RETINANET_ENTRIES)


def _before_0_13(name: str) -> str:
    name = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", name)
    return re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda found: f"{found[1]}.{2 * int(found[2])}.", name)


def test_what_is_no_retinanet_is_said():
    trunk = {name: x for name, x in RETINANET_ENTRIES.items() if not name.startswith("head.")}
    with pytest.raises(WeightsError, match="no weights of a RetinaNet: head.classification_head.cls"):
        retinanet.from_torch(trunk)
    empty = RETINANET_ENTRIES | {"backbone.fpn.inner_blocks.0.0.bias": np.zeros(0)}
    with pytest.raises(WeightsError, match="no weights of a RetinaNet"):
        retinanet.from_torch(empty)
    flat = RETINANET_ENTRIES | {"backbone.fpn.extra_blocks.p6.weight": np.zeros(())}
    with pytest.raises(WeightsError, match=r"extra_blocks.p6.weight is \(\), not \("):
        retinanet.from_torch(flat)
    few = RETINANET_ENTRIES | {"head.regression_head.bbox_reg.bias": np.zeros(3)}
    with pytest.raises(WeightsError, match="no weights of a RetinaNet"):
        retinanet.from_torch(few)
    with pytest.raises(WeightsError, match="no ResNet of depth"):
        retinanet.from_torch({"conv1.weight": np.zeros((4, 3, 7, 7))})
    normalised = RETINANET_ENTRIES | {"head.classification_head.conv.0.1.weight": np.zeros(6)}
    with pytest.raises(WeightsError, match="nothing here takes head.classification_head.conv.0.1.weight"):
        retinanet.from_torch(normalised)


def test_hundreds_of_names_are_counted():
    short = {name: x for name, x in HRNET_ENTRIES.items() if not name.startswith("stage4.1")}
    with pytest.raises(WeightsError, match=r"missing stage4.1.\S+(, stage4.1.\S+){7} and \d\d more$"):
        hrnet.from_torch(short, model=THIN_HRNET)


@pytest.mark.parametrize("wrap", ["state_dict", "model"])
def test_a_training_checkpoint_of_several_devices_is_seen_through(wrap):
    wrapped = {"module." + name: x for name, x in BASELINE_ENTRIES.items()}
    checkpoint = {"epoch": 210, "model": "pose_resnet", "perf": 0.7, wrap: wrapped}
    expected = simple_baseline.from_torch(BASELINE_ENTRIES)
    chex.assert_trees_all_equal(simple_baseline.from_torch(checkpoint), expected)


def test_a_resnet_leaves_the_classifier_and_later_stages():
    entries = CASES["resnet18"][2] | {"fc.weight": np.zeros((7, 32)), "fc.bias": np.zeros(7)}
    trunk = resnet.from_torch(entries)
    three = resnet.from_torch(entries, model=ResNet(18, 4, stages=3))
    chex.assert_trees_all_equal({**trunk["params"], **three["params"]}, trunk["params"])
    assert set(trunk["params"]) - set(three["params"]) == {"layer4_0", "layer4_1"}
    whole = resnet.from_torch(entries, model=ResNetClassifier(18, 7, 4))
    chex.assert_trees_all_equal(whole["params"]["trunk"], trunk["params"])
    with pytest.raises(WeightsError, match="missing fc.bias, fc.weight"):
        resnet.from_torch(CASES["resnet18"][2], model=ResNetClassifier(18, 7, 4))


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_the_depth_is_seen(depth):
    entries = dict.fromkeys(_resnet_shapes(depth, 64), 0.0) | {"conv1.weight": np.zeros((48, 3, 7, 7))}
    assert resnet.published_size(entries) == (depth, 48)
    with pytest.raises(WeightsError, match=r"have \(4, 0, 0, 0\) bottlenecks: no ResNet of depth \[18, "):
        resnet.published_size(_hrnet_shapes(32, 17, 64, 4, (1, 4, 3), 4))


@pytest.fixture(scope="module")
def started(random_variables):
    return {name: random_variables(model, _images(64, 64)) for name, (_, model, _) in CASES.items()}


def _assert_trunk_starts(entries, fresh=None):
    fresh = fresh or jax.tree.map(lambda x: jnp.full(x.shape, 7.0), init_shapes(THIN_HRNET))
    start = hrnet.warm_start(entries, fresh)
    assert start.initial == ("final_layer.bias", "final_layer.weight")
    chex.assert_trees_all_equal(start.variables["params"]["final_layer"], fresh["params"]["final_layer"])
    chex.assert_trees_all_equal_shapes_and_dtypes(start.variables, fresh)
    kernel = start.variables["params"]["stage4_1_branch3_0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), entries["stage4.1.branches.3.0.conv1.weight"])
    unused = {name.split(".")[0] for name in start.unused}
    assert unused == {"incre_modules", "downsamp_modules", "final_layer", "classifier", "stage4"}
    assert {name[:22] for name in start.unused if name.startswith("stage4")} == {
        f"stage4.1.fuse_layers.{target}" for target in (1, 2, 3)
    }


def test_an_imagenet_trunk_fills_all_but_the_heatmaps(started):
    _assert_trunk_starts(_entries(_hrnet_shapes(*THIN_ARGUMENTS, classifier=True)), started["hrnet"])


def test_an_imagenet_resnet_starts_simple_baseline(started):
    entries = CASES["resnet18"][2] | {"fc.weight": np.zeros((7, 32)), "fc.bias": np.zeros(7)}
    start = simple_baseline.warm_start(entries, started["simple_baseline"])
    trunk = resnet.from_torch(entries)
    for collection in ("params", "batch_stats"):
        chex.assert_trees_all_equal(start.variables[collection]["trunk"], trunk[collection])
    left = {name.split(".")[0] for name in start.initial}
    assert left == {"deconv_layers", "final_layer"} and len(start.initial) == 3 * 5 + 2
    assert start.unused == ("fc.bias", "fc.weight")


@pytest.mark.parametrize("name, module", [("hrnet", hrnet), ("simple_baseline", simple_baseline)])
def test_other_keypoints_keep_all_but_the_last_layer(name, module, started):
    from_torch, model, entries = CASES[name]
    same = module.warm_start(entries, started[name])
    chex.assert_trees_all_equal(same.variables, from_torch(entries))
    assert same.initial == same.unused == ()
    shape = (9, entries["final_layer.weight"].shape[1], 1, 1)
    other = entries | {"final_layer.weight": np.zeros(shape), "final_layer.bias": np.zeros(9)}
    start = module.warm_start(other, started[name])
    assert set(start.initial) == set(start.unused) == {"final_layer.weight", "final_layer.bias"}
    kept = same.variables["params"] | {"final_layer": started[name]["params"]["final_layer"]}
    chex.assert_trees_all_equal(start.variables["params"], kept)


@pytest.mark.parametrize("name, module", [("hrnet", hrnet), ("simple_baseline", simple_baseline)])
def test_a_trunk_must_be_whole(name, module, started):
    entries = dict(CASES[name][2]) | {"odd.weight": np.zeros(3)}
    del entries["layer1.0.conv1.weight"]
    entries["layer1.0.bn1.bias"] = np.zeros(9)
    wrong = r"missing layer1.0.conv1.weight; nothing here takes odd.weight; layer1.0.bn1.bias is \(9,\), not "
    with pytest.raises(WeightsError, match=wrong):
        module.warm_start(entries, started[name])


_PYRAMIDS = pytest.mark.parametrize(
    "module, model, parts",
    [
        (cpn, CPN(18, 5, width=4), {"global", "refine"}),
        (retinanet, THIN_RETINANET, {"pyramid", "class_head", "box_head"}),
    ],
    ids=["cpn", "retinanet"],
)


@_PYRAMIDS
def test_an_imagenet_resnet_starts_a_pyramid(module, model, parts):
    entries = CASES["resnet18"][2] | {"fc.weight": np.zeros((7, 32)), "fc.bias": np.zeros(7)}
    fresh = jax.tree.map(lambda x: jnp.full(x.shape, 7.0), init_shapes(model))
    start = module.warm_start(entries, fresh)
    for collection, trunk in resnet.from_torch(entries).items():
        chex.assert_trees_all_equal(start.variables[collection], fresh[collection] | {"trunk": trunk})
    assert start.unused == ("fc.bias", "fc.weight")
    assert {name.split(".")[0] for name in start.initial} == parts


@_PYRAMIDS
def test_a_pyramids_trunk_must_be_whole(module, model, parts):
    entries = CASES["resnet18"][2] | {"odd.weight": np.zeros(3)}
    del entries["layer1.0.conv1.weight"]
    fresh = jax.tree.map(lambda x: jnp.full(x.shape, 7.0), init_shapes(model))
    with pytest.raises(WeightsError, match="missing layer1.0.conv1.weight; nothing here takes odd.weight"):
        module.warm_start(entries, fresh)
