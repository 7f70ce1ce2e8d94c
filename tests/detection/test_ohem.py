"""OHEM as the paper words it: suppression by the loss, then the k hardest that are left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.detection import iou, ohem
from hardmine_jax.mining import non_max, top_k

SURVIVORS = jax.jit(non_max, static_argnames="max_kept")


def _losses(shape, seed: int = 0) -> np.ndarray:
    # Many ties.
    return np.random.default_rng(seed).integers(0, 60, shape).astype(np.float32)


@pytest.mark.parametrize("k", [1, 64, 300])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.5, 0.7, 1.0])
def test_the_first_k_are_the_k_hardest_of_the_survivors(heaps, k, iou_threshold):
    boxes, losses = heaps(300), _losses(300)
    where = np.random.default_rng(1).random(300) < 0.8
    survivors = SURVIVORS(losses, iou(boxes, boxes), threshold=iou_threshold, where=where)
    expected = top_k(losses, k=k, where=survivors)
    keep = ohem(losses, boxes, k=k, iou_threshold=iou_threshold, where=where)
    np.testing.assert_array_equal(keep, expected)
    assert keep.sum() == min(k, survivors.sum())


def test_labels_suppress_only_their_own(heaps):
    boxes, losses = heaps(200), _losses(200)
    labels = np.random.default_rng(2).integers(0, 4, 200)
    survivors = np.zeros(200, bool)
    for label in range(4):
        survivors |= np.asarray(SURVIVORS(losses, iou(boxes, boxes), where=labels == label))
    assert survivors.sum() > ohem(losses, boxes, k=200).sum()
    for k in (10, 200):
        keep = ohem(losses, boxes, k=k, labels=labels)
        np.testing.assert_array_equal(keep, top_k(losses, k=k, where=survivors))


def test_one_of_each_heap():
    heap = np.array([[0, 0, 20, 20], [1, 0, 21, 20], [0, 1, 20, 21]], np.float32)
    boxes = np.concatenate([heap, heap + 100, heap + 200])
    losses = np.array([1, 2, 3, 9, 8, 7, 5, 6, 4], np.float32)
    np.testing.assert_array_equal(np.flatnonzero(ohem(losses, boxes, k=5)), [2, 3, 7])
    np.testing.assert_array_equal(np.flatnonzero(ohem(losses, boxes, k=2)), [3, 7])
    np.testing.assert_array_equal(np.flatnonzero(ohem(losses, boxes, k=2, iou_threshold=1.0)), [3, 4])


@pytest.mark.parametrize("labelled", [False, True])
def test_batches_jit_and_vmap_are_loops(heaps, labelled):
    boxes, losses = heaps(240).reshape(2, 3, 40, 4), _losses((2, 3, 40))
    labels = _losses((2, 3, 40), seed=3).astype(int) % 3
    where = np.random.default_rng(4).random(losses.shape) < 0.7

    def select(losses, boxes, labels, where):
        return ohem(losses, boxes, k=8, labels=labels if labelled else None, where=where)

    args = losses, boxes, labels, where
    alone = jax.jit(select)
    keep = jax.jit(select)(*args)
    mapped = jax.jit(jax.vmap(jax.vmap(select)))(*args)
    for row in np.ndindex(2, 3):
        expected = alone(*(array[row] for array in args))
        np.testing.assert_array_equal(keep[row], expected)
        np.testing.assert_array_equal(mapped[row], expected)


def test_padding_and_boxes_without_area_suppress_nothing(heaps):
    boxes, losses = heaps(40), _losses(40) + np.float32(1)
    boxes[20:] = 0
    where = np.arange(40) < 20
    dirty = np.where(where, losses, np.float32(np.inf))
    expected = ohem(losses[:20], boxes[:20], k=10)
    np.testing.assert_array_equal(ohem(dirty, boxes, k=10, where=where)[:20], expected)
    assert ohem(losses, boxes, k=40)[20:].all()


def test_no_gradient_flows(heaps):
    boxes, losses = heaps(20), _losses(20)

    def loss(losses, boxes):
        keep = ohem(losses, boxes, k=5).astype(jnp.float32)
        return (keep * losses).sum() + (keep * boxes[:, 0]).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(losses, boxes)
    keep = np.asarray(ohem(losses, boxes, k=5), np.float32)
    np.testing.assert_array_equal(gradients[0], keep)
    np.testing.assert_array_equal(gradients[1][:, 0], keep)
    np.testing.assert_array_equal(gradients[1][:, 1:], 0)


def test_memory_is_in_proportion_to_n():
    """From the compiled program: a matrix of all pairs would be 4 N bytes a region."""

    def run(losses, boxes, labels):
        return ohem(losses, boxes, k=128, labels=labels)

    shapes = [((8192,), jnp.float32), ((8192, 4), jnp.float32), ((8192,), jnp.int32)]
    lowered = jax.jit(run).lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    assert lowered.compile().memory_analysis().temp_size_in_bytes <= 100 * 8192


def test_plain_lists_do(heaps):
    boxes, losses, labels = heaps(9), _losses(9), np.arange(9) % 2
    by_list = ohem(losses.tolist(), boxes.tolist(), k=3, labels=labels.tolist())
    np.testing.assert_array_equal(by_list, ohem(losses, boxes, k=3, labels=labels))


def test_refusals(heaps):
    boxes, losses = heaps(5), _losses(5)
    with pytest.raises(ValueError, match="k=6 > N=5"):
        ohem(losses, boxes, k=6)
    with pytest.raises(ValueError, match="k=0 < 1"):
        ohem(losses, boxes, k=0)
    for threshold in (70, 1.5, -0.5):
        with pytest.raises(ValueError, match=f"iou_threshold={threshold} must lie in 0 .. 1"):
            ohem(losses, boxes, k=2, iou_threshold=threshold)
    with pytest.raises(ValueError, match=r"boxes of shape \(4, 4\) != \(5, 4\)"):
        ohem(losses, boxes[:4], k=2)
    with pytest.raises(ValueError, match=r"labels of shape \(4,\) != \(5,\)"):
        ohem(losses, boxes, k=2, labels=np.zeros(4, int))
