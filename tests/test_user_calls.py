"""Calls as people write them: they run here, and mypy reads them (test_typing.py), each by what comes out.

What people hold may be an array of jax or of numpy, a list of numbers, or a number that is traced. A call
with a `type: ignore` has to be refused: mypy complains where there is nothing to ignore.
"""

import functools
from typing import assert_type

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax import detection, mining, models, pose, training
from hardmine_jax.data.records import Records

LOSSES = jnp.array([[0.5, 2.0, 0.1, 3.0], [4.0, 0.2, 0.3, 0.4]])
LABELLED = jnp.array([[True, True, True, False], [True, True, False, True]])
KEY = jax.random.key(0)
FACE = pose.Skeleton(("nose", "left", "right"), ((1, 2),), (0.03, 0.03, 0.03), ((0, 1), (0, 2)))
BOXES = np.array([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
SCORES = np.array([0.8, 0.7, 0.9])


def loss_of(losses: jax.Array, select: mining.Selector, where: jax.Array | None = None) -> jax.Array:
    """What somebody writes who takes the selector as an argument."""
    return mining.masked_mean(losses, where=select(losses, where=where))


def hardest_half(losses: jax.Array, *, where: jax.Array | None = None) -> jax.Array:
    """A selector of one's own."""
    return mining.top_k(losses, k=losses.shape[-1] // 2, where=where)


@pytest.mark.parametrize(
    "losses", [LOSSES, np.asarray(LOSSES), LOSSES.tolist()], ids=["jax", "numpy", "list"]
)
def test_whatever_holds_numbers_is_mined(losses):
    keep = mining.top_k(losses, k=2, where=np.asarray(LABELLED))
    np.testing.assert_array_equal(keep, mining.top_k(LOSSES, k=2, where=LABELLED))
    assert mining.masked_mean(losses, where=keep) == mining.masked_mean(LOSSES, where=keep)


def test_units_are_chosen():
    assert_type(mining.top_k(LOSSES, k=2, where=LABELLED), jax.Array)
    assert_type(mining.top_k(np.ones(4, np.float32), k=2), jax.Array)
    mining.top_k([3.0, 1.0, 2.0], k=1, where=[True, True, False])
    mining.top_k([[3.0, 1.0], [2.0, 4.0]], k=jnp.array([1, 2]))
    mining.top_k(LOSSES, k=np.int64(2), where=None)
    mining.top_k(LOSSES, k=np.array([1, 2]))
    mining.random_k(KEY, LOSSES, k=mining.schedule(3, start=4, k=2, steps=10))
    mining.threshold(LOSSES, min_loss=0.5, min_kept=jnp.int32(1))
    mining.threshold(np.ones(4), min_loss=np.float32(0.5), min_kept=1)
    mining.hard_negatives(LOSSES, positive=np.asarray(LOSSES) > 1, ratio=np.float32(3), min_negatives=1)
    mining.harder_than_easiest(LOSSES, ratio=jnp.float32(2), min_kept=np.int32(1), max_kept=jnp.int32(2))
    mining.non_max(LOSSES[0], np.eye(4), threshold=0.7, max_kept=2)
    mining.non_max([1.0, 2.0], [[1.0, 0.9], [0.9, 1.0]])
    centres = jnp.arange(4.0)
    assert_type(mining.non_max(LOSSES[0], lambda index: jnp.abs(centres - centres[index])), jax.Array)


def test_a_traced_number_is_kept():
    def loss(step: jax.Array) -> jax.Array:
        k = mining.schedule(step, start=4, k=2, steps=10, shape="cosine")
        return mining.masked_mean(LOSSES, where=mining.top_k(LOSSES, k=k), denominator=k.astype(jnp.float32))

    assert np.isfinite(jax.jit(loss)(jnp.int32(3)))


def test_weights_are_given():
    mining.focal_weights(LOSSES, gamma=jnp.float32(2), where=LABELLED)
    mining.ghm_weights([0.1, 0.5, 0.9], counts=np.ones(30))
    mining.gradient_histogram(np.array([0.1, 0.9]), num_bins=2)
    mining.importance_weights(KEY, np.asarray(LOSSES), k=2, uniform=0.2)
    described = mining.stats(np.asarray(LOSSES), np.asarray(LABELLED))
    assert_type(described.unit_rate, jax.Array)
    assert_type(mining.masked_mean(LOSSES, where=None, denominator=8), jax.Array)
    mining.masked_mean(np.ones(3), where=[True, False, True], denominator=np.float32(2))
    assert float(mining.masked_mean([1.0, 3.0], where=None)) == 2


def test_selectors_are_handed_on():
    loss_of(LOSSES, functools.partial(mining.top_k, k=2), LABELLED)
    loss_of(LOSSES, functools.partial(mining.random_k, KEY, k=jnp.int32(2)))
    loss_of(LOSSES, mining.harder_than_easiest)
    loss_of(LOSSES, hardest_half)
    loss_of(LOSSES, lambda losses, where=None: mining.top_k(losses, k=1, where=where))
    with pytest.raises(TypeError):
        loss_of(LOSSES, mining.top_k)  # type: ignore[arg-type]


def test_hard_units_are_mined_in_two_passes():
    def squared_error(weight: jax.Array, x: jax.Array) -> jax.Array:
        return (weight * x - 1) ** 2

    def select(losses: jax.Array, x: jax.Array) -> jax.Array:
        return mining.top_k(losses, k=2, where=x > 0)

    hard = mining.mine(squared_error, select, capacity=2, in_axes=(None, 0), score_dtype=jnp.bfloat16)
    mined = hard(jnp.float32(2), np.arange(4.0, dtype=np.float32))
    assert_type(mined, mining.Mined)
    assert_type(mining.masked_mean(mined.losses, where=mined.keep), jax.Array)
    mining.mine(squared_error, lambda losses, *_: losses > 1, capacity=4, in_axes=(None, 0), reuse=True)


def test_a_pool_is_filled():
    pool = mining.hard_pool.init(4, num_positives=2)
    pool = mining.hard_pool.update(
        pool, [3, 1], np.array([0.5, 0.2]), positive=[False, True], decay=jnp.float32(0.9), max_age=5
    )
    drawn = mining.hard_pool.sample(pool, KEY, num_negatives=2)
    assert_type(drawn, mining.hard_pool.Sample)
    assert drawn.where.sum() == 1


@pytest.mark.parametrize("make", [jnp.asarray, np.asarray], ids=["jax", "numpy"])
def test_keypoints_are_trained(make):
    keypoints, labelled = make([[[3.0, 2.0], [1.0, 1.0], [5.0, 5.0]]]), make([[True, False, True]])
    target = pose.encode_heatmaps(keypoints, size=(8, 6), sigma=1.0, where=labelled)
    loss = pose.ohkm(make(jnp.zeros_like(target)), make(target), k=2, where=labelled)
    assert float(loss) > 0
    decoded, _ = pose.decode_heatmaps(make(target), method="argmax")
    assert float(pose.pck(decoded, keypoints, reference=10.0, where=labelled)) == 1
    assert pose.pckh(keypoints, keypoints, reference=make([10.0])) == 1
    assert pose.oks(decoded, keypoints, area=900.0, sigmas=FACE.sigmas, where=labelled).shape == (1,)


def test_keypoints_of_numpy_and_jax():
    points = np.array([[3.0, 2.0], [1.0, 1.0]])
    assert_type(pose.encode_heatmaps(points, size=(8, 6), sigma=1.0), jax.Array)
    assert_type(pose.heatmap_mse(np.zeros((1, 2, 2, 3)), jnp.ones((1, 2, 2, 3))), jax.Array)
    assert_type(pose.decode_heatmaps(np.zeros((1, 4, 4, 3), np.float32)), tuple[jax.Array, jax.Array])
    assert_type(pose.person_scores([[0.5, 0.9]], [1.0]), jax.Array)
    kept, _ = pose.oks_nms(
        np.zeros((2, 3, 2)), [0.9, 0.8], np.ones(2), sigmas=np.array(FACE.sigmas), max_kept=1
    )
    assert_type(kept, jax.Array)
    for image in (pose.image_to_heatmap(points, stride=4), pose.heatmap_to_image(points, stride=4)):
        assert_type(image, np.ndarray)
        assert isinstance(image, np.ndarray)
    assert_type(pose.image_to_heatmap(jnp.asarray(points), stride=4, origin=0), jax.Array)
    assert_type(pose.heatmap_to_image(1.5, stride=4), float)


def test_crops():
    centre, sides = pose.box_to_centre_scale(np.array([10.0, 20.0, 50.0, 60.0]), aspect=0.75)
    pose.box_to_centre_scale((10, 20, 50, 60), aspect=0.75)
    matrix = pose.affine_matrix(centre, sides, 30.0, size=(64, 48))
    assert_type(matrix, np.ndarray)
    pose.affine_matrix([30.0, 40.0], (40, 40), 0, size=(64, 48))
    assert_type(pose.invert_affine(matrix), np.ndarray)
    points, on_device = np.array([[30.0, 40.0]]), jnp.array([[30.0, 40.0]])
    of_numpy = pose.apply_affine(matrix, points)
    assert_type(of_numpy, np.ndarray)
    assert isinstance(of_numpy, np.ndarray)
    of_both = pose.apply_affine(matrix, on_device), pose.apply_affine(jnp.asarray(matrix), points)
    assert_type(of_both, tuple[jax.Array, jax.Array])
    assert all(isinstance(moved, jax.Array) for moved in of_both)
    with pytest.raises(TypeError):
        pose.apply_affine([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], points)  # type: ignore[call-overload]


def test_mirrors():
    keypoints, seen = np.zeros((3, 2)), np.ones(3, np.uint8)
    flipped = pose.flip_keypoints(keypoints, seen, width=10, skeleton=FACE)
    assert_type(flipped, tuple[np.ndarray, np.ndarray])
    assert all(isinstance(array, np.ndarray) for array in flipped)
    mixed = pose.flip_keypoints(jnp.asarray(keypoints), seen, width=10, skeleton=FACE)
    assert_type(mixed, tuple[jax.Array, np.ndarray])
    assert [isinstance(array, jax.Array) for array in mixed] == [True, False]
    assert_type(pose.flip_heatmaps(jnp.zeros((4, 4, 3)), skeleton=FACE, shift=1), jax.Array)
    assert_type(pose.flip_heatmaps(np.zeros((4, 4, 3)), skeleton=FACE), np.ndarray)
    assert pose.half_body(keypoints, seen, [0], np.random.default_rng(0)) is None


def test_regions_are_detected():
    assert_type(detection.iou(BOXES, BOXES.tolist()), jax.Array)
    indices, kept = detection.nms(BOXES, SCORES, threshold=np.float32(0.5), max_kept=2)
    assert_type((indices, kept), tuple[jax.Array, jax.Array])
    detection.nms(
        jnp.asarray(BOXES), SCORES.tolist(), threshold=np.float32(0.5), max_kept=2, where=[True, True, False]
    )
    matched = detection.match(BOXES, [[0.0, 0.0, 10.0, 12.0]], [7])
    assert_type(matched.labels, jax.Array)
    deltas = detection.encode_boxes(BOXES, matched.boxes)
    detection.decode_boxes(BOXES, np.asarray(deltas), weights=[10.0, 10.0, 5.0, 5.0])
    detection.clip_boxes(BOXES, size=(np.int64(8), jnp.int32(9)))
    losses = detection.fast_rcnn_losses(np.zeros((3, 8)), deltas, matched.labels, np.asarray(deltas))
    assert_type(detection.ohem(losses, BOXES, k=2, labels=np.array([1, 1, 2])), jax.Array)
    detection.ohem(SCORES, jnp.asarray(BOXES), k=2, iou_threshold=jnp.float32(0.7))
    detection.sample_rois(KEY, matched.labels, np.asarray(matched.overlaps), k=2)
    detection.focal_losses(np.zeros((3, 7)), [0, 1, 2], gamma=jnp.float32(2))
    assert_type(detection.smooth_l1(np.array([0.5])), jax.Array)
    assert_type(detection.smooth_l1(0.5), jax.Array)
    features = np.zeros((8, 8, 2), np.float32)
    assert_type(detection.roi_pool(features, BOXES, size=(2, 2), stride=4), jax.Array)
    detection.roi_align(features, BOXES.tolist(), size=(1, 1), stride=4, sampling_ratio=1)
    assert_type(detection.make_anchors((8, 16), strides=[8]), jax.Array)


def test_detections_are_scored():
    truth = detection.GroundTruth(BOXES, np.array([1, 1, 2]))
    found = detection.Detections(BOXES, SCORES, np.array([1, 1, 2]))
    result = detection.average_precision([found], [truth], classes=("cell", "plate"))
    assert_type(result.mean, float)
    plain = [(jnp.asarray(BOXES), SCORES.tolist(), [1, 1, 2])]
    again = detection.average_precision(plain, [(BOXES, [1, 1, 2])], classes=["cell", "plate"])
    difficult = detection.average_precision(plain, [(BOXES, [1, 1, 2], None)], classes=["cell", "plate"])
    assert result.mean == again.mean == difficult.mean


def test_networks_are_made():
    images = jnp.zeros((1, 64, 64, 3))
    network: nn.Module = models.HRNet(32, 17)
    small = models.HRNet(8, num_keypoints=17, stem_blocks=1, modules=(1,), blocks=1, dtype="bfloat16")
    variables = jax.eval_shape(small.init, KEY, images)
    heatmaps = jax.eval_shape(functools.partial(small.apply, train=False), variables, images)
    assert heatmaps.shape == (1, 16, 16, 17)
    assert network != small
    models.SimpleBaseline(50, 17, dtype=jnp.bfloat16)
    models.FastRCNN(20, pool=functools.partial(detection.roi_pool, stride=16))
    models.FastRCNN(20, models.ResNetTrunk(50, frozen_norm=True), pooling="align", dtype=None)
    models.RetinaNet(91, coarse="p5")
    models.Hourglass(stacks=2, dtype=np.dtype("float32"))
    models.CPN(50, 17, axis_name="devices")
    assert_type(models.normalise_images(np.zeros((1, 2, 2, 3), np.uint8)), np.ndarray)
    assert_type(models.normalise_images(jnp.zeros((1, 2, 2, 3), jnp.uint8)), jax.Array)
    with pytest.raises(TypeError):
        models.HRNet(32, 17, number=3)  # type: ignore[call-arg]
    models.HRNet("32", 17)  # type: ignore[arg-type]


def test_a_state_is_trained():
    def loss_function(params, batch_stats, batch, key, step):
        return jnp.mean(batch["x"] * params["w"]), (batch_stats, {"step": step})

    optimizer = training.make_optimizer(training.OptimizerConfig(name="sgd"), steps=10)
    state = training.create_state(
        {"params": {"w": jnp.ones(())}}, apply_fn=None, optimizer=optimizer, key=KEY
    )
    parallel = training.parallelise(
        lambda axis: training.make_train_step(loss_function, axis_name=axis), kind="jit"
    )
    placed = parallel.put_state(state)
    batch = parallel.put_batch({"x": np.ones((parallel.num_devices, 2), np.float32)})
    assert_type(parallel.train_step.lower(placed, batch), jax.stages.Lowered)
    placed, metrics = parallel.train_step(placed, batch)
    assert_type(parallel.get(placed), training.TrainState)
    assert float(assert_type(metrics["loss"], jax.Array)) == 1
    training.ema_update(state.params, state.params, 1, decay=0.5)
    with pytest.raises(ValueError, match="kind"):
        training.parallelise(lambda axis: parallel.train_step, kind="mesh")  # type: ignore[arg-type]


class Numbered:
    """A source of one's own."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"index": index}


def test_records_are_a_list_or_a_source_of_ones_own():
    listed: Records = [{"index": 0}, {"index": 1}]
    own: Records = Numbered()
    assert len(listed) == len(own) and listed[1] == own[1]
    wrong: Records = {1, 2}  # type: ignore[assignment]
    assert not hasattr(wrong, "__getitem__")


def test_wrong_calls_are_refused():
    with pytest.raises(TypeError):
        mining.top_k(LOSSES, k="2")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        mining.top_k(LOSSES, k=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        mining.top_k(LOSSES, 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        mining.top_k("losses", k=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shape"):
        mining.schedule(3, start=4, k=2, steps=10, shape="square")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        mining.masked_mean(LOSSES)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="method"):
        pose.decode_heatmaps(jnp.zeros((4, 4, 1)), method="best")  # type: ignore[arg-type]
