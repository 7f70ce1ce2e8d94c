"""Every public function wherever JAX runs it, under the same laws. A new one is a row of FUNCTIONS."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hardmine_jax import detection, mining, pose

ROWS, UNITS = 4, 70  # More units than `top_k` compares in pairs.
RNG = np.random.default_rng(0)
SKELETON = pose.Skeleton(("nose", "left", "right"), ((1, 2),), (0.1, 0.1, 0.1), ())
MESH = PartitionSpec("data")


class Row(NamedTuple):
    """A function with its options bound."""

    name: str
    call: Callable[..., object]
    args: tuple[np.ndarray, ...]  # Each [ROWS, ...].
    # Takes [ROWS, ...] as it is; where it does not, `jax.vmap` brings the rows in.
    batched: bool = True


def _normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=(ROWS, *shape)).astype(np.float32)


def _places(*shape: int) -> np.ndarray:
    return RNG.uniform(0, 20, (ROWS, *shape)).astype(np.float32)


def _boxes(number: int) -> np.ndarray:
    corners = _places(number, 2)
    return np.concatenate([corners, corners + RNG.uniform(4, 12, corners.shape).astype(np.float32)], -1)


LOSSES = RNG.permutation(ROWS * UNITS).reshape(ROWS, UNITS).astype(np.float32) / UNITS
WHERE = RNG.random((ROWS, UNITS)) < 0.7
KEYS = np.stack([np.full(ROWS, 3), np.arange(ROWS)], -1).astype(np.uint32)
LABELS = RNG.integers(0, 4, (ROWS, UNITS)).astype(np.int32)
MAPS = _normal(8, 6, 3)
FEATURES = _normal(7, 9, 2)
POINTS, VISIBLE = _places(3, 2), RNG.random((ROWS, 3)) < 0.7
UNIT_BOXES = _boxes(UNITS)


def _mine(weight, x, labels, **way):
    def loss_fn(weight, x, labels):
        logits = jax.nn.log_softmax(x @ weight)
        return -jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]

    def select(losses, *_):
        return mining.top_k(losses, k=5)

    hard = mining.mine(loss_fn, select, capacity=6, in_axes=(None, 0, 0), **way)
    return hard(weight, x, labels)


def _pool(indices, scores, key):
    pool = mining.hard_pool.update(
        mining.hard_pool.init(8, num_positives=3), indices, scores, positive=indices % 3 == 0
    )
    return pool, mining.hard_pool.sample(pool, key, num_negatives=4, num_positives=2)


def _table(indices, scores):
    table = mining.score_table.update(mining.score_table.init(5), indices, scores, decay=0.5)
    return table, mining.score_table.read(table, indices)


MINED = (_normal(5, 4), _normal(UNITS, 5), LABELS)
FUNCTIONS = [
    Row("mining.top_k", lambda losses, where: mining.top_k(losses, k=3, where=where), (LOSSES, WHERE)),
    Row(
        "mining.threshold",
        lambda losses, where: mining.threshold(losses, min_loss=1.0, min_kept=3, where=where),
        (LOSSES, WHERE),
    ),
    Row(
        "mining.hard_negatives",
        lambda losses, where: mining.hard_negatives(losses, positive=losses > 3, where=where),
        (LOSSES, WHERE),
    ),
    Row(
        "mining.harder_than_easiest",
        lambda losses, where: mining.harder_than_easiest(losses, max_kept=9, where=where),
        (LOSSES, WHERE),
    ),
    Row(
        "mining.non_max",
        lambda losses, alike: mining.non_max(losses, alike, max_kept=5),
        (LOSSES, RNG.random((ROWS, UNITS, UNITS)).astype(np.float32)),
    ),
    Row("mining.random_k", lambda key, losses: mining.random_k(key, losses, k=4), (KEYS, LOSSES), False),
    Row(
        "mining.global_top_k",
        lambda losses: jax.vmap(
            lambda losses: mining.global_top_k(losses, k=3, axis_name="units"), axis_name="units"
        )(losses.reshape(7, 10)),
        (LOSSES,),
        False,
    ),
    Row(
        "mining.focal_weights",
        lambda losses, where: mining.focal_weights(losses, where=where),
        (LOSSES, WHERE),
    ),
    Row(
        "mining.ghm_weights", lambda norms, where: mining.ghm_weights(norms, where=where), (LOSSES / 4, WHERE)
    ),
    Row(
        "mining.gradient_histogram",
        lambda norms, where: mining.gradient_histogram(norms, where=where),
        (LOSSES / 4, WHERE),
    ),
    Row(
        "mining.importance_weights",
        lambda key, losses: mining.importance_weights(key, losses, k=4),
        (KEYS, LOSSES),
        False,
    ),
    Row(
        "mining.top_fraction",
        lambda losses, where: mining.top_fraction(losses, fraction=0.3, where=where),
        (LOSSES, WHERE),
    ),
    Row(
        "mining.quota_top_k",
        lambda losses, group: mining.quota_top_k(losses, group, k=[2, 1, 3]),
        (LOSSES, LABELS % 3),
    ),
    Row(
        "mining.rank_sample",
        lambda key, losses: mining.rank_sample(key, losses, beta=1.0),
        (KEYS, LOSSES),
        False,
    ),
    Row(
        "mining.rank_sample k",
        lambda key, losses: mining.rank_sample(key, losses, beta=1.0, k=4),
        (KEYS, LOSSES),
        False,
    ),
    Row(
        "mining.joint_sample",
        lambda key, scores: mining.joint_sample(key, scores, k=4, chunks=2),
        (KEYS, _normal(9, 9)),
        False,
    ),
    Row(
        "mining.over_batch",
        lambda losses: mining.over_batch(mining.top_k)(losses.reshape(7, 10), k=4),
        (LOSSES,),
        False,
    ),
    Row(
        "mining.prune_weights",
        lambda key, losses: mining.prune_weights(key, losses, rate=0.5),
        (KEYS, LOSSES),
        False,
    ),
    Row(
        "mining.emphasis_weights",
        lambda losses, where: mining.emphasis_weights(losses > 2, where, hard=2.0),
        (LOSSES, WHERE),
        False,
    ),
    Row(
        "mining.kept_indices",
        lambda losses, where: mining.kept_indices(losses, where, capacity=5),
        (LOSSES, WHERE),
    ),
    Row("mining.batch_hard", mining.batch_hard, (abs(_normal(9, 9)), LABELS[:, :9]), False),
    Row(
        "mining.semi_hard",
        lambda distances, labels: mining.semi_hard(distances, labels, margin=0.5),
        (abs(_normal(9, 9)), LABELS[:, :9]),
        False,
    ),
    Row("mining.score_table", _table, (LABELS, LOSSES), False),
    Row(
        "mining.masked_mean with weights",
        lambda losses, where: mining.masked_mean(losses, where=where, weights=losses),
        (LOSSES, WHERE),
        False,
    ),
    Row("mining.masked_mean", lambda losses, where: mining.masked_mean(losses, where=where), (LOSSES, WHERE)),
    Row("mining.stats", lambda losses, keep: mining.stats(losses, keep), (LOSSES, WHERE)),
    Row("mining.schedule", lambda step: mining.schedule(step, start=9, k=2, steps=4), (np.arange(ROWS),)),
    Row("mining.mine", _mine, MINED, False),
    Row("mining.mine in chunks", functools.partial(_mine, chunk=32), MINED, False),
    Row("mining.mine reusing", functools.partial(_mine, reuse=True), MINED, False),
    Row("mining.hard_pool", _pool, (LABELS, LOSSES, KEYS), False),
    Row("pose.heatmap_mse", pose.heatmap_mse, (MAPS, MAPS[::-1].copy())),
    Row(
        "pose.heatmap_mse where",
        lambda *a: pose.heatmap_mse(*a[:2], where=a[2]),
        (MAPS, MAPS[::-1].copy(), VISIBLE),
    ),
    Row("pose.ohkm", lambda *a: pose.ohkm(*a[:2], k=2, where=a[2]), (MAPS, MAPS[::-1].copy(), VISIBLE)),
    Row(
        "pose.encode_heatmaps",
        lambda p, w: pose.encode_heatmaps(p, size=(9, 7), sigma=2.0, where=w),
        (POINTS, VISIBLE),
    ),
    *(
        Row(f"pose.decode_heatmaps {method}", functools.partial(pose.decode_heatmaps, method=method), (MAPS,))
        for method in ("dark", "quarter", "argmax")
    ),
    Row("pose.flip_heatmaps", lambda maps: pose.flip_heatmaps(maps, skeleton=SKELETON), (MAPS,)),
    Row("pose.heatmap_to_image", lambda p: pose.heatmap_to_image(p, stride=4), (POINTS,)),
    Row("pose.image_to_heatmap", lambda p: pose.image_to_heatmap(p, stride=4), (POINTS,)),
    Row(
        "pose.apply_affine",
        pose.apply_affine,
        (np.tile(np.eye(2, 3, dtype=np.float32), (ROWS, 1, 1)), POINTS),
        False,
    ),
    Row(
        "pose.oks",
        lambda p, t, w: pose.oks(p, t, area=np.float32(99), sigmas=jnp.full(3, 0.1), where=w),
        (POINTS, POINTS + 1, VISIBLE),
    ),
    Row("pose.pck", lambda p, t, w: pose.pck(p, t, reference=20.0, where=w), (POINTS, POINTS + 1, VISIBLE)),
    Row(
        "pose.pck_correct",
        lambda p, t, w: pose.pck_correct(p, t, reference=20.0, where=w),
        (POINTS, POINTS + 1, VISIBLE),
    ),
    Row("pose.pckh", lambda p, t, w: pose.pckh(p, t, reference=20.0, where=w), (POINTS, POINTS + 1, VISIBLE)),
    Row(
        "pose.oks_nms",
        lambda p, s: pose.oks_nms(
            p, s, jnp.full(9, 99.0), sigmas=jnp.full(3, 0.1), threshold=0.5, max_kept=4
        ),
        (_places(9, 3, 2), LOSSES[:, :9]),
        False,
    ),
    Row("pose.person_scores", pose.person_scores, (LOSSES[:, :9].reshape(ROWS, 3, 3), LOSSES[:, :3])),
    Row("detection.area", detection.area, (UNIT_BOXES,)),
    Row("detection.clip_boxes", lambda boxes: detection.clip_boxes(boxes, size=(12, 9)), (UNIT_BOXES,)),
    Row("detection.decode_boxes", detection.decode_boxes, (UNIT_BOXES, _normal(UNITS, 4))),
    Row("detection.encode_boxes", detection.encode_boxes, (UNIT_BOXES, UNIT_BOXES + 1)),
    Row("detection.iou", detection.iou, (UNIT_BOXES, _boxes(5))),
    Row("detection.match", detection.match, (UNIT_BOXES, _boxes(5), LABELS[:, :5])),
    Row(
        "detection.match anchors",
        lambda *a: detection.match(*a, background=0.4, force=True),
        (UNIT_BOXES, _boxes(5), LABELS[:, :5]),
    ),
    Row(
        "detection.soft_nms",
        lambda boxes, scores, labels: detection.soft_nms(boxes, abs(scores), max_kept=6, labels=labels),
        (UNIT_BOXES, LOSSES, LABELS),
    ),
    Row(
        "detection.nms",
        lambda boxes, scores: detection.nms(boxes, scores, threshold=0.5, max_kept=6),
        (UNIT_BOXES, LOSSES),
        False,
    ),
    Row(
        "detection.ohem",
        lambda losses, boxes, labels: detection.ohem(losses, boxes, k=4, labels=labels),
        (LOSSES, UNIT_BOXES, LABELS),
    ),
    Row(
        "detection.fast_rcnn_losses",
        detection.fast_rcnn_losses,
        (_normal(UNITS, 4), _normal(UNITS, 3, 4), LABELS, _normal(UNITS, 4)),
    ),
    Row("detection.focal_losses", detection.focal_losses, (_normal(UNITS, 3), LABELS)),
    Row("detection.smooth_l1", detection.smooth_l1, (LOSSES,)),
    Row(
        "detection.sample_rois",
        lambda key, labels, overlaps: detection.sample_rois(key, labels, overlaps, k=8),
        (KEYS, LABELS, LOSSES / 4),
        False,
    ),
    *(
        Row(
            f"detection.{name}",
            lambda features, boxes, name=name: getattr(detection, name)(
                features, boxes, size=(2, 3), stride=2
            ),
            (FEATURES, _boxes(5)),
            False,
        )
        for name in ("roi_align", "roi_pool")
    ),
]
every = pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row.name)


def _over_rows(row: Row) -> Callable[..., object]:
    return row.call if row.batched else jax.vmap(row.call)


def _total(call: Callable[..., object]) -> Callable[..., jax.Array]:
    """The sum of what floats come out."""

    def total(*args):
        leaves = [leaf for leaf in jax.tree.leaves(call(*args)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum((jnp.sum(leaf) for leaf in leaves), start=jnp.float32(0))

    return total


def _gradient(call: Callable[..., object], args: tuple[np.ndarray, ...]) -> Callable[..., object]:
    floating = tuple(place for place, arg in enumerate(args) if jnp.issubdtype(arg.dtype, jnp.floating))
    return jax.grad(_total(call), argnums=floating) if floating else lambda *args: ()


def _explicit() -> Mesh:
    return jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])


def _same(found, expected):
    found, expected = jax.tree.map(np.asarray, (found, expected))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


WHOLE = ("masked_mean", "stats", "ohkm")  # One result for all rows.


@every
def test_rows_on_an_explicit_axis(row):
    """Value and gradient, of all rows at once and by `jax.vmap`: as on one device."""

    def both(*args):
        call = _over_rows(row)
        return call(*args), _gradient(call, row.args)(*args), () if row.batched else jax.vmap(row.call)(*args)

    expected, mesh = jax.jit(both)(*row.args), _explicit()
    with jax.set_mesh(mesh):
        placed = [jax.device_put(arg, NamedSharding(mesh, MESH)) for arg in row.args]
        _same(jax.jit(both)(*placed), expected)


@every
def test_rows_over_the_devices_of_shard_map_with_its_default_checks(row):
    if row.name.endswith(WHOLE) or "global_top_k" in row.name:
        return

    def gradient(*args):
        return _gradient(_over_rows(row), row.args)(*args)

    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "other"))
    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=MESH, out_specs=MESH, axis_names={"data"})
    _same(jax.jit(mapped)(*row.args), jax.jit(gradient)(*row.args))


NAMES = "mining.top_k detection.ohem detection.roi_align detection.roi_pool".split()
ELSEWHERE = [("tpu", row) for row in FUNCTIONS if row.name in NAMES]
ELSEWHERE += [("cuda", row) for row in FUNCTIONS if row.name == "mining.top_k"]


@pytest.mark.parametrize("platform, row", ELSEWHERE, ids=lambda it: getattr(it, "name", it))
def test_formulations_for_accelerators(platform, row, as_on):
    """As on CPU, value and gradient: on an Explicit axis, and over the devices of shard_map."""

    def both(*args):
        return _over_rows(row)(*args), _gradient(_over_rows(row), row.args)(*args)

    expected, explicit = jax.jit(both)(*row.args), _explicit()
    as_on(platform)
    with jax.set_mesh(explicit):
        placed = [jax.device_put(arg, NamedSharding(explicit, MESH)) for arg in row.args]
        _same(jax.jit(both)(*placed), expected)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "other"))
    mapped = jax.shard_map(both, mesh=mesh, in_specs=MESH, out_specs=MESH, axis_names={"data"})
    _same(jax.jit(mapped)(*row.args), expected)


@every
def test_results_are_written_by_export(row):
    exported = jax.export.export(jax.jit(_over_rows(row)))(*row.args)
    again = jax.export.deserialize(exported.serialize())
    assert again.out_tree == exported.out_tree
    jax.export.export(jax.jit(_over_rows(row)), platforms=("tpu", "cuda"))(*row.args)


def test_every_function_is_here():
    on_the_host = {
        *("affine_matrix", "box_to_centre_scale", "flip_keypoints", "half_body", "invert_affine"),
        *("average_precision", "make_anchors", "selective_search"),
    }
    named = {row.name.split()[0] for row in FUNCTIONS}
    for module in (mining, pose, detection):
        public = {name for name in module.__all__ if not isinstance(getattr(module, name), type)}
        short = module.__name__.split(".")[-1]
        assert {f"{short}.{name}" for name in public - on_the_host} <= named


_RANK = "top_k threshold hard_negatives harder_than_easiest importance_weights random_k".split()
RANKING = [row for row in FUNCTIONS if row.name.removeprefix("mining.") in _RANK]


@pytest.mark.parametrize("row", RANKING, ids=lambda row: row.name)
def test_units_on_an_explicit_axis_are_refused_in_a_sentence(row):
    mesh = _explicit()
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="`global_top_k` inside jax.shard_map"):
        args = [arg[0] for arg in row.args]
        cut = [
            jax.device_put(arg, NamedSharding(mesh, MESH)) if arg.shape[:1] == (UNITS,) else arg
            for arg in args
        ]
        row.call(*cut)


def test_the_loops_of_long_rows_run_without_jit():
    with jax.disable_jit():
        keep = mining.top_k(LOSSES, k=3)
    np.testing.assert_array_equal(keep, mining.top_k(LOSSES, k=3))


def test_no_units_and_no_rows():
    none = jnp.zeros((2, 0))
    assert mining.non_max(none, jnp.zeros((2, 0, 0))).shape == (2, 0)
    assert mining.threshold(none, min_loss=0.5).shape == (2, 0)
    assert mining.harder_than_easiest(none).shape == (2, 0)
    assert mining.hard_negatives(none, positive=none > 0).shape == (2, 0)
    assert mining.top_k(none, k=jnp.int32(3)).shape == (2, 0)
    assert mining.importance_weights(jax.random.key(0), none, k=jnp.int32(3)).shape == (2, 0)
    assert mining.masked_mean(none, where=None) == 0 and mining.stats(none, none > 0).fraction_kept == 0
    maps = jnp.ones((0, 4, 4, 9))
    assert pose.heatmap_mse(maps, maps).shape == (0, 9) and pose.ohkm(maps, maps) == 0
