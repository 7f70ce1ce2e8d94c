"""Which ground truth a box belongs to: a plain loop, ties, padding, nothing to match."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.detection import encode_boxes, iou, match
from hardmine_jax.detection.match import part_inside


def _by_loop(boxes, gt_boxes, gt_labels, foreground, where):
    labels, nearest, overlaps, indices = [], [], [], []
    for box, row in zip(boxes, np.asarray(iou(boxes, gt_boxes)), strict=True):
        best, index = 0.0, None
        for m in np.flatnonzero(where):
            if row[m] > best:
                best, index = row[m], m
        labels.append(gt_labels[index] if best >= np.float32(foreground) else 0)
        nearest.append(box if index is None else gt_boxes[index])
        overlaps.append(best)
        indices.append(index or 0)
    return np.array(labels), np.array(nearest), np.array(overlaps), np.array(indices)


@pytest.mark.parametrize("foreground", [0.3, 0.5, 0.7])
def test_is_the_plain_loop(heaps, foreground):
    boxes = heaps(200)
    gt_boxes = boxes[:150:10] + np.float32([1, -1, 2, 3])
    rng = np.random.default_rng(0)
    gt_labels, where = rng.integers(1, 5, 15), rng.random(15) < 0.8
    gt_boxes[3] = gt_boxes[7]
    gt_boxes[4, 2:] = gt_boxes[4, :2]
    matched = jax.jit(lambda *args: match(*args, foreground=foreground, where=where))(
        boxes, gt_boxes, gt_labels
    )
    chex.assert_type([matched.labels, matched.indices], jnp.int32)
    chex.assert_shape(matched, [(200,), (200, 4), (200,), (200,)])
    expected = _by_loop(boxes, gt_boxes, gt_labels, foreground, where)
    assert 10 < (expected[0] > 0).sum() < 190
    for ours, theirs in zip(matched, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_ties_go_to_the_lowest_index():
    box = np.array([[0, 0, 10, 10]], np.float32)
    matched = match(
        box, np.array([[0, 0, 10, 5], [0, 5, 10, 10], [0, 0, 10, 5]], np.float32), jnp.array([3, 2, 1])
    )
    assert matched.indices[0] == 0 and matched.labels[0] == 3
    # Equal to `foreground` is an object.
    assert matched.overlaps[0] == 0.5


def test_background_has_the_nearest_box_too():
    matched = match(jnp.array([[0.0, 0, 10, 10]]), jnp.array([[8.0, 0, 18, 10]]), jnp.array([4]))
    assert matched.labels[0] == 0 and matched.overlaps[0] > 0
    np.testing.assert_array_equal(matched.boxes[0], [8, 0, 18, 10])


@pytest.mark.parametrize("flaw", ["none", "padded", "garbage", "no area", "far"])
def test_nothing_to_match(flaw):
    boxes = np.array([[0, 0, 10, 10], [3, 4, 3, 4], [0, 0, 0, 0], [9, 9, 2, 2]], np.float32)
    gt_boxes, where = {
        "none": (np.zeros((0, 4)), np.zeros(0, bool)),
        "padded": (boxes[:1], np.zeros(1, bool)),
        "garbage": (np.full((1, 4), np.nan), np.zeros(1, bool)),
        "no area": (np.array([[2, 2, 2, 8]]), np.ones(1, bool)),
        "far": (np.array([[50, 50, 60, 60]]), np.ones(1, bool)),
    }[flaw]
    gt_boxes = gt_boxes.astype(np.float32)
    matched = match(boxes, gt_boxes, np.full(len(where), 3), where=where)
    chex.assert_shape(matched, [(4,), (4, 4), (4,), (4,)])
    chex.assert_type(matched, [jnp.int32, jnp.float32, jnp.float32, jnp.int32])
    np.testing.assert_array_equal(matched.labels, 0)
    np.testing.assert_array_equal(matched.overlaps, 0)
    np.testing.assert_array_equal(matched.indices, 0)
    np.testing.assert_array_equal(matched.boxes, boxes)
    np.testing.assert_array_equal(encode_boxes(boxes, matched.boxes), np.zeros_like(boxes))


def test_batches_and_vmap_are_loops(heaps):
    boxes, gt_boxes = heaps(60).reshape(3, 20, 4), heaps(12).reshape(3, 4, 4)
    gt_labels = np.arange(1, 13).reshape(3, 4)
    where = np.arange(4) < np.array([[4], [2], [0]])
    alone = jax.jit(lambda *args: match(*args[:3], where=args[3]))
    together = alone(boxes, gt_boxes, gt_labels, where)
    mapped = jax.jit(jax.vmap(alone))(boxes, gt_boxes, gt_labels, where)
    for row in range(3):
        expected = alone(boxes[row], gt_boxes[row], gt_labels[row], where[row])
        for batched in (together, mapped):
            chex.assert_trees_all_close(jax.tree.map(lambda x, row=row: x[row], batched), expected)


def test_a_batch_of_images_without_ground_truth():
    matched = match(np.ones((2, 5, 4)), np.zeros((2, 0, 4)), np.zeros((2, 0), int))
    chex.assert_shape(matched, [(2, 5), (2, 5, 4), (2, 5), (2, 5)])


def test_plain_lists_and_labels_of_few_bits_do():
    boxes, gt_boxes = [[0.0, 0.0, 10.0, 10.0]], [[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 10.0]]
    matched = match(boxes, gt_boxes, [3, 4], where=[True, False])
    assert matched.labels.tolist() == [3]
    matched = match(boxes, gt_boxes, np.uint8([3, 4]), foreground=1.0)
    assert matched.labels.tolist() == [4] and matched.labels.dtype == jnp.int32


def test_no_gradient_flows(heaps):
    boxes, gt_boxes = heaps(20), heaps(4)

    def total(boxes, gt_boxes):
        matched = match(boxes, gt_boxes, jnp.arange(1, 5))
        return matched.overlaps.sum() + matched.boxes.sum()

    for gradient in jax.grad(total, argnums=(0, 1))(boxes, gt_boxes):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_refusals(heaps):
    boxes, labels = heaps(5), np.ones(3, int)
    for foreground in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"foreground={foreground} must be above 0, up to 1"):
            match(boxes, heaps(3), labels, foreground=foreground)
    with pytest.raises(ValueError, match=r"boxes \(4,\) and gt_boxes \(3, 4\)"):
        match(boxes[0], heaps(3), labels)
    with pytest.raises(ValueError, match=r"gt_boxes \(4, 4\), gt_labels \(3,\)"):
        match(boxes, heaps(4), labels)
    with pytest.raises(ValueError, match="where must be bool, not float32"):
        match(boxes, heaps(3), labels, where=np.ones(3, np.float32))
    with pytest.raises(
        ValueError, match=r"boxes \(1, 5, 4\) and gt_boxes \(3, 4\) must have the same leading"
    ):
        match(boxes[None], heaps(3), labels)


def test_the_part_inside_is_by_the_box_s_own_area(heaps):
    boxes, regions = heaps(80), heaps(12)
    boxes[3, 2:], regions[2, 2:], boxes[5, 1] = boxes[3, :2], regions[2, :2], np.nan
    where = np.random.default_rng(0).random(12) < 0.7
    expected = np.zeros(80)
    for n, (x1, y1, x2, y2) in enumerate(boxes.astype(np.float64)):
        for region in regions[where].astype(np.float64):
            across, down = min(x2, region[2]) - max(x1, region[0]), min(y2, region[3]) - max(y1, region[1])
            if across > 0 and down > 0:
                expected[n] = max(expected[n], across * down / ((x2 - x1) * (y2 - y1)))
    assert 5 < (expected > 0.5).sum() < 75
    inside = jax.jit(part_inside)(boxes, regions, where=where)
    np.testing.assert_allclose(inside, expected, atol=1e-5)
    np.testing.assert_array_equal(
        jax.vmap(part_inside)(boxes[None], regions[None])[0], part_inside(boxes, regions)
    )
    assert not part_inside(boxes, regions[:0]).any()
    gradient = jax.grad(lambda boxes: part_inside(boxes, regions).sum())(boxes)
    np.testing.assert_array_equal(gradient, 0)


def test_what_does_not_fit_a_region_is_refused():
    boxes, where = jnp.zeros((3, 4)), jnp.ones(2, bool)
    for regions, given, message in (
        (jnp.zeros((5, 4)), where, "must be"),
        (jnp.zeros((2, 4)), where.astype(int), "must be bool"),
        (jnp.zeros((1, 2, 4)), where[None], "must be"),
    ):
        with pytest.raises(ValueError, match=message):
            part_inside(boxes, regions, where=given)


def test_each_object_has_its_best_anchor_and_the_band_between_is_neither(heaps):
    boxes = heaps(200)
    # Objects that no box overlaps enough, two with the same best box, one that touches none, one that is out.
    gt_boxes = np.concatenate([boxes[:60:10] + np.float32([20, -20, 30, 10]), boxes[7:8], boxes[7:8] + 1])
    gt_boxes = np.concatenate([gt_boxes, np.float32([[9e3, 9e3, 9.1e3, 9.1e3]]), boxes[9:10]])
    labels, where = np.arange(1, 11), np.arange(10) != 9
    pairs = np.asarray(iou(boxes, gt_boxes)) * where
    plain = match(boxes, gt_boxes, labels, foreground=0.7, where=where)
    found = match(boxes, gt_boxes, labels, foreground=0.7, background=0.4, force=True, where=where)
    forced = {}
    for m in np.argsort(pairs.max(0), kind="stable"):
        if pairs[:, m].max() > 0:
            forced[int(pairs[:, m].argmax())] = m
    assert len(forced) < 9 and any(pairs[n, m] < 0.7 for n, m in forced.items())
    for n in range(200):
        m = forced.get(n, int(plain.indices[n]))
        enough = n in forced or plain.overlaps[n] >= 0.7
        assert found.labels[n] == (labels[m] if enough else -1 if plain.overlaps[n] >= 0.4 else 0)
        assert found.indices[n] == m and found.overlaps[n] == pairs[n, m]
        np.testing.assert_array_equal(found.boxes[n], gt_boxes[m] if pairs[n, m] > 0 else boxes[n])
    assert (np.asarray(found.labels) == -1).any() and (np.asarray(plain.labels) >= 0).all()


@pytest.mark.parametrize("background", [-0.1, 0, 0.6, np.nan])
def test_a_band_that_is_none_is_refused(background):
    with pytest.raises(ValueError, match="must be above 0, up to foreground=0.5"):
        match(np.zeros((1, 4)), np.zeros((1, 4)), np.ones(1, int), background=background)
