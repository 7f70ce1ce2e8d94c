"""HRNet: published sizes, heatmaps at a quarter of the image, and what training may change."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.models import HRNet

TINY = HRNet(width=4, num_keypoints=5, stem_features=4, stem_blocks=1, modules=(1, 1), blocks=1)
# With the published modules.
SMALL = TINY.clone(modules=(1, 4, 3))


def _images(batch=2, sides=(32, 48)) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, *sides, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(random_variables):
    return random_variables(TINY, _images())


@pytest.mark.parametrize("width, published", [(32, 28_536_113), (48, 63_595_745)])
def test_published_parameter_counts(width, published):
    images = jax.ShapeDtypeStruct((2, 256, 192, 3), jnp.float32)
    heatmaps, variables = jax.eval_shape(HRNet(width).init_with_output, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == published
    assert set(variables) == {"params", "batch_stats"}
    chex.assert_shape(heatmaps, (2, 64, 48, 17))


@pytest.mark.parametrize("modules", [(1,), (1, 1), (1, 1, 1), (2, 1)])
def test_fewer_stages_are_a_smaller_network_of_the_same_form(modules):
    stride = 4 * 2 ** len(modules)
    model = TINY.clone(modules=modules)
    images = jax.ShapeDtypeStruct((2, 2 * stride, stride, 3), jnp.float32)
    heatmaps, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    chex.assert_shape(heatmaps, (2, stride // 2, stride // 4, 5))
    chex.assert_type(heatmaps, jnp.float32)


def test_training(check_training, variables):
    check_training(TINY, variables, _images())


def test_evaluation(check_evaluation, variables):
    check_evaluation(TINY, variables, _images())


def test_synchronised_statistics(check_synchronised, variables):
    check_synchronised(TINY, variables, _images(8, (32, 32)))


def test_bfloat16_keeps_float32_parameters(variables):
    model = TINY.clone(dtype=jnp.bfloat16)
    fresh = jax.eval_shape(model.init, jax.random.key(0), _images())
    chex.assert_trees_all_equal_shapes_and_dtypes(fresh, variables)


@pytest.mark.parametrize("shape", [(2, 40, 32, 3), (2, 32, 40, 3), (2, 32, 32, 1), (32, 32, 3)])
def test_images_that_do_not_fit_are_named(shape):
    model = TINY.clone(modules=(1, 1, 1))
    with pytest.raises(ValueError, match="multiple of 32") as raised:
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    assert str(shape) in str(raised.value)


@pytest.mark.parametrize("modules", [(), (1, 1, 1, 1)])
def test_stages_that_do_not_exist_are_named(modules):
    with pytest.raises(ValueError, match=r"one to three entries"):
        TINY.clone(modules=modules).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


ALL = {"stage2_0"} | {f"stage3_{module}" for module in range(4)} | {f"stage4_{module}" for module in range(3)}


@pytest.mark.parametrize(
    "fusion, exchanges",
    [("all", ALL), ("across", {"stage2_0", "stage3_3", "stage4_2"}), ("final", {"stage4_2"})],
)
def test_fusions_are_those_of_the_ablation(fusion, exchanges):
    """8, 3 and 1 of them; all else is as it was."""
    published, params = (_params(SMALL.clone(fusion=kind)) for kind in ("all", fusion))
    assert {name for name in params if name.endswith("exchange")} == {
        f"{name}_exchange" for name in exchanges
    }
    assert {name: params[name] for name in params} == {name: published[name] for name in params}
    assert all(name.endswith("exchange") for name in set(published) - set(params))


def test_parallel_from_the_start_is_the_last_stage_throughout():
    """Every module has four branches, and the widths of the published last stage."""
    params, published = _params(SMALL.clone(parallel_from_start=True)), _params(SMALL)
    for name in ("stage2_0", "stage3_1", "stage4_0"):
        for branch in range(4):
            assert params[f"{name}_branch{branch}_0"] == published[f"stage4_0_branch{branch}_0"]
    assert params["stage2_0_exchange"] == published["stage4_0_exchange"]
    transitions = {name for name in params if name.startswith("transition")}
    assert transitions == {f"transition1_{branch}" for branch in range(4)}


@pytest.mark.parametrize("branch", range(4))
def test_heatmaps_of_a_branch(branch):
    images = jax.ShapeDtypeStruct((2, 256, 192, 3), jnp.float32)
    model = SMALL.clone(heatmap_branch=branch)
    heatmaps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    chex.assert_shape(heatmaps, (2, 64 // 2**branch, 48 // 2**branch, 5))
    into = {name.split("_")[1] for name in variables["params"]["stage4_2_exchange"]}
    assert into == {f"to{branch}"}


@pytest.mark.parametrize(
    "fields",
    [
        {"fusion": "across", "parallel_from_start": True, "heatmap_branch": 1},
        {"fusion": "final", "heatmap_branch": 2},
    ],
)
def test_ablations_train(fields, check_training, random_variables):
    model = TINY.clone(modules=(2, 1), **fields)
    check_training(model, random_variables(model, _images()), _images())


@pytest.mark.parametrize(
    "fields, named",
    [({"fusion": "none"}, "fusion='none'"), ({"heatmap_branch": 3}, "heatmap_branch=3.*0 to 2")],
)
def test_ablations_that_do_not_exist_are_named(fields, named):
    with pytest.raises(ValueError, match=named):
        jax.eval_shape(TINY.clone(**fields).init, jax.random.key(0), _images())


def _params(model) -> dict:
    """Shapes of the parameters, by module."""
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return jax.tree.map(lambda leaf: leaf.shape, params)
