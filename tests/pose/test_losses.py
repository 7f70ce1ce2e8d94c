"""Heatmap losses against numpy, against PyTorch, and beside HRNet's factor."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.pose import heatmap_mse, losses, ohkm

BATCH, HEIGHT, WIDTH, KEYPOINTS = 5, 12, 9, 17


@pytest.fixture
def maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, BATCH, HEIGHT, WIDTH, KEYPOINTS)).astype(np.float32)
    # One image with fewer than k labelled keypoints, one with none.
    labelled = rng.random((BATCH, KEYPOINTS)) < 0.8
    labelled[1, 3:] = False
    labelled[2] = False
    return predicted, target, labelled


def _numpy_ohkm(predicted, target, k, where) -> float:
    errors = ((predicted.astype(np.float64) - target) ** 2).mean(axis=(1, 2)) * where
    return float(np.mean([np.sort(row)[::-1][:k].sum() / k for row in errors]))


@pytest.mark.parametrize("k", [1, 8, KEYPOINTS])
def test_ohkm_equals_numpy(maps, k):
    predicted, target, where = maps
    assert ohkm(predicted, target, k=k, where=where) == pytest.approx(
        _numpy_ohkm(*maps[:2], k, where), rel=1e-5
    )
    everywhere = np.ones_like(where)
    expected = _numpy_ohkm(predicted, target, k, everywhere)
    assert ohkm(predicted, target, k=k) == pytest.approx(expected, rel=1e-5)


def _torch_ohkm(predicted, target, visibility, k, factor=1.0):
    """CPN's and mmpose's loss as published: NCHW maps, visibility [B, K, 1] multiplied into both."""
    import torch

    per_joint = (factor * (predicted * visibility[..., None] - target * visibility[..., None]) ** 2).mean(
        dim=(2, 3)
    )
    loss = 0.0
    for joints in per_joint:
        values, _ = torch.topk(joints, k=k, dim=0, sorted=False)
        loss = loss + values.sum() / k
    return loss / len(per_joint)


@pytest.mark.parametrize("k", [1, 8, KEYPOINTS])
def test_ohkm_equals_pytorch_in_value_and_gradient(maps, k):
    torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch; numpy parity has run")
    predicted, target, where = maps
    theirs = torch.tensor(np.moveaxis(predicted, -1, 1).copy(), requires_grad=True)
    visibility = torch.tensor(where[..., None].astype(np.float32))
    expected = _torch_ohkm(theirs, torch.tensor(np.moveaxis(target, -1, 1).copy()), visibility, k)
    expected.backward()
    value, gradient = jax.jit(jax.value_and_grad(lambda p: ohkm(p, target, k=k, where=where)))(predicted)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-5)
    ours = np.moveaxis(np.asarray(gradient), -1, 1)
    np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-5, atol=1e-8)


def test_ohkm_is_twice_hrnets():
    torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch; numpy parity has run")
    rng = np.random.default_rng(1)
    predicted, target = rng.normal(size=(2, 3, 4, 4, 10)).astype(np.float32)
    nchw = [torch.tensor(np.moveaxis(maps, -1, 1).copy()) for maps in (predicted, target)]
    hrnet = _torch_ohkm(*nchw, torch.ones(3, 10, 1), 8, factor=0.5)
    assert ohkm(predicted, target, k=8) == pytest.approx(2 * hrnet.item(), rel=1e-5)


def test_with_every_keypoint_kept_ohkm_is_the_mean_of_heatmap_mse(maps):
    predicted, target, _ = maps
    mean = heatmap_mse(predicted, target).mean()
    assert ohkm(predicted, target, k=KEYPOINTS) == pytest.approx(float(mean), rel=1e-6)


def test_gradient_reaches_the_k_worst_keypoints_only(maps):
    predicted, target, where = maps
    gradient = jax.grad(lambda p: ohkm(p, target, k=8, where=where))(predicted)
    reached = np.asarray(gradient != 0).any(axis=(1, 2))
    np.testing.assert_array_equal(reached.sum(-1), np.minimum(8, where.sum(-1)))
    assert not (reached & ~where).any()


def test_heatmap_mse_is_a_number_a_keypoint_and_zero_where_unlabelled(maps):
    predicted, target, where = maps
    losses = heatmap_mse(predicted, target, where=where)
    chex.assert_shape(losses, (BATCH, KEYPOINTS))
    expected = ((predicted - target) ** 2).mean(axis=(1, 2)) * where
    chex.assert_trees_all_close(losses, expected, rtol=1e-5)
    assert not np.asarray(losses)[~where].any()


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_garbage_in_unlabelled_maps_reaches_nothing(maps, garbage):
    predicted, target, where = maps
    dirty_target = np.where(where[:, None, None, :], target, np.float32(garbage))
    dirty = np.where(where[:, None, None, :], predicted, np.float32(garbage))

    def both(predicted, target):
        return ohkm(predicted, target, where=where) + heatmap_mse(predicted, target, where=where).sum()

    clean = jax.value_and_grad(both)(predicted, target)
    chex.assert_trees_all_equal(jax.value_and_grad(both)(dirty, dirty_target), clean)


def test_garbage_in_a_labelled_map_reaches_the_loss(maps):
    predicted, target, where = maps
    predicted[0, 3, 3, np.flatnonzero(where[0])[0]] = np.nan
    assert np.isnan(ohkm(predicted, target, where=where))


def test_nothing_labelled_gives_zero_and_a_finite_gradient(maps):
    predicted, target, where = maps
    value, gradient = jax.value_and_grad(lambda p: ohkm(p, target, where=np.zeros_like(where)))(predicted)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros_like(predicted))


def test_half_precision_predictions_are_compared_in_single(maps):
    predicted, target, where = maps
    half = jnp.asarray(predicted, jnp.bfloat16)
    loss = ohkm(half, target, where=where)
    assert loss.dtype == jnp.float32
    assert loss == pytest.approx(float(ohkm(half.astype(jnp.float32), target, where=where)), rel=1e-6)


def test_both_maps_may_be_of_half_precision_where_promotion_is_strict(maps):
    half = [jnp.asarray(array, jnp.bfloat16) for array in maps[:2]]
    with jax.numpy_dtype_promotion("strict"):
        found = heatmap_mse(*half)
    assert found.dtype == jnp.float32
    chex.assert_trees_all_close(found, heatmap_mse(*(array.astype(jnp.float32) for array in half)), rtol=1e-6)


def test_eight_keypoints_are_kept_unless_asked(maps):
    predicted, target, where = maps
    assert ohkm(predicted, target, where=where) == ohkm(predicted, target, k=8, where=where)


def test_refusals_name_the_numbers(maps):
    predicted, target, where = maps
    with pytest.raises(ValueError, match="k=20 .*K=17"):
        ohkm(predicted, target, k=20)
    with pytest.raises(ValueError, match="k=0 .*K=17"):
        ohkm(predicted, target, k=0)
    with pytest.raises(ValueError, match=r"predicted \(5, 12, 9, 17\) and target \(5, 12, 9, 16\)"):
        heatmap_mse(predicted, target[..., :16])
    with pytest.raises(
        ValueError, match=r"where float32\(5, 17\) must be bool\(5, 17\), .* `visibility > 0`"
    ):
        heatmap_mse(predicted, target, where=where.astype(np.float32))
    with pytest.raises(ValueError, match=r"where bool\(5, 1\) must be bool\(5, 17\)"):
        heatmap_mse(predicted, target, where=where[:, :1])


@pytest.mark.parametrize("size", [(12, 9), (5, 3), (8, 4), (1, 1)])
def test_the_ways_for_cpu_and_for_accelerators_agree(size):
    """One of the two is not what runs here, so both are called."""
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, 3, *size, 4)).astype(np.float32)
    where = rng.random((3, 4)) < 0.7
    predicted[~where.any(axis=-1)] = np.nan
    for labelled in (None, where):
        ways = [
            jax.value_and_grad(lambda p, way=way, w=labelled: jnp.sin(way(p, target, w)).sum())(predicted)
            for way in (losses._squared_error, losses._squared_error_of_neighbours)
        ]
        chex.assert_trees_all_close(*ways, rtol=1e-5, atol=1e-7)


def test_ohkm_takes_a_k_that_is_traced():
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, 3, 4, 4, 9)).astype(np.float32)
    where = rng.random((3, 9)) < 0.6
    for k in (1, 3, 9):
        expected = ohkm(predicted, target, k=k, where=where)
        for traced in (k, np.full(3, k)):
            found = jax.jit(lambda k: ohkm(predicted, target, k=k, where=where))(traced)
            np.testing.assert_allclose(found, expected, rtol=1e-5)
    one, other = (ohkm(predicted[row], target[row], k=k) for row, k in ((np.s_[:1], 2), (np.s_[1:2], 5)))
    both = ohkm(predicted[:2], target[:2], k=np.array([2, 5]))
    np.testing.assert_allclose(both, (one + other) / 2, rtol=1e-5)


@pytest.mark.parametrize("traced", [False, True])
def test_ohkm_weighs_keypoints_before_it_chooses_and_says_which_it_kept(maps, traced):
    predicted, target, where = maps
    of_each = np.random.default_rng(2).gamma(1.0, size=KEYPOINTS).astype(np.float32)
    k = jnp.int32(6) if traced else 6
    # As HRNet weighs: both maps by the root.
    expected = _numpy_ohkm(predicted * np.sqrt(of_each), target * np.sqrt(of_each), 6, where)
    for weights in (of_each, np.tile(of_each, (BATCH, 1))):
        loss, keep = ohkm(predicted, target, k=k, where=where, weights=weights, return_keep=True)
        assert loss == pytest.approx(expected, rel=1e-5)
        errors = ((predicted - target) ** 2).mean((1, 2)) * of_each
        hardest = np.where(where, errors, -1).argsort(-1)[:, ::-1][:, :6]
        chosen = np.zeros_like(where)
        np.put_along_axis(chosen, hardest, True, axis=1)
        np.testing.assert_array_equal(keep, chosen & where)
    assert ohkm(predicted, target, k=k, where=where, weights=weights) == loss
    for wrong in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="weights must be finite and 0 or more"):
            ohkm(predicted, target, weights=[wrong] * KEYPOINTS)
    with pytest.raises(ValueError, match=r"weights of shape \(5, 1\) must be"):
        ohkm(predicted, target, weights=np.ones((BATCH, 1)))
