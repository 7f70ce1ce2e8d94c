"""Networks by name, and losses of several heatmaps: what is supervised, what of it is mined."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.pose.loss import Mining, Supervision, mined_loss
from hardmine_jax.tasks.pose.networks import (
    NETWORKS,
    Early,
    HRNetConfig,
    ModelName,
    make_model,
)
from hardmine_jax.tasks.pose.predict import make_predict

NAMES = tuple(NETWORKS)
NUM_KEYPOINTS, K = 6, 2
EARLY = Early((2.0, 1.5), 0.5, True)


@pytest.fixture(scope="module")
def batch() -> dict:
    rng = np.random.default_rng(0)
    return {
        "image": np.zeros((3, 32, 48, 3), np.uint8),
        "keypoints": rng.uniform(4, 28, (3, NUM_KEYPOINTS, 2)).astype(np.float32),
        "visibility": rng.integers(0, 3, (3, NUM_KEYPOINTS)).astype(np.int32),
        "where": np.array([True, True, False]),
        "index": np.arange(3, dtype=np.int32),
    }


@pytest.fixture(scope="module")
def heatmaps() -> tuple:
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=(3, 8, 12, NUM_KEYPOINTS)).astype(np.float32) for _ in range(3))


def _loss(heatmaps, batch, **more):
    mining = Mining(more.pop("mining", "ohkm"), lambda step: K)
    supervision = Supervision(sigma=1.0, early=EARLY, **more)
    return mined_loss(heatmaps, batch, jax.random.key(0), 0, mining, supervision)


def _oracle(heatmaps: np.ndarray, batch: dict, *, sigma: float, least: int, k: int | None) -> float:
    """One image and one keypoint after another; k None: all."""
    y, x = np.mgrid[:8, :12]
    total = 0.0
    for image in np.flatnonzero(batch["where"]):
        losses = []
        for joint in np.flatnonzero(batch["visibility"][image] >= least):
            centre = (batch["keypoints"][image, joint] + 0.5) / 4 - 0.5
            target = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))
            losses.append(((heatmaps[image, ..., joint] - target) ** 2).mean())
        total += sum(sorted(losses)[-k:]) / k if k else sum(losses) / NUM_KEYPOINTS
    return total / len(batch["where"])


# The rows of CPN's table 7, and global alone.
@pytest.mark.parametrize(
    "mining, supervised, mined, early_k, last_k",
    [
        ("none", ["refine"], ["refine"], 0, None),
        ("none", ["global", "refine"], ["refine"], None, None),
        ("ohkm", ["refine"], ["refine"], 0, K),
        ("ohkm", ["global", "refine"], ["global", "refine"], K, K),
        ("ohkm", ["global", "refine"], ["refine"], None, K),
        ("ohkm", ["global", "refine"], ["global"], K, None),
    ],
)
def test_any_subset_of_heads_is_supervised_and_mined(
    batch, heatmaps, mining, supervised, mined, early_k, last_k
):
    nested = (heatmaps[:2], heatmaps[2])
    loss, metrics = _loss(nested, batch, mining=mining, supervised=supervised, mined=mined)
    expected = _oracle(heatmaps[2], batch, sigma=1.0, least=1, k=last_k)
    if early_k != 0:
        # Where they are not mined only visible keypoints count.
        least = 2 if early_k is None else 1
        early = [
            _oracle(maps, batch, sigma=sigma, least=least, k=early_k)
            for maps, sigma in zip(heatmaps, EARLY.sigmas, strict=False)
        ]
        np.testing.assert_allclose(metrics["global_loss"], np.mean(early), rtol=1e-4)
        expected += EARLY.weight * np.mean(early)
    assert ("global_loss" in metrics) == (early_k != 0)
    assert ("unit_rate" in metrics) == (last_k == K)
    # Targets end some sigmas from their centre.
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_what_is_not_supervised_gets_no_gradient(batch, heatmaps):
    gradient = jax.grad(lambda maps: _loss(maps, batch, supervised=["refine"])[0])(heatmaps)
    assert not any(np.any(maps) for maps in gradient[:2]) and np.any(gradient[2])
    gradient = jax.grad(lambda maps: _loss(maps, batch)[0])(heatmaps)
    assert all(np.any(maps) for maps in gradient)


def test_one_set_of_heatmaps_is_the_last_of_one(batch, heatmaps):
    for mining in ("ohkm", "none", "random", "threshold"):
        alone, _ = _loss(heatmaps[2], batch, mining=mining)
        among, _ = _loss(heatmaps, batch, mining=mining, supervised=["refine"])
        assert alone == among


def test_the_last_heatmaps_are_the_prediction(heatmaps):
    class Model:
        def apply(self, variables, images, *, train):
            return heatmaps[:2], heatmaps[2]

    skeleton = Skeleton(tuple("abcdef"), (), (0.1,) * NUM_KEYPOINTS, ())
    predict = make_predict(Model(), skeleton, sigma=1.0, decode="argmax", flip_test=False)
    scores = predict({}, jnp.zeros((3, 32, 48, 3), jnp.uint8))["scores"]
    np.testing.assert_array_equal(scores, heatmaps[2].max((1, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_every_network_has_the_heatmaps_that_are_supervised(name):
    hrnet = HRNetConfig()
    model = make_model(name, 5, dtype="float32", axis_name=None, ablations=hrnet)
    multiple = NETWORKS[name].side_multiple
    side = max(96 // multiple, 1) * multiple
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    shapes = jax.tree.leaves(jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0])
    assert {shape.shape for shape in shapes} == {(2, side // 4, side // 4, 5)}
    early = NETWORKS[name].early(2.0)
    assert len(early.sigmas) == len(shapes) - 1 and all(sigma >= 1.99 for sigma in early.sigmas)


def test_a_coarser_branch_gives_smaller_heatmaps_that_mean_the_same():
    hrnet = HRNetConfig(heatmap_branch=2)
    model = make_model("laptop", 5, dtype="float32", axis_name=None, ablations=hrnet)
    images = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    variables = jax.tree.map(
        lambda x: jnp.zeros(x.shape), jax.eval_shape(model.init, jax.random.key(0), images * 1.0)
    )
    skeleton = Skeleton(tuple("abcde"), (), (0.1,) * 5, ())
    predict = make_predict(model, skeleton, sigma=1.0, decode="argmax", flip_test=False)
    # Of a flat heatmap the first pixel is the maximum: it covers 16 x 16 pixels of the image.
    np.testing.assert_allclose(predict(variables, images)["keypoints"], 7.5)


def test_weights_are_published_for_published_networks():
    for name in NAMES:
        published = not (name.startswith("laptop") or name.startswith("hourglass"))
        assert (NETWORKS[name].published is not None) == published


def test_the_table_has_a_row_for_every_name_that_a_flag_takes():
    assert NAMES == typing.get_args(ModelName)
