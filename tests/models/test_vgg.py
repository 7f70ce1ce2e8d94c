"""VGG16: published sizes, pooling against the reference, and torchvision's weights give its numbers."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.models import VGG16, VGGTrunk
from hardmine_jax.models.vgg import VGG16_WIDTHS, from_torch, max_pool, params_from_torch

THIN = VGG16(num_classes=7, widths=((4, 4), (6, 6), (8, 8, 8), (10, 10, 10), (12, 12, 12)), hidden=16)
LAPTOP = VGGTrunk(((16,), (32, 32), (64, 64), (128,)), norm="batch")


def _normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def test_published_parameter_counts():
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    logits, variables = jax.eval_shape(VGG16().init_with_output, jax.random.key(0), images)
    assert _count(variables["params"]) == 138_357_544
    assert _count(variables["params"]["trunk"]) == 14_714_688
    assert set(variables) == {"params"}
    chex.assert_shape(logits, (2, 1000))
    chex.assert_type(logits, jnp.float32)


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize("widths, stride", [(VGG16_WIDTHS, 16), (LAPTOP.widths, 8), (((8, 8),), 1)])
@pytest.mark.parametrize("sides", [(240, 320), (160, 160), (37, 50)])
def test_the_trunk_has_its_stride(sides, widths, stride, norm):
    trunk = VGGTrunk(widths, norm)
    assert trunk.stride == stride
    images = jax.ShapeDtypeStruct((2, *sides, 3), jnp.float32)
    features, variables = jax.eval_shape(trunk.init_with_output, jax.random.key(0), images)
    chex.assert_shape(features, (2, sides[0] // stride, sides[1] // stride, widths[-1][-1]))
    convolutions = [name for name in variables["params"] if "_" in name and name.count("_") == 1]
    assert len(convolutions) == sum(map(len, widths))
    assert set(variables) == ({"params", "batch_stats"} if norm == "batch" else {"params"})


@pytest.mark.parametrize("sides", [(4, 6), (5, 6), (4, 7), (5, 7)])
def test_max_pool_is_the_usual_one_in_value_and_gradient(sides):
    features, cotangent = _normal(2, *sides, 3), _normal(2, sides[0] // 2, sides[1] // 2, 3, seed=1)
    found, pull_back = jax.vjp(max_pool, features)
    expected, pull_back_expected = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), features)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pull_back(cotangent)[0], pull_back_expected(cotangent)[0])


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_training_gives_every_parameter_a_finite_gradient(norm, random_variables):
    model, images = VGGTrunk(((4,), (8, 6)), norm), _normal(2, 12, 16, 3)
    variables = random_variables(model, images)

    def loss(params):
        run = {**variables, "params": params}
        features, updated = model.apply(run, images, train=True, mutable=["batch_stats"])
        return jnp.square(features - 1.0).mean(), updated

    (_, updated), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all() and np.any(gradient)
    assert ("batch_stats" in updated) == (norm == "batch")


def test_group_normalisation_sees_each_image_alone(random_variables):
    model, images = VGGTrunk(((8,), (6,)), "group"), _normal(3, 8, 8, 3)
    variables = random_variables(model, images)
    apply = jax.jit(lambda images: model.apply(variables, images, train=True))
    others = apply(np.concatenate([images[:1], 5.0 * images[1:]]))
    np.testing.assert_allclose(others[0], apply(images)[0], atol=1e-5)


def test_dropout_is_for_training_only(random_variables):
    model, images = THIN.clone(dropout=0.5), _normal(2, 32, 32, 3)
    variables = random_variables(model, images)
    run = jax.jit(model.apply, static_argnames="train")
    plain = run(variables, images)
    np.testing.assert_array_equal(plain, run(variables, images))
    drawn = [run(variables, images, train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3


def test_bfloat16_keeps_float32_outside(random_variables):
    images = _normal(2, 32, 32, 3)
    variables = random_variables(THIN, images)
    model = THIN.clone(dtype=jnp.bfloat16)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(model.init, jax.random.key(0), images), variables
    )
    logits, precise = jax.jit(model.apply)(variables, images), jax.jit(THIN.apply)(variables, images)
    chex.assert_type(logits, jnp.float32)
    assert 1e-6 < np.abs(logits - precise).max() / np.abs(precise).max() < 0.1


@pytest.mark.parametrize("shape", [(2, 15, 32, 3), (2, 32, 32, 1), (32, 32, 3)])
def test_images_that_do_not_fit_are_named(shape):
    with pytest.raises(ValueError, match="sides of at least 16") as raised:
        jax.eval_shape(VGGTrunk().init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    assert str(shape) in str(raised.value)


@pytest.mark.parametrize("trunk", [VGGTrunk(()), VGGTrunk(((4,), ())), VGGTrunk(((4,),), "layer")])
def test_networks_that_do_not_exist_are_named(trunk):
    with pytest.raises(ValueError, match=r"VGG (widths|norm)="):
        trunk.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def _torch_vgg(model: VGG16, grid: int):
    """torchvision's vgg16, transcribed: the same modules under the same names."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here, and is not installed")
    layers, channels = [], 3
    for widths in model.widths:
        for width in widths:
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
            channels = width
        layers.append(torch.nn.MaxPool2d(2, 2))
    hidden = model.hidden
    classifier = [torch.nn.Linear(channels * grid * grid, hidden), torch.nn.ReLU(), torch.nn.Dropout()]
    classifier += [torch.nn.Linear(hidden, hidden), torch.nn.ReLU(), torch.nn.Dropout()]
    classifier += [torch.nn.Linear(hidden, model.num_classes)]
    parts = {"features": torch.nn.Sequential(*layers), "classifier": torch.nn.Sequential(*classifier)}
    network = torch.nn.ModuleDict(parts).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4.0
            parameter.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
    return torch, network


def _parity(model: VGG16, size: tuple[int, int]) -> float:
    """Largest difference of logits between PyTorch and here, relative to the largest logit."""
    torch, network = _torch_vgg(model, size[0] // 32)
    images = _normal(2, *size, 3)
    with torch.inference_mode():
        maps = network["features"](torch.from_numpy(images).permute(0, 3, 1, 2))
        expected = network["classifier"](maps.flatten(1)).numpy()
    variables = from_torch(network.state_dict(), model=model, size=size)
    found = jax.jit(model.apply)(variables, images)
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("grid", [1, 3])
def test_torchvisions_weights_give_pytorchs_logits(grid):
    assert _parity(THIN, (32 * grid, 32 * grid)) < 1e-5


@pytest.mark.slow
def test_torchvisions_weights_give_pytorchs_logits_at_full_size():
    assert _parity(VGG16(), (224, 224)) < 1e-3


def _state_dict() -> dict[str, np.ndarray]:
    """Of THIN for images of 64x64, without PyTorch."""
    entries, channels, index = {}, 3, 0
    for widths in THIN.widths:
        for width in widths:
            entries[f"features.{index}.weight"] = _normal(width, channels, 3, 3, seed=index)
            entries[f"features.{index}.bias"] = _normal(width, seed=index)
            channels, index = width, index + 2
        index += 1
    for place, (outs, ins) in {0: (16, 48), 3: (16, 16), 6: (7, 16)}.items():
        entries[f"classifier.{place}.weight"] = _normal(outs, ins, seed=place)
        entries[f"classifier.{place}.bias"] = _normal(outs, seed=place)
    return entries


def test_from_torch_makes_what_init_makes():
    variables = from_torch(_state_dict(), model=THIN, size=(64, 64))
    images = jnp.zeros((1, 64, 64, 3))
    chex.assert_trees_all_equal_shapes_and_dtypes(
        variables, jax.eval_shape(THIN.init, jax.random.key(0), images)
    )


def test_fc6_takes_maps_in_this_order():
    """PyTorch flattens (channel, row, column)."""
    weight = _state_dict()["classifier.0.weight"]
    kernel = from_torch(_state_dict(), model=THIN, size=(64, 64))["params"]["fc6"]["kernel"]
    for channel, row, column in [(0, 0, 1), (5, 1, 0), (11, 1, 1)]:
        here, there = (row * 2 + column) * 12 + channel, (channel * 2 + row) * 2 + column
        np.testing.assert_array_equal(kernel[here], weight[:, there])


def test_wrong_entries_are_all_named():
    entries = _state_dict()
    del entries["features.2.bias"], entries["classifier.3.weight"]
    entries["features.0.running_mean"] = np.zeros(4, np.float32)
    entries["features.28.weight"] = np.zeros((12, 12, 1, 1), np.float32)
    with pytest.raises(ValueError, match="another network") as raised:
        from_torch(entries, model=THIN, size=(64, 64))
    message = str(raised.value)
    assert "missing features.2.bias, classifier.3.weight;" in message
    assert "nothing here takes features.0.running_mean;" in message
    assert "features.28.weight is (12, 12, 1, 1), not (12, 12, 3, 3)" in message
    assert "features.0.weight" not in message


def test_images_of_another_size_are_another_fc6():
    with pytest.raises(ValueError, match=r"classifier.0.weight is \(16, 48\), not \(16, 12\)"):
        from_torch(_state_dict(), model=THIN, size=(32, 32))


def test_a_trunk_with_normalisation_has_no_such_weights():
    params = jax.eval_shape(LAPTOP.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    with pytest.raises(ValueError, match='norm="none"'):
        params_from_torch({}, {"trunk": params})


def test_a_trunk_leaves_the_classifier():
    trunk = from_torch(_state_dict(), model=VGGTrunk(THIN.widths))["params"]
    whole = from_torch(_state_dict(), model=THIN, size=(64, 64))["params"]
    chex.assert_trees_all_equal(trunk, whole["trunk"])
