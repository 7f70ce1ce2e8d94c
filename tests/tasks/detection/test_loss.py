"""The detection task's parts against plain numpy: RoIs, what carries the gradient, detections."""

import functools

import chex
import jax
import numpy as np
import optax
import pytest

from hardmine_jax import training

# The module that the script itself imported.
from hardmine_jax.models import fast_rcnn, normalise_images
from hardmine_jax.models.vgg import VGGTrunk
from hardmine_jax.tasks.detection.loss import make_choice, make_head_losses, make_loss
from hardmine_jax.tasks.detection.networks import init_variables
from hardmine_jax.tasks.detection.predict import (
    Decoding,
    apply_head,
    false_positives,
    find_detections,
    make_predict,
)
from hardmine_jax.tasks.detection.rois import Mining, Rois, choose_rois, draw_rois, make_rois

CLASSES, K, SIDE, PROPOSALS, OBJECTS = 3, 6, 48, 40, 4
KINDS = ("ohem", "random", "all", "masked", "focal", "hard_negatives", "bootstrap")


def _model(*, dropout=0.0, pooling="align", norm="none", axis_name=None) -> fast_rcnn.FastRCNN:
    trunk = VGGTrunk(((4,), (8,)), norm=norm, axis_name=axis_name)
    return fast_rcnn.FastRCNN(CLASSES, trunk, hidden=(8, 8), dropout=dropout, pooling=pooling)


@functools.cache
def _variables(norm="none") -> dict:
    make = functools.partial(init_variables, _model(norm=norm), (SIDE, SIDE))
    return jax.jit(make)(jax.random.key(0))


def _boxes(rng, count: int, num_images: int) -> np.ndarray:
    corners = rng.uniform(0, SIDE - 20, (num_images, count, 2))
    return np.concatenate([corners, corners + rng.uniform(7, 20, corners.shape)], -1).astype(np.float32)


def _batch(num_images=4, seed=0) -> dict:
    """Images of noise; the first proposals lie near the objects."""
    rng = np.random.default_rng(seed)
    objects, found = _boxes(rng, OBJECTS, num_images), _boxes(rng, PROPOSALS, num_images)
    near = objects + rng.normal(0, 1, objects.shape)
    found[:, :OBJECTS], found[:, OBJECTS : 2 * OBJECTS] = near, near + 1.0
    return {
        "image": rng.integers(0, 256, (num_images, SIDE, SIDE, 3), dtype=np.uint8),
        "image_size": np.full((num_images, 2), SIDE, np.int32),
        "scale": np.ones(num_images, np.float32),
        "boxes": objects,
        "labels": rng.integers(1, CLASSES + 1, (num_images, OBJECTS)).astype(np.int32),
        "difficult": np.zeros((num_images, OBJECTS), bool),
        "boxes_where": np.ones((num_images, OBJECTS), bool),
        "proposals": found,
        "proposals_where": np.ones((num_images, PROPOSALS), bool),
        "index": np.arange(num_images, dtype=np.int32) + 10,
        "where": np.ones(num_images, bool),
        "pool": rng.random((num_images, PROPOSALS)) < 0.3,
    }


_make_rois = jax.jit(make_rois)


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    areas = (a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1)
    return both / np.maximum(areas - both, 1e-9)


def test_rois_are_proposals_then_objects_with_label_and_target():
    batch = _batch()
    rois = _make_rois(batch)
    for image in range(4):
        boxes = np.concatenate([batch["proposals"][image], batch["boxes"][image]])
        overlaps = _overlaps(boxes, batch["boxes"][image])
        nearest, best = overlaps.argmax(1), overlaps.max(1)
        labels = np.where(best >= 0.5, batch["labels"][image][nearest], 0)
        np.testing.assert_array_equal(rois.labels[image], labels)
        np.testing.assert_allclose(rois.overlaps[image], best, atol=1e-5)
        # An object is its own target: all zeros.
        np.testing.assert_allclose(rois.targets[image, PROPOSALS:], 0, atol=1e-5)
        some = np.flatnonzero(labels)[0]
        box, target = boxes[some].astype(np.float64), batch["boxes"][image][nearest[some]].astype(np.float64)
        width = box[2] - box[0]
        assert float(rois.targets[image, some, 0]) == pytest.approx(
            10 * ((target[0] + target[2]) - (box[0] + box[2])) / 2 / width, abs=1e-3
        )
    assert (rois.labels > 0).sum() >= 4 * 2 * OBJECTS and rois.where.all()
    np.testing.assert_array_equal(rois.targets[rois.labels == 0], 0)


def test_what_takes_no_part_in_training():
    batch = _batch()
    batch["difficult"][0, 0] = True
    batch["proposals"][0, 5] = batch["boxes"][0, 0]
    batch["boxes"][1, 2] = [5, 5, 5, 20]
    batch["proposals"][2, 3], batch["proposals_where"][2, 3] = 0, False
    batch["where"][3] = False
    rois = _make_rois(batch)
    # Neither a difficult object nor what lies on it teaches anything.
    assert not rois.where[0, PROPOSALS] and not rois.where[0, 5] and rois.labels[0, 5] == 0
    assert not rois.where[1, PROPOSALS + 2]
    assert not rois.where[2, 3] and not rois.where[3].any()
    assert all(np.isfinite(np.asarray(x, np.float64)).all() for x in rois)


def test_what_lies_in_a_crowd_takes_no_part_however_small_it_is():
    """By the part of the RoI that is inside, as in COCO's evaluation; difficult objects by IoU, as VOC's."""
    batch = _batch(num_images=1)
    batch["boxes"][0, 0], batch["difficult"][0, 0] = [0, 0, 40, 24], True
    for place, box in enumerate(([2, 2, 9, 9], [30, 19, 38, 29], [30, 20, 38, 30], [1, 1, 40, 24])):
        batch["proposals"][0, place] = box
    # An object of its own in the crowd, and a region on it.
    batch["boxes"][0, 1], batch["proposals"][0, 4] = [10, 4, 20, 18], [10, 4, 20, 17]
    batch["boxes"][0, 2:] = [44, 44, 47, 47]
    # The second lies in it by just the half, the third by less.
    for crowd, expected in (
        (True, [False, False, True, False, True]),
        (False, [True, True, True, False, True]),
    ):
        rois = _make_rois({**batch, "crowd": batch["difficult"] & crowd})
        assert rois.where[0, :5].tolist() == expected
        assert rois.labels[0, 4] > 0 and rois.where[0, PROPOSALS + 1] and not rois.where[0, PROPOSALS]
    # Where nobody says which are crowds, all difficult ones are.
    np.testing.assert_array_equal(
        _make_rois(batch).where, _make_rois({**batch, "crowd": batch["difficult"]}).where
    )


def test_of_a_picture_left_alone_the_objects_alone_are_learned():
    batch = _batch(num_images=2)
    batch["boxes"][0, 0], batch["labels"][0, 0], batch["difficult"][0, 0] = [0, 0, SIDE, SIDE], 0, True
    rois = _make_rois({**batch, "crowd": batch["difficult"]})
    taking = np.asarray(rois.labels[0])[np.asarray(rois.where[0])]
    assert len(taking) >= 2 * (OBJECTS - 1) and (taking > 0).all()
    assert (np.asarray(rois.labels[1])[np.asarray(rois.where[1])] == 0).any()


def test_pictures_without_objects_teach_something_where_asked_for():
    batch = _batch(num_images=8)
    batch["boxes_where"][:4] = False
    rois = _make_rois(batch)
    losses = np.random.default_rng(0).random(rois.where.shape, np.float32)

    def kept(mining: Mining) -> tuple[np.ndarray, np.ndarray]:
        if mining.kind == "random":
            keys = jax.random.split(jax.random.key(0), 8)
            keep = jax.vmap(lambda key, one: draw_rois(key, one, mining))(keys, rois)
        else:
            keep = jax.vmap(lambda x, one: choose_rois(x, one, mining))(losses, rois)
        return np.asarray(keep), np.asarray(keep).sum(1)

    few, some = kept(Mining("hard_negatives", K)), kept(Mining("hard_negatives", K, min_negatives=5))
    assert (few[1][:4] == 0).all() and (some[1][:4] == 5).all()
    for image in range(4):
        hardest = np.argsort(-losses[image, :PROPOSALS])[:5]
        assert some[0][image][hardest].all()
    np.testing.assert_array_equal(few[0][4:], some[0][4:])
    near, anywhere = kept(Mining("random", K)), kept(Mining("random", K, background_overlap=0.0))
    assert (near[1][:4] == 0).all() and (anywhere[1][:4] == K).all()
    assert (np.asarray(rois.overlaps)[4:][anywhere[0][4:]] < 0.1).any()


def test_quotas_and_ratios_are_kept():
    rois = _make_rois(_batch(num_images=6))
    losses = np.random.default_rng(1).random(rois.where.shape, np.float32)
    where, foreground = np.asarray(rois.where), np.asarray(rois.labels) > 0

    def kept(mining: Mining) -> np.ndarray:
        return np.asarray(jax.vmap(lambda x, one: choose_rois(x, one, mining))(losses, rois))

    free, many = kept(Mining("ohem", K, 1.0)), kept(Mining("masked", K, 1.0, foreground_quota=K))
    # With room for all of them, the objects' regions come first.
    np.testing.assert_array_equal((many & foreground).sum(1), np.minimum((where & foreground).sum(1), K))
    for quota in (0, 1, 2):
        keep = kept(Mining("ohem", K, 1.0, foreground_quota=quota))
        assert (keep.sum(1) == K).all()
        np.testing.assert_array_equal(
            (keep & foreground).sum(1), np.minimum((where & foreground).sum(1), quota)
        )
        for image in range(6):
            hardest = sorted(
                np.flatnonzero(foreground[image] & where[image]), key=lambda n: -losses[image, n]
            )
            assert keep[image][hardest[: (keep & foreground)[image].sum()]].all()
    assert ((free & foreground).sum(1) > 2).any()
    for ratio in (0.0, 1.0, 2.5):
        keep = kept(Mining("hard_negatives", K, ratio=ratio))
        wanted = np.floor(ratio * (keep & foreground).sum(1))
        np.testing.assert_array_equal(
            (keep & ~foreground).sum(1), np.minimum(wanted, (where & ~foreground).sum(1))
        )


@functools.cache
def _run_all(focal: bool):
    model, variables = _model(), _variables()
    one = make_head_losses(model, focal=focal, train=True)

    def run(batch):
        images = normalise_images(batch["image"])
        features, rois = model.apply(variables, images, train=True, method="features"), make_rois(batch)
        return jax.vmap(lambda f, r: one(variables, f, r, None))(features, rois), rois

    return jax.jit(run)


def _losses_of_all(batch: dict, *, focal=False) -> tuple[np.ndarray, Rois]:
    """[B, N], every RoI through the head at once."""
    losses, rois = _run_all(focal)(batch)
    return np.asarray(losses), rois


@functools.cache
def _run_loss(kind: str, dropout: float):
    loss = make_loss(_model(dropout=dropout), Mining(kind, K))
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _value_and_grad(kind: str, batch: dict, *, dropout=0.0, params=None):
    run, params = _run_loss(kind, dropout), _variables()["params"] if params is None else params
    (value, (_, metrics)), gradient = run(params, {}, batch, jax.random.key(0), 0)
    return value, metrics, gradient


def test_ohem_takes_the_hardest_that_do_not_overlap():
    batch = _batch()
    losses, rois = _losses_of_all(batch)
    total = 0.0
    for image in range(4):
        boxes, kept = np.asarray(rois.boxes[image]), []
        for place in np.argsort(-losses[image], kind="stable"):
            if len(kept) < K and not (_overlaps(boxes[place][None], boxes[kept]) > 0.7).any():
                kept.append(place)
        total += losses[image][kept].sum() / K
    value, metrics, _ = _value_and_grad("ohem", batch)
    assert float(value) == pytest.approx(total / 4, rel=1e-5)
    assert float(metrics["fraction_kept"]) == pytest.approx(K / (PROPOSALS + OBJECTS), rel=1e-5)
    assert K / (PROPOSALS + OBJECTS) < float(metrics["loss_captured"]) < 1


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_ohem_and_masked_are_one_loss_and_one_gradient(dropout):
    """With dropout too: a RoI is learned from under the mask it was found hard with."""
    (one, metrics, gradient), (other, others, expected) = (
        _value_and_grad(kind, _batch(), dropout=dropout) for kind in ("ohem", "masked")
    )
    assert float(one) == pytest.approx(float(other), rel=1e-5)
    chex.assert_trees_all_close(metrics, others, rtol=1e-5)
    chex.assert_trees_all_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_ohem_and_masked_follow_the_same_curve_over_20_steps():
    curves = []
    for kind in ("ohem", "masked"):
        params, losses = _variables()["params"], []
        for number in range(20):
            value, _, gradient = _value_and_grad(kind, _batch(seed=number % 2), params=params)
            params = jax.tree.map(lambda p, g: p - 0.03 * g, params, gradient)
            losses.append(float(value))
        curves.append(losses)
    np.testing.assert_allclose(*curves, rtol=1e-4)
    # The same batch early and late: it learns.
    assert curves[0][-1] < 0.97 * curves[0][1]


def test_the_two_runs_take_less_memory_than_the_masked_one():
    def temporary(kind: str) -> int:
        batch = _batch(num_images=1)
        names = ("proposals", "proposals_where", "pool")
        batch |= {name: np.repeat(batch[name], 50, axis=1) for name in names}
        arguments = (_variables()["params"], {}, batch, jax.random.key(0), 0)
        compiled = _run_loss(kind, 0.0).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary("ohem") < 0.8 * temporary("masked")


def test_all_divides_by_the_slots():
    batch = _batch()
    batch["proposals_where"][:, 30:] = False
    losses, rois = _losses_of_all(batch)
    value, metrics, _ = _value_and_grad("all", batch)
    assert float(value) == pytest.approx(losses[np.asarray(rois.where)].sum() / losses.size, rel=1e-5)
    assert float(metrics["fraction_kept"]) == 1.0


def test_hard_negatives_are_three_a_positive():
    losses, rois = _losses_of_all(_batch())
    total = 0.0
    for image in range(4):
        positive = np.asarray(rois.labels[image]) > 0
        hardest = np.sort(losses[image][~positive])[::-1][: 3 * positive.sum()]
        total += (losses[image][positive].sum() + hardest.sum()) / K
    value, metrics, _ = _value_and_grad("hard_negatives", _batch())
    assert float(value) == pytest.approx(total / 4, rel=1e-5)


def test_focal_counts_all_with_the_boxes_of_the_foreground():
    losses, _ = _losses_of_all(_batch(), focal=True)
    value, _, _ = _value_and_grad("focal", _batch())
    assert float(value) == pytest.approx(losses.sum() / (4 * K), rel=1e-5)


def test_random_draws_a_quarter_foreground_and_near_background():
    batch = _batch(num_images=64)
    rois = _make_rois(batch)
    keys = jax.random.split(jax.random.key(0), 64)
    keep = jax.vmap(lambda key, one: draw_rois(key, one, Mining("random", 8)))(keys, rois)
    foreground = np.asarray(keep & (rois.labels > 0))
    assert (foreground.sum(1) == 2).all() and (np.asarray(keep).sum(1) <= 8).all()
    overlaps = np.asarray(rois.overlaps)[np.asarray(keep) & ~foreground]
    assert len(overlaps) and overlaps.min() >= 0.1 and overlaps.max() < 0.5


def test_bootstrap_draws_its_background_from_the_pool_only():
    batch = _batch(num_images=16)
    rois = _make_rois(batch)
    keys = jax.random.split(jax.random.key(0), 16)
    keep = jax.vmap(lambda key, one: draw_rois(key, one, Mining("bootstrap", 8)))(keys, rois)
    background = np.asarray(keep & (rois.labels == 0))[:, :PROPOSALS]
    assert background.any() and batch["pool"][background].all()
    # Far from all objects as well: what a network gets wrong may lie anywhere.
    assert (np.asarray(rois.overlaps)[:, :PROPOSALS][background] < 0.1).any()


def test_drawing_does_not_depend_on_the_rest_of_the_batch():
    batch = _batch()
    half = {name: value[2:] for name, value in batch.items()}
    first = {name: value[:2] for name, value in batch.items()}
    values = [float(_value_and_grad("random", part)[0]) for part in (batch, first, half)]
    assert values[0] == pytest.approx(np.mean(values[1:]), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_flawed_images_keep_loss_and_gradient_finite(kind):
    batch = _batch()
    batch["boxes_where"][0], batch["boxes"][0], batch["labels"][0] = False, 0, 0
    batch["proposals_where"][1], batch["proposals"][1] = False, 0
    batch["boxes"][2, 0, 2] = batch["boxes"][2, 0, 0]
    for name in ("boxes_where", "proposals_where", "where"):
        batch[name][3] = False
    value, metrics, gradient = _value_and_grad(kind, batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, metrics, gradient)))
    assert float(value) > 0


def test_jit_on_1_and_shard_map_on_8_devices_give_the_same_losses():
    curves = []
    for parallel_kind, devices in (("jit", 1), ("shard_map", 8)):

        def make_step(axis_name):
            model = _model(norm="batch", axis_name=axis_name)
            return training.make_train_step(make_loss(model, Mining("ohem", K)), axis_name=axis_name)

        parallel = training.parallelise(make_step, kind=parallel_kind, devices=jax.devices()[:devices])
        state = parallel.put_state(
            training.create_state(
                _variables("batch"), apply_fn=None, optimizer=optax.sgd(0.01), key=jax.random.key(1)
            )
        )
        losses = []
        for seed in range(3):
            state, metrics = parallel.train_step(state, parallel.put_batch(_batch(8, seed)))
            losses.append(float(parallel.get(metrics)["loss"]))
        curves.append(losses)
    np.testing.assert_allclose(*curves, rtol=1e-4)


def _detections_oracle(boxes, scores, where, decoding) -> list[tuple[float, int, int]]:
    """(score, label, proposal) of what is kept, best first."""
    found = []
    for column in range(scores.shape[1]):
        kept = []
        for place in np.argsort(-scores[:, column], kind="stable"):
            wanted = where[place] and scores[place, column] >= decoding.min_score
            mine = boxes[:, column]
            overlapping = (_overlaps(mine[place][None], mine[kept]) > decoding.iou_threshold).any()
            if wanted and not overlapping:
                kept.append(place)
        found += [(float(scores[place, column]), column + 1, place) for place in kept]
    return sorted(found, reverse=True)[: decoding.max_detections]


@pytest.mark.parametrize("most", [5, 40, 400])
def test_detections_are_the_oracles(most):
    rng = np.random.default_rng(2)
    boxes = np.stack([_boxes(rng, 60, 1)[0] for _ in range(CLASSES)], 1)
    scores = rng.permutation(60 * CLASSES).reshape(60, CLASSES).astype(np.float32) / 200
    where = rng.random(60) < 0.8
    decoding = Decoding(iou_threshold=0.3, min_score=0.2, max_detections=most)
    found = jax.jit(functools.partial(find_detections, decoding=decoding))(boxes, scores, where)
    expected = _detections_oracle(boxes, scores, where, decoding)
    chex.assert_shape(found["boxes"], (most, 4))
    assert int(found["where"].sum()) == len(expected)
    for place, (score, label, proposal) in enumerate(expected):
        assert float(found["scores"][place]) == pytest.approx(score)
        assert int(found["labels"][place]) == label
        np.testing.assert_allclose(found["boxes"][place], boxes[proposal, label - 1])
    assert not np.asarray(found["labels"])[len(expected) :].any()


def test_predictions_are_in_original_pixels_and_inside_the_picture():
    batch = _batch()
    batch["scale"][:] = [1.0, 0.5, 2.0, 0.25]
    batch["image_size"][:] = [48, 40]
    batch["proposals_where"][3] = False
    decoding = Decoding(min_score=0.0, max_detections=20)
    found = jax.jit(make_predict(_model(), decoding))(_variables(), batch)
    chex.assert_shape(found["boxes"], (4, 20, 4))
    for image, scale in enumerate(batch["scale"]):
        boxes = np.asarray(found["boxes"][image])[np.asarray(found["where"][image])]
        assert len(boxes) == (0 if image == 3 else 20)
        assert (boxes >= 0).all() and (boxes <= np.array([40, 48, 40, 48]) / scale + 1e-3).all()
    assert (np.diff(found["scores"], axis=1) <= 0).all()


def test_false_positives_are_background_proposals_best_first():
    batch = _batch()
    batch["proposals_where"][1, ::2] = False
    search = jax.jit(false_positives(_model(), count=10))
    found = jax.device_get(search(_variables(), batch))
    labels = np.asarray(_make_rois(batch).labels)
    for image in range(4):
        slots = found["slots"][image][found["where"][image]]
        assert len(slots) and (labels[image][slots] == 0).all() and (slots < PROPOSALS).all()
        assert batch["proposals_where"][image][slots].all()
    assert (np.diff(found["scores"], axis=1) <= 0).all()


@pytest.mark.parametrize("kind", ["ohem", "random", "hard_negatives"])
def test_the_choice_to_draw_is_what_trains(kind):
    batch = _batch()
    chosen = jax.device_get(jax.jit(make_choice(_model(), Mining(kind, K)))(_variables(), batch))
    chex.assert_shape(chosen["keep"], (4, PROPOSALS + OBJECTS))
    _, metrics, _ = _value_and_grad(kind, batch)
    assert float(metrics["fraction_kept"]) == pytest.approx(chosen["keep"].mean(), rel=1e-5)


def test_roi_pool_serves_the_published_network():
    model, batch = _model(pooling="pool"), _batch()
    features = np.ones((SIDE // 2, SIDE // 2, 8), np.float32)
    run = jax.jit(lambda boxes: apply_head(model, _variables(), features, boxes, train=False)[0])
    # All maxima are 1, whatever the box.
    logits = run(batch["proposals"][0])
    np.testing.assert_allclose(logits, np.broadcast_to(logits[:1], logits.shape), rtol=1e-5)
