"""The task's parts against plain numpy: mined losses, scores, the average pose, the flip test."""

import dataclasses
import json

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import hardmine_jax.pose
from hardmine_jax.data import coco_json
from hardmine_jax.data.pose import coco_truth, person_boxes
from hardmine_jax.data.pose.augment import evaluate_crop
from hardmine_jax.data.pose.batches import evaluation_crops
from hardmine_jax.data.pose.coco import COCO_SKELETON
from hardmine_jax.data.pose.person_boxes import PersonBoxes
from hardmine_jax.data.problems import Skipped
from hardmine_jax.data.stream import ordered_batches
from hardmine_jax.pose import Skeleton
from hardmine_jax.pose.affine import apply_affine, invert_affine
from hardmine_jax.tasks.pose.loss import Mining, Supervision, mined_loss
from hardmine_jax.tasks.pose.networks import Early, Inputs
from hardmine_jax.tasks.pose.people import People, mean_pose, place_pose
from hardmine_jax.tasks.pose.predict import make_predict, predict_people
from hardmine_jax.tasks.pose.score import (
    coco_annotations,
    correct_keypoints,
    mean_oks,
    note_crowded,
    pck,
    score,
    score_boxes,
)

SIGMA, K, JOINTS, SIDE = 1.5, 3, 6, 8
SKELETON = Skeleton(
    names=("nose", "tail", "left_ear", "right_ear", "left_paw", "right_paw"),
    flip_pairs=((2, 3), (4, 5)),
    sigmas=(0.05,) * 6,
    edges=((0, 1),),
)


def _batch(num_images=8, seed=0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "image": np.zeros((num_images, 4 * SIDE, 4 * SIDE, 3), np.uint8),
        "keypoints": rng.uniform(0, 4 * SIDE, (num_images, JOINTS, 2)).astype(np.float32),
        "visibility": rng.integers(0, 3, (num_images, JOINTS)).astype(np.int32),
        "where": np.ones(num_images, bool),
        "index": np.arange(num_images, dtype=np.int32) + 100,
    }


def _heatmaps(num_images=8, seed=1) -> np.ndarray:
    shape = (num_images, SIDE, SIDE, JOINTS)
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def _mined_loss(heatmaps, batch, *, mining, key=None, k=K, axis_name=None, **more):
    key = jax.random.key(0) if key is None else key
    mining = Mining(mining, lambda step: k, **more)
    return mined_loss(jnp.asarray(heatmaps), batch, key, 0, mining, Supervision(SIGMA), axis_name=axis_name)


def _errors(heatmaps, batch) -> np.ndarray:
    """[B, K] mean squared errors in float64, a pixel at a time; NaN where nothing is labelled."""
    errors = np.full(batch["visibility"].shape, np.nan)
    for b, j in np.ndindex(errors.shape):
        if batch["visibility"][b, j] > 0 and batch["where"][b]:
            x, y = (np.float64(batch["keypoints"][b, j]) + 0.5) / 4 - 0.5
            rows, columns = np.mgrid[:SIDE, :SIDE]
            target = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * SIGMA**2))
            errors[b, j] = ((np.float64(heatmaps[b, :, :, j]) - target) ** 2).mean()
    return errors


def _oracle(heatmaps, batch, mining, min_loss=0.25) -> tuple[float, np.ndarray]:
    """(loss, which [B, K] are kept)."""
    errors = _errors(heatmaps, batch)
    keep = np.zeros(errors.shape, bool)
    empty = min_loss * np.pi * SIGMA**2 / SIDE**2
    for b, row in enumerate(errors):
        hardest = [j for j in np.argsort(-np.nan_to_num(row, nan=-1)) if not np.isnan(row[j])]
        if mining == "none":
            keep[b, hardest] = True
        else:
            keep[b, hardest[:K]] = True
        if mining == "threshold":
            keep[b] |= np.nan_to_num(row) > empty
    denominator = K if mining == "ohkm" else JOINTS
    return errors[keep].sum() / (denominator * len(errors)), keep


@pytest.mark.parametrize("min_loss", [0.25, 0.8])
@pytest.mark.parametrize("mining", ["none", "ohkm", "threshold"])
def test_mined_loss_is_the_oracles(mining, min_loss):
    heatmaps, batch = _heatmaps(), _batch()
    batch["visibility"][0] = 0
    loss, metrics = _mined_loss(heatmaps, batch, mining=mining, min_loss=min_loss)
    expected, keep = _oracle(heatmaps, batch, mining, min_loss)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["mse"]) == pytest.approx(_oracle(heatmaps, batch, "none")[0], rel=1e-5)
    if mining == "none":
        assert set(metrics) == {"mse"}
        return
    errors = np.nan_to_num(_errors(heatmaps, batch))
    labelled, kept = (batch["visibility"] > 0).sum(0), keep.sum(0)
    share = kept / kept.sum()
    described = {
        "fraction_kept": kept.sum() / labelled.sum(),
        "loss_captured": errors[keep].sum() / errors.sum(),
        "entropy": -(share * np.log(np.where(share > 0, share, 1))).sum(),
        "unit_rate": kept / labelled,
    }
    assert set(metrics) == {"mse", *described}
    for name, value in described.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)


@pytest.mark.parametrize("mining", ["ohkm", "threshold"])
def test_easy_weight_adds_the_loss_over_all_labelled_keypoints(mining):
    heatmaps, batch = _heatmaps(), _batch()
    batch["visibility"][0] = 0
    expected = _oracle(heatmaps, batch, mining, 0.8)[0] + 0.3 * _oracle(heatmaps, batch, "none")[0]
    loss, metrics = _mined_loss(heatmaps, batch, mining=mining, min_loss=0.8, easy_weight=0.3)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    _, without = _mined_loss(heatmaps, batch, mining=mining, min_loss=0.8)
    for name, value in without.items():
        np.testing.assert_array_equal(metrics[name], value)


def test_easy_weight_gives_easy_keypoints_a_gradient():
    heatmaps, batch = _heatmaps(), _batch()

    def gradient(**more):
        return np.asarray(jax.grad(lambda h: _mined_loss(h, batch, **more)[0])(jnp.asarray(heatmaps)))

    none, ohkm = gradient(mining="none"), gradient(mining="ohkm")
    both = gradient(mining="ohkm", easy_weight=0.3)
    np.testing.assert_allclose(both, ohkm + 0.3 * none, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(both.any((1, 2)), batch["visibility"] > 0)
    assert ohkm.any((1, 2)).sum() < both.any((1, 2)).sum()


def test_k_follows_from_the_step():
    heatmaps, batch, supervision = jnp.asarray(_heatmaps()), _batch(), Supervision(SIGMA)
    mining = Mining("ohkm", lambda step: jnp.where(step < 10, JOINTS, K))
    run = jax.jit(lambda step: mined_loss(heatmaps, batch, jax.random.key(0), step, mining, supervision)[0])
    for step, k in ((0, JOINTS), (9, JOINTS), (10, K)):
        expected = _mined_loss(heatmaps, batch, mining="ohkm", k=k)[0]
        assert float(run(jnp.int32(step))) == pytest.approx(float(expected), rel=1e-6)


def test_threshold_mining_lies_between_the_hardest_and_all():
    """Both ends of `min_loss`, so that the middle values above test something."""
    heatmaps, batch = _heatmaps(), _batch()
    kept = {
        share: float(_mined_loss(heatmaps, batch, mining="threshold", min_loss=share)[1]["fraction_kept"])
        for share in (0.0, 0.8, 1e3)
    }
    labelled = batch["visibility"] > 0
    assert kept[0.0] == 1.0
    assert kept[1e3] == pytest.approx(np.minimum(labelled.sum(1), K).sum() / labelled.sum())
    assert kept[1e3] < kept[0.8] < kept[0.0]


def test_ohkm_is_the_librarys_in_value_and_gradient():
    heatmaps, batch = _heatmaps(), _batch()
    labelled = jnp.asarray(batch["visibility"] > 0)
    keypoints = hardmine_jax.pose.image_to_heatmap(jnp.asarray(batch["keypoints"]), stride=4)
    target = hardmine_jax.pose.encode_heatmaps(keypoints, size=(SIDE, SIDE), sigma=SIGMA, where=labelled)
    expected = jax.value_and_grad(lambda h: hardmine_jax.pose.ohkm(h, target, k=K, where=labelled))
    found = jax.value_and_grad(lambda h: _mined_loss(h, batch, mining="ohkm")[0])
    for one, other in zip(found(jnp.asarray(heatmaps)), expected(jnp.asarray(heatmaps)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


def test_random_mining_keeps_k_of_the_labelled_ones_and_each_as_often():
    heatmaps, batch = _heatmaps(512), _batch(512)
    batch["visibility"][:] = 1
    loss, metrics = _mined_loss(heatmaps, batch, mining="random")
    shares = np.asarray(metrics["unit_rate"])
    assert shares.sum() == pytest.approx(K)
    # Five standard deviations of a share of 1/2 in 512 draws.
    assert np.abs(shares - K / JOINTS).max() < 5 * 0.5 / np.sqrt(512)
    all_of_them = float(_mined_loss(heatmaps, batch, mining="none")[0])
    assert float(loss) == pytest.approx(all_of_them, rel=0.05)
    assert float(loss) != pytest.approx(all_of_them, rel=1e-6)


def test_random_mining_does_not_depend_on_how_the_batch_is_split():
    heatmaps, batch, key = _heatmaps(), _batch(), jax.random.key(3)
    whole = _mined_loss(heatmaps, batch, mining="random", key=key)[0]
    parts = []
    for rows in (slice(1, None, 2), slice(0, None, 2)):
        part = {name: value[rows] for name, value in batch.items()}
        parts.append(_mined_loss(heatmaps[rows], part, mining="random", key=key))
    assert np.mean([loss for loss, _ in parts]) == pytest.approx(float(whole), rel=1e-6)
    other = _mined_loss(heatmaps, batch, mining="random", key=jax.random.key(4))[0]
    assert float(other) != pytest.approx(float(whole), rel=1e-6)


@pytest.mark.parametrize("mining", ["ohkm", "threshold"])
def test_over_the_batch_the_hardest_may_all_lie_in_one_image(mining):
    heatmaps, batch = _heatmaps(), _batch()
    heatmaps[:2] *= 3
    errors = _errors(heatmaps, batch)
    hardest = np.argsort(-np.nan_to_num(errors, nan=-1).ravel())[: K * len(errors)]
    keep = np.zeros(errors.shape, bool)
    keep.ravel()[hardest] = True
    keep &= ~np.isnan(errors)
    if mining == "threshold":
        keep |= np.nan_to_num(errors) > 0.8 * np.pi * SIGMA**2 / SIDE**2
    denominator = (K if mining == "ohkm" else JOINTS) * len(errors)
    more = {"mining": mining, "min_loss": 0.8, "over": "batch"}
    for k in (K, jnp.int32(K)):
        loss, metrics = _mined_loss(heatmaps, batch, k=k, **more)
        assert float(loss) == pytest.approx(errors[keep].sum() / denominator, rel=1e-5)
        np.testing.assert_allclose(metrics["unit_rate"], keep.sum(0) / (~np.isnan(errors)).sum(0), rtol=1e-6)
    of_images = float(_mined_loss(heatmaps, batch, mining=mining, min_loss=0.8)[0])
    assert float(loss) > of_images if mining == "ohkm" else float(loss) != of_images


@pytest.mark.parametrize("more", [{"mining": "ohkm", "over": "batch"}, {"mining": "sleap"}], ids=str)
@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
def test_the_batch_is_that_of_all_devices(more, parallel):
    heatmaps, batch = _heatmaps(), _batch()
    heatmaps[:2] *= 3
    whole, told = _mined_loss(heatmaps, batch, **more)

    def device(heatmaps, batch):
        loss, metrics = _mined_loss(heatmaps, batch, **more, axis_name="d")
        return jax.lax.pmean(loss, "d"), metrics["unit_rate"]

    if parallel == "pmap":
        split = jax.tree.map(lambda x: jnp.reshape(x, (4, 2, *x.shape[1:])), (jnp.asarray(heatmaps), batch))
        loss, rates = (found[0] for found in jax.pmap(device, axis_name="d")(*split))
    else:
        mesh, cut = Mesh(np.array(jax.devices()[:4]), ("d",)), PartitionSpec("d")
        mapped = jax.shard_map(device, mesh=mesh, in_specs=cut, out_specs=PartitionSpec())
        loss, rates = jax.jit(mapped)(heatmaps, batch)
    assert float(loss) == pytest.approx(float(whole), rel=1e-6)
    np.testing.assert_allclose(rates, told["unit_rate"], rtol=1e-6)


def test_sleap_adds_five_times_the_joints_that_are_hard_over_the_batch():
    heatmaps, batch = _heatmaps(), _batch()
    heatmaps[..., :2] *= 4
    heatmaps[..., 2] = 0
    errors = _errors(heatmaps, batch)
    of_joint = np.nanmean(errors, axis=0)
    hard = of_joint >= 2 * of_joint.min()
    assert 2 <= hard.sum() < JOINTS
    loss, metrics = _mined_loss(heatmaps, batch, mining="sleap", hard_weight=5.0, easy_weight=1.0)
    mean = np.nansum(errors) / errors.size
    expected = mean + 5 * np.nansum(errors[:, hard]) / (hard.sum() * len(errors))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["mse"]) == pytest.approx(mean, rel=1e-5)
    np.testing.assert_array_equal(metrics["unit_rate"], hard)


@pytest.mark.parametrize("mining", ["none", "ohkm", "sleap"])
def test_weights_count_in_loss_and_choice_and_not_in_the_metric(mining):
    heatmaps, batch = _heatmaps(), _batch()
    weights = (0.0, 1.0, 4.0, 1.0, 0.25, 1.0)
    loss, metrics = _mined_loss(heatmaps, batch, mining=mining, weights=weights, easy_weight=0.5)
    errors = _errors(heatmaps, batch)
    weighted = np.nan_to_num(errors) * weights
    everything = weighted.sum() / errors.size
    if mining == "none":
        expected = everything
    elif mining == "ohkm":
        expected = np.sort(weighted)[:, ::-1][:, :K].sum() / (K * len(errors)) + 0.5 * everything
    else:
        of_joint = weighted.sum(0) / (~np.isnan(errors)).sum(0)
        # One that weighs nothing is not the easiest.
        hard = (of_joint >= 2 * of_joint[1:].min()) & (np.arange(JOINTS) > 0)
        expected = weighted[:, hard].sum() / (hard.sum() * len(errors)) + 0.5 * everything
        assert 2 <= hard.sum() < JOINTS - 1
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["mse"]) == pytest.approx(np.nansum(errors) / errors.size, rel=1e-5)


def test_weights_count_in_heads_that_are_not_mined_too():
    heatmaps, batch = jnp.asarray(_heatmaps()), _batch()
    batch["visibility"][:] = 2
    early = Early(sigmas=(SIGMA,), weight=1.0)
    mining = Mining("ohkm", lambda step: K, weights=(0.0, 1.0, 1.0, 1.0, 1.0, 1.0))

    def loss(first):
        supervision = Supervision(SIGMA, early)
        return mined_loss((first, heatmaps), batch, jax.random.key(0), 0, mining, supervision)[0]

    gradient = np.asarray(jax.grad(loss)(heatmaps))
    assert not gradient[..., 0].any() and gradient[..., 1:].any((0, 1, 2)).all()


@pytest.mark.parametrize("mining", ["ohkm", "random", "threshold"])
def test_what_was_mined_is_reported_of_all_devices_together(mining):
    """Labels are uneven, so that the mean of what each device would tell is another number."""
    heatmaps, batch = _heatmaps(), _batch()
    batch["visibility"][:6, 1:] = 0
    whole = _mined_loss(heatmaps, batch, mining=mining)[1]
    split = jax.tree.map(lambda x: jnp.reshape(x, (4, 2, *x.shape[1:])), (jnp.asarray(heatmaps), batch))
    devices = jax.pmap(lambda h, b: _mined_loss(h, b, mining=mining, axis_name="d")[1], axis_name="d")(*split)
    apart = jax.vmap(lambda h, b: _mined_loss(h, b, mining=mining)[1])(*split)
    for name in ("fraction_kept", "loss_captured", "entropy", "unit_rate"):
        for device in range(4):
            np.testing.assert_allclose(devices[name][device], whole[name], rtol=1e-6)
    assert not np.allclose(apart["entropy"].mean(), whole["entropy"], rtol=0.05)


@pytest.mark.parametrize("mining", ["ohkm", "random", "threshold"])
def test_k_may_be_traced_and_is_the_denominator(mining):
    heatmaps, batch = _heatmaps(), _batch()
    run = jax.jit(lambda h, k: _mined_loss(h, batch, mining=mining, min_loss=0.8, k=k))
    for k in (JOINTS, K, 1):
        loss, metrics = _mined_loss(heatmaps, batch, mining=mining, min_loss=0.8, k=k)
        found, told = run(heatmaps, jnp.int32(k))
        assert float(found) == pytest.approx(float(loss), rel=1e-6)
        np.testing.assert_allclose(told["unit_rate"], metrics["unit_rate"], rtol=1e-6)
    assert run._cache_size() == 1


@pytest.mark.parametrize("mining", ["none", "ohkm", "random", "threshold", "sleap"])
def test_images_of_padding_take_no_part(mining):
    heatmaps, batch = _heatmaps(), _batch()
    batch["where"][5:] = False
    before = _mined_loss(heatmaps, batch, mining=mining)
    heatmaps[5:], batch["keypoints"][5:], batch["visibility"][5:] = np.nan, np.nan, 2
    differentiate = jax.value_and_grad(lambda h: _mined_loss(h, batch, mining=mining)[0])
    loss, gradient = differentiate(jnp.asarray(heatmaps))
    assert float(loss) == float(before[0]) > 0
    assert np.isfinite(gradient).all() and not np.any(gradient[5:])
    after = _mined_loss(heatmaps, batch, mining=mining)[1]
    for name, value in before[1].items():
        np.testing.assert_array_equal(after[name], value)


@pytest.mark.parametrize("mining", ["none", "ohkm", "random", "threshold", "sleap"])
def test_nobody_labelled_is_no_loss_and_no_gradient(mining):
    batch = _batch()
    batch["visibility"][:] = 0
    batch["keypoints"][:] = np.nan
    value, gradient = jax.value_and_grad(lambda h: _mined_loss(h, batch, mining=mining)[0])(_heatmaps())
    assert float(value) == 0.0 and not np.any(gradient)


def _people(seed=0, num=5) -> People:
    rng = np.random.default_rng(seed)
    visibility = rng.integers(0, 3, (num, JOINTS))
    visibility[:, :2] = 2
    keypoints = rng.uniform(20, 120, (num, JOINTS, 2)).astype(np.float32)
    # Coordinates of what is not labelled mean nothing.
    keypoints[visibility == 0] = np.nan
    return People(
        rows=np.arange(num),
        keypoints=keypoints,
        visibility=visibility,
        box=np.tile([0.0, 0.0, 140.0, 140.0], (num, 1)),
        area=rng.uniform(500, 5000, num),
        image_id=np.arange(num) // 2,
        annotation_id=np.arange(num),
        names=("a",) * num,
    )


def test_boxes_are_tight_around_what_is_labelled():
    people = _people()
    for box, points, labelled in zip(people.boxes, people.keypoints, people.labelled, strict=True):
        np.testing.assert_array_equal(box, [*points[labelled].min(0), *points[labelled].max(0)])


def test_correct_keypoints_are_the_oracles():
    people = _people(num=20)
    rng = np.random.default_rng(9)
    predicted = np.nan_to_num(people.keypoints) + rng.normal(0, 8, people.keypoints.shape)
    found = correct_keypoints(predicted, people, fraction=0.1)
    for n, j in np.ndindex(found.shape):
        points = people.keypoints[n][people.labelled[n]]
        longer = (points.max(0) - points.min(0)).max()
        near = np.linalg.norm(predicted[n, j] - people.keypoints[n, j]) <= 0.1 * longer
        assert found[n, j] == (people.labelled[n, j] and near)
    assert 0.2 < found[people.labelled].mean() < 0.9


def test_somebody_with_one_labelled_joint_is_measured_by_the_given_box():
    visibility = np.zeros((1, JOINTS), int)
    visibility[0, 2] = 2
    keypoints = np.full((1, JOINTS, 2), 70.0)
    people = dataclasses.replace(_people(num=1), keypoints=keypoints, visibility=visibility)
    np.testing.assert_array_equal(people.boxes, people.box)
    assert pck(keypoints + [13.0, 0.0], people) == 1.0
    assert pck(keypoints + [15.0, 0.0], people) == 0.0
    corner = place_pose(np.zeros((JOINTS, 2)), people)
    assert pck(corner, people) == 0.0


def test_a_pose_that_everybody_takes_is_found_and_placed_without_error():
    pose = np.array([[0.0, 0.2], [1.0, 0.3], [0.5, 0.0], [0.4, 1.0], [0.1, 0.6], [0.7, 0.8]])
    corners, sides = np.random.default_rng(0).uniform(10, 90, (2, 4, 1, 2))
    visibility = np.full((4, JOINTS), 2)
    # The four joints that span the box stay labelled; of the others one or none is.
    visibility[0, 4:], visibility[1, 5] = 0, 0
    keypoints = np.where(visibility[..., None] > 0, corners + pose * sides, np.nan)
    people = dataclasses.replace(_people(num=4), keypoints=keypoints, visibility=visibility)
    found = mean_pose(people)
    np.testing.assert_allclose(found, pose, atol=1e-9)
    placed = place_pose(found, people)
    np.testing.assert_allclose(placed, corners + pose * sides, atol=1e-6)


def test_the_average_pose_of_a_joint_that_nobody_has_is_finite():
    people = _people()
    people.visibility[:, 5] = 0
    assert np.isfinite(mean_pose(people)).all()


def test_scores_have_the_promised_keys_and_meanings():
    people = _people(num=12)
    people.visibility[:, 5] = 0
    truth = np.nan_to_num(people.keypoints)
    scores = np.ones(people.visibility.shape)
    perfect = score(truth, scores, people, SKELETON)
    assert set(perfect) == {
        "pck", "pck@0.2", "pck_visible", "pck_occluded", "ap", "ap50", "ap75", "ar", "per_joint",
    }  # fmt: skip
    assert all(perfect[name] == pytest.approx(1.0) for name in set(perfect) - {"per_joint"})
    assert tuple(perfect["per_joint"]) == SKELETON.names
    nobody = {"pck": None, "pck_visible": None, "pck_occluded": None, "count": 0}
    assert perfect["per_joint"]["right_paw"] == nobody
    assert perfect["per_joint"]["nose"] == {"pck": 1.0, "pck_visible": 1.0, "pck_occluded": None, "count": 12}

    # Occluded joints alone are missed, by 15 % of the box.
    longer = (people.boxes[:, 2:] - people.boxes[:, :2]).max(1)
    missed = truth.copy()
    missed[..., 0] += np.where(people.visibility == 1, 0.15 * longer[:, None], 0.0)
    result = score(missed, scores, people, SKELETON)
    assert (result["pck_visible"], result["pck_occluded"], result["pck@0.2"]) == (1.0, 0.0, 1.0)
    assert result["pck"] == pytest.approx((people.visibility == 2).sum() / people.labelled.sum())
    assert result["ap"] < 1.0


def test_the_least_similar_person_ranks_first():
    people = _people(num=6)
    predicted = np.nan_to_num(people.keypoints)
    predicted[3] += 50.0
    similarity = mean_oks(predicted, people, SKELETON)
    assert np.argmin(similarity) == 3
    np.testing.assert_allclose(np.delete(similarity, 3), 1.0, atol=1e-6)


def test_predictions_come_back_in_pixels_of_the_original_and_without_padding():
    rng = np.random.default_rng(0)
    inverse = rng.normal(size=(4, 2, 3)).astype(np.float32) * [30.0, 30.0, 200.0]
    crop = rng.uniform(0, 64, (4, JOINTS, 2)).astype(np.float32)
    where = np.array([True, True, True, False])
    batches = [
        {"inverse": inverse, "index": np.array([7, 2, 5, -1]), "where": where},
        {"inverse": inverse[::-1], "index": np.array([-1, 1, 0, 9]), "where": where[::-1]},
    ]
    outputs = iter([crop, crop[::-1]])
    scores = np.arange(4.0)[:, None] * np.ones(JOINTS)
    rows, keypoints, found = predict_people(
        lambda batch: {"keypoints": next(outputs), "scores": scores}, batches
    )
    np.testing.assert_array_equal(rows, [7, 2, 5, 1, 0, 9])
    np.testing.assert_array_equal(found[:, 0], [0, 1, 2, 1, 2, 3])
    for row, n in enumerate([0, 1, 2, 2, 1, 0]):
        for j in range(JOINTS):
            expected = np.float64(inverse[n]) @ [*np.float64(crop[n, j]), 1.0]
            np.testing.assert_allclose(keypoints[row, j], expected, atol=1e-4)


class LightMaps(nn.Module):
    """Heatmaps that see the image as a mirror would: by the channel, and by which side of a dot is brighter.

    Joint 0 and 1 are red and green. A pair of joints is told apart as left and right are in a picture: the
    left one is where a blue dot is brighter than its left neighbour, the right one where it is darker.
    """

    @nn.compact
    def __call__(self, images, train=False):
        # Between bright and dark of `normalise_images`, whatever the channel.
        small = nn.relu(nn.avg_pool(images, (4, 4), (4, 4)))
        slope = small[:, :, 1:, 2] - small[:, :, :-1, 2]
        edge = jnp.pad(slope, ((0, 0), (0, 0), (1, 1)))
        rising, falling = nn.relu(edge[:, :, :-1]), nn.relu(-edge[:, :, 1:])
        maps = [small[..., 0], small[..., 1], rising, falling, 0.5 * rising, 0.5 * falling]
        return jnp.stack(maps, axis=-1)


def _pictures(num=4) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (num, 32, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("decode", ["argmax", "quarter", "dark"])
@pytest.mark.parametrize("flip_test", [False, True])
def test_a_mirrored_image_gives_mirrored_keypoints(decode, flip_test):
    images = _pictures()
    predict = make_predict(LightMaps(), SKELETON, sigma=SIGMA, decode=decode, flip_test=flip_test)
    found, mirrored = predict({}, jnp.asarray(images)), predict({}, jnp.asarray(images[:, :, ::-1]))
    permutation = np.array(SKELETON.flip_permutation)
    # Quarter decoding treats the border unevenly, as HRNet does: compare where both are away from it.
    x, y = np.moveaxis(np.asarray(found["keypoints"]), -1, 0)
    away = (x > 11) & (x < 36) & (y > 11) & (y < 20) if decode == "quarter" else np.ones(x.shape, bool)
    assert away.sum() >= 4
    expected = np.stack([47 - x, y], axis=-1)
    turned = np.asarray(mirrored["keypoints"])[:, permutation]
    np.testing.assert_allclose(turned[away], expected[away], atol=1e-3)
    np.testing.assert_allclose(np.asarray(mirrored["scores"])[:, permutation], found["scores"], atol=1e-6)


def test_the_flip_test_changes_nothing_in_a_network_that_is_its_own_mirror():
    images = jnp.asarray(_pictures())
    options = dict(sigma=SIGMA, decode="dark")
    plain = make_predict(LightMaps(), SKELETON, flip_test=False, **options)({}, images)
    averaged = make_predict(LightMaps(), SKELETON, flip_test=True, **options)({}, images)
    np.testing.assert_allclose(averaged["keypoints"], plain["keypoints"], atol=1e-3)
    np.testing.assert_allclose(averaged["scores"], plain["scores"], atol=1e-6)


class LeftLeaning(nn.Module):
    """Sees a red dot half a heatmap pixel too far to the left: an error that a mirror turns round."""

    @nn.compact
    def __call__(self, images, train=False):
        small = nn.relu(nn.avg_pool(images, (4, 4), (4, 4)))[..., :1]
        left = jnp.pad(small[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))
        return jnp.repeat(0.5 * (small + left), COCO_SKELETON.num_keypoints, axis=-1)


def test_the_flip_test_takes_out_an_error_that_has_a_side():
    images = np.zeros((1, 64, 64, 3), np.uint8)
    images[0, 24:28, 32:36] = 255
    centre = np.array([33.5, 25.5])
    errors = []
    for flip_test in (False, True):
        predict = make_predict(LeftLeaning(), COCO_SKELETON, sigma=2.0, decode="dark", flip_test=flip_test)
        errors.append(np.asarray(predict({}, jnp.asarray(images))["keypoints"])[0, 0] - centre)
    np.testing.assert_allclose(errors[0], [-2.0, 0.0], atol=0.01)
    np.testing.assert_allclose(errors[1], [0.0, 0.0], atol=0.01)


class Seer(nn.Module):
    """The light around where its heatmap pixels lie in the image, `origin + 4 i`, as if trained so."""

    origin: float

    @nn.compact
    def __call__(self, images, train=False):
        light = images[..., 0] - images.min()
        for axis in (1, 2):
            places = np.arange(light.shape[axis])
            centres = self.origin + 4 * np.arange(light.shape[axis] // 4)[:, None]
            window = np.float32(np.exp(-((places - centres) ** 2) / (2 * 6.0**2)))
            light = jnp.moveaxis(jnp.tensordot(window, light, axes=(1, axis)), 0, axis)
        return jnp.repeat(light[..., None], COCO_SKELETON.num_keypoints, axis=-1)


@pytest.mark.parametrize(
    ("trained_with", "flip_shift", "error"), [(1.5, 0, 0.0), (1.5, 1, 2.0), (0.0, 0, -1.5), (0.0, 1, 0.5)]
)
def test_which_shift_is_right_follows_from_where_the_heatmaps_lie(trained_with, flip_shift, error):
    """A photograph's dot through crop, network, flip test and back: the error along x, in pixels of the crop.

    Ours (the first heatmap pixel lies at 1.5) needs no shift; what the released code trained (at 0) has 3/8
    of a heatmap pixel without its shift, and 1/8 with it.
    """
    dot, size = np.array([152.3, 101.8]), (128, 96)
    rows, columns = np.mgrid[:200, :300]
    photo = 255 * np.exp(-((columns - dot[0]) ** 2 + (rows - dot[1]) ** 2) / (2 * 5.0**2))
    record = {
        "image": cv2.imencode(".png", np.uint8(np.round(np.repeat(photo[..., None], 3, -1))))[1].tobytes(),
        "keypoints": np.zeros((17, 2), np.float32),
        "visibility": np.zeros(17, np.int32),
        "box": np.array([110.0, 50.0, 190.0, 155.0]),
        "name": "dot",
        "index": 0,
    }
    crop = evaluate_crop(record, size=size, skeleton=COCO_SKELETON)
    predict = make_predict(
        Seer(trained_with), COCO_SKELETON, sigma=2.0, decode="dark", flip_test=True,
        inputs=Inputs(None if trained_with == 1.5 else trained_with, flip_shift),
    )  # fmt: skip
    found = np.asarray(predict({}, jnp.asarray(crop["image"][None]))["keypoints"])[0, 0]
    to_crop = invert_affine(crop["inverse"].astype(np.float64))
    np.testing.assert_allclose(found - apply_affine(to_crop, dot[None])[0], [error, 0], atol=0.05)


class Stages(nn.Module):
    """Supervised one after another: the last heatmaps are the prediction."""

    @nn.compact
    def __call__(self, images, train=False):
        heatmaps = LightMaps()(images)
        return 0 * heatmaps, heatmaps[:, ::-1], heatmaps


def test_of_several_heatmaps_the_last_are_the_prediction():
    images, options = jnp.asarray(_pictures()), dict(sigma=SIGMA, decode="dark", flip_test=True)
    found = make_predict(Stages(), SKELETON, **options)({}, images)
    expected = make_predict(LightMaps(), SKELETON, **options)({}, images)
    for name in ("keypoints", "scores"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_boxes_are_scored_by_the_published_procedure():
    """Perfect poses on everybody's box score 1, whatever copies and crowds there are besides."""
    people = _people(num=8)
    points = np.nan_to_num(people.keypoints, nan=50.0)
    keypoints = np.concatenate([points, points + 0.1])
    boxes = PersonBoxes(
        image_ids=np.tile(people.image_id, 2),
        boxes=np.float32(np.tile(people.box, (2, 1))),
        scores=np.float32(np.repeat([0.9, 0.8], len(people.names))),
        images=None,
        num_keypoints=JOINTS,
        skipped=Skipped(),
    )
    rows, scores = np.arange(len(boxes)), np.full(keypoints.shape[:2], 0.9)
    annotations = coco_annotations(people)
    crowd = {
        "image_id": 1,
        "keypoints": np.zeros(3 * JOINTS),
        "area": 9.0,
        "bbox": [0, 0, 9, 9],
        "iscrowd": 1,
    }
    options = dict(size=(64, 48), padding=1.25)
    result = score_boxes(rows, keypoints, scores, boxes, annotations + [crowd], SKELETON, **options)
    assert set(result) == {
        f"{kind}{part}" for kind in ("ap", "ar") for part in ("", "50", "75", "_medium", "_large")
    }
    assert result["ap"] == result["ar"] == 1.0
    # Half the boxes are half the people.
    half = score_boxes(rows[::2], keypoints[::2], scores[::2], boxes, annotations, SKELETON, **options)
    assert 0.3 < half["ar"] < 0.7


def test_of_many_people_in_a_picture_so_many_count_as_asked_and_it_is_noted():
    people = dataclasses.replace(_people(num=33), image_id=np.repeat([1, 2, 3], [24, 6, 3]))
    poses, scores = np.nan_to_num(people.keypoints, nan=50.0), np.full(people.visibility.shape, 0.9)
    assert score(poses, scores, people, SKELETON)["ar"] == pytest.approx(29 / 33)
    assert score(poses, scores, people, SKELETON, max_people=24)["ap"] == 1.0
    (note,) = note_crowded(people, max_people=20)
    assert "1 image has more than 20 people (24)" in note and "--max-people" in note
    (note,) = note_crowded(people, max_people=5)
    assert "2 images have more than 5 people (at most 24)" in note
    assert note_crowded(people, max_people=24) == []
    boxes = PersonBoxes(
        people.image_id, np.float32(people.box), np.ones(33, np.float32), None, JOINTS, Skipped()
    )
    options = dict(size=(64, 48), padding=1.25)
    given = np.arange(33), poses, scores, boxes, coco_annotations(people), SKELETON
    assert score_boxes(*given, **options)["ar"] < score_boxes(*given, **options, max_people=24)["ar"] == 1.0


def test_from_a_detectors_file_to_ap(tmp_path):
    """COCO file, boxes, crops, an oracle for a network, and back: 1.0; less where a box finds nobody."""
    rng = np.random.default_rng(0)
    images, annotations, boxes = [], [], []
    for image_id in (3, "b", 8):
        images.append({"id": image_id, "file_name": f"{image_id}.png"})
        cv2.imwrite(str(tmp_path / f"{image_id}.png"), np.zeros((150, 200, 3), np.uint8))
        for left in (10, 110) if image_id != 8 else ():
            points = rng.uniform([left, 20], [left + 70, 130], (17, 2))
            triples = np.column_stack([points, np.full(17, 2)]).ravel().tolist()
            one = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "area": 5000.0}
            box = [left, 20, 70, 110]
            annotations.append(one | {"keypoints": triples, "num_keypoints": 17, "bbox": box, "iscrowd": 0})
            boxes.append({"image_id": image_id, "category_id": 1, "bbox": box, "score": 0.5})
    crowd = {"id": 99, "image_id": 8, "category_id": 1, "area": 9000.0, "keypoints": [0] * 51}
    annotations.append(crowd | {"num_keypoints": 0, "bbox": [0, 0, 150, 140], "iscrowd": 1})
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO_SKELETON.names)}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    # In the crowd a person is excused.
    boxes.append({"image_id": 8, "category_id": 1, "bbox": [5, 5, 100, 100], "score": 0.9})
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))

    file, size = coco_json.load_file(tmp_path / "coco.json", tmp_path), (64, 48)
    source = person_boxes.load(tmp_path / "boxes.json", person_boxes.CocoImages(file), num_keypoints=17)
    truth, _ = coco_truth.annotations(file, num_keypoints=17)
    poses = np.array([item["keypoints"] for item in annotations[:4]]).reshape(4, 17, 3)[..., :2]
    poses = np.concatenate([poses, rng.uniform(20, 100, (1, 17, 2))])

    def oracle(batch):
        to_crop = invert_affine(batch["inverse"].astype(np.float64))
        return {"keypoints": apply_affine(to_crop, poses[batch["index"]]), "scores": np.ones((3, 17))}

    batches = ordered_batches(source, evaluation_crops(size, COCO_SKELETON), batch_size=3)
    found = predict_people(oracle, batches)
    options = dict(size=size, padding=1.25)
    result = score_boxes(*found, source, truth, COCO_SKELETON, **options)
    assert result["ap"] == result["ar"] == result["ap_medium"] == 1.0
    without = [item for item in truth if not item["iscrowd"]]
    assert score_boxes(*found, source, without, COCO_SKELETON, **options)["ap"] < 0.9
