"""What is special to `non_max`; the laws it shares are in tests/test_selector_contract.py."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.mining import non_max


def _boxes(num_units: int, seed: int = 0) -> np.ndarray:
    """Corners of boxes in clusters of about ten, [N, 4] float32."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 300, (max(1, num_units // 10), 2))
    xy = centres[rng.integers(len(centres), size=num_units)] + rng.normal(0, 6, (num_units, 2))
    return np.concatenate([xy, xy + rng.uniform(30, 60, (num_units, 2))], axis=-1).astype(np.float32)


def _iou(boxes, index, module=jnp):
    """The row of box `index`, in float32 in the same order of operations whatever the module."""
    left, top, right, bottom = (boxes[..., side] for side in range(4))
    width = module.minimum(right, right[index]) - module.maximum(left, left[index])
    height = module.minimum(bottom, bottom[index]) - module.maximum(top, top[index])
    overlap = module.maximum(width, 0) * module.maximum(height, 0)
    area = (right - left) * (bottom - top)
    return overlap / (area + area[index] - overlap)


def _matrix(boxes) -> np.ndarray:
    return np.stack([_iou(boxes, index, np) for index in range(len(boxes))])


def _textbook(losses, matrix, threshold, max_kept, where) -> list[int]:
    """The indices in the order in which they are kept."""
    kept = []
    for i in sorted(np.flatnonzero(where), key=lambda i: (-losses[i], i)):
        if len(kept) < max_kept and all(matrix[j, i] <= np.float32(threshold) for j in kept):
            kept.append(int(i))
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("max_kept", [None, 1, 25, 300])
def test_boxes_equal_the_textbook_loop(threshold, max_kept):
    boxes = _boxes(300)
    rng = np.random.default_rng(1)
    # Many ties.
    losses, where = rng.integers(0, 40, 300).astype(np.float32), rng.random(300) < 0.9
    matrix = _matrix(boxes)
    expected = sorted(_textbook(losses, matrix, threshold, max_kept or 300, where))
    keep = non_max(losses, matrix, threshold=threshold, max_kept=max_kept, where=where)
    assert np.flatnonzero(keep).tolist() == expected


@pytest.fixture
def in_blocks(as_on, monkeypatch):
    """As accelerators do it; the last block begins within the one before."""
    as_on("tpu")
    monkeypatch.setattr(importlib.import_module("hardmine_jax.mining.non_max"), "_BLOCK", 64)


@pytest.mark.parametrize("threshold, max_kept", [(0.3, 25), (0.7, None), (1.0, 70)])
def test_blocks_equal_the_textbook_loop(threshold, max_kept, in_blocks):
    test_boxes_equal_the_textbook_loop(threshold, max_kept)


def test_blocks_cover_in_one_direction_and_by_nan(in_blocks):
    test_row_j_is_that_of_the_kept_unit()
    test_nan_similarity_covers()
    for own in (0.0, 1.0, np.nan):
        test_the_similarity_to_itself_is_never_looked_at(own)
    for num_units in (1, 65):
        test_few_units(num_units)


@pytest.mark.parametrize("max_kept", [None, 3])
def test_rows_of_a_batch_are_independent_in_blocks(max_kept, in_blocks):
    test_rows_of_a_batch_are_independent(max_kept)


def test_a_long_chain_is_settled_in_one_block(in_blocks):
    """Each unit covers the next one only, so that each depends on the one before: every other one stays."""
    chain = np.eye(64, k=1, dtype=np.float32)
    keep = non_max(np.arange(64.0, 0, -1, dtype=np.float32), chain)
    np.testing.assert_array_equal(keep, np.arange(64) % 2 == 0)


@pytest.mark.parametrize("max_kept", [None, 12])
def test_a_row_function_is_the_matrix(max_kept):
    boxes = _boxes(200)
    losses = np.random.default_rng(2).random(200, np.float32)
    rows = jax.jit(
        lambda: non_max(losses, lambda index: _iou(jnp.asarray(boxes), index), max_kept=max_kept)
    )()
    np.testing.assert_array_equal(rows, non_max(losses, _matrix(boxes), max_kept=max_kept))


def test_max_kept_cuts_the_same_order_short():
    boxes = _boxes(120)
    losses = np.random.default_rng(3).random(120, np.float32)
    matrix = _matrix(boxes)
    order = _textbook(losses, matrix, 0.5, 120, np.ones(120, bool))
    for max_kept in (1, 2, 5, len(order), 120):
        keep = non_max(losses, matrix, threshold=0.5, max_kept=max_kept)
        assert np.flatnonzero(keep).tolist() == sorted(order[:max_kept])


@pytest.mark.parametrize("max_kept", [None, 3])
def test_rows_of_a_batch_are_independent(max_kept):
    rng = np.random.default_rng(4)
    losses = rng.random((2, 3, 40), np.float32)
    where = rng.random(losses.shape) < 0.7
    places = rng.random(losses.shape, np.float32)

    def similar(places, index):
        return 1 - jnp.abs(places - jnp.take_along_axis(places, index[..., None], axis=-1))

    def select(losses, places, where):
        return non_max(
            losses, lambda index: similar(places, index), threshold=0.9, max_kept=max_kept, where=where
        )

    keep = select(losses, places, where)
    looped = [select(*row) for row in zip(*(x.reshape(6, 40) for x in (losses, places, where)), strict=True)]
    np.testing.assert_array_equal(keep.reshape(6, 40), np.stack(looped))
    matrix = 1 - np.abs(places[..., :, None] - places[..., None, :])
    keep_by_matrix = non_max(losses, matrix, threshold=0.9, max_kept=max_kept, where=where)
    np.testing.assert_array_equal(keep, keep_by_matrix)


def test_equal_to_the_threshold_is_kept_in_float32():
    # In double precision 0.7 lies above the nearest float32.
    similarity = np.array([[1.0, 0.7], [0.7, 1.0]], np.float32)
    assert non_max(np.ones(2, np.float32), similarity, threshold=0.7).all()
    assert non_max(np.ones(2, np.float32), similarity, threshold=jnp.bfloat16(0.75)).all()
    above = np.nextafter(np.float32(0.7), np.float32(1))
    assert non_max(np.ones(2, np.float32), np.full((2, 2), above), threshold=0.7).sum() == 1


@pytest.mark.parametrize("num_units", [1, 7, 8, 9, 17])
def test_few_units(num_units):
    """Fewer than there are slices, and numbers they do not divide."""
    losses = np.random.default_rng(num_units).integers(0, 4, num_units).astype(np.float32)
    matrix = np.abs(np.subtract.outer(losses, losses)) < 1
    expected = _textbook(losses, matrix.astype(np.float32), 0.5, num_units, np.ones(num_units, bool))
    for max_kept in (None, num_units):
        keep = non_max(losses, matrix, threshold=0.5, max_kept=max_kept)
        assert np.flatnonzero(keep).tolist() == sorted(expected)


def test_row_j_is_that_of_the_kept_unit():
    similarity = np.array([[0.0, 1.0], [0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(non_max(np.array([2.0, 1.0]), similarity), [True, False])
    np.testing.assert_array_equal(non_max(np.array([1.0, 2.0]), similarity), [True, True])


@pytest.mark.parametrize("own", [0.0, 1.0, np.nan])
def test_the_similarity_to_itself_is_never_looked_at(own):
    similarity = np.where(np.eye(3, dtype=bool), np.float32(own), np.float32(0))
    for max_kept in (None, 3):
        assert non_max(np.arange(3.0, dtype=np.float32), similarity, max_kept=max_kept).all()


def test_nan_similarity_covers():
    similarity = np.zeros((3, 3), np.float32)
    similarity[2, 0] = np.nan
    np.testing.assert_array_equal(non_max(np.arange(3.0, dtype=np.float32), similarity), [False, True, True])


@pytest.mark.parametrize("dtype", [bool, np.int32, jnp.bfloat16])
def test_other_dtypes_of_similarity(dtype):
    labels = np.array([0, 1, 0, 1, 2])
    same = (labels[:, None] == labels).astype(dtype)
    keep = non_max(np.array([1.0, 2.0, 3.0, 4.0, 5.0], np.float32), same)
    np.testing.assert_array_equal(keep, [False, False, True, True, True])


@pytest.mark.parametrize("max_kept", [None, 2])
def test_no_gradient_flows_through_similarity(max_kept):
    losses = jnp.array([1.0, 2.0, 3.0])

    def loss(places):
        by_row = non_max(losses, lambda index: 1 - jnp.abs(places - places[index]), max_kept=max_kept)
        by_matrix = non_max(losses, 1 - jnp.abs(places[:, None] - places[None]), max_kept=max_kept)
        return jnp.where(by_row, places, 0).sum() + jnp.where(by_matrix, places, 0).sum()

    gradient = jax.jit(jax.grad(loss))(jnp.array([0.0, 0.9, 1.0]))
    np.testing.assert_array_equal(gradient, [2.0, 0.0, 2.0])


@pytest.mark.parametrize("max_kept, calls", [(None, 4), (3, 3), (9, 9)])
def test_one_row_is_asked_for_each_unit_kept(max_kept, calls):
    asked = []

    def row(index):
        jax.debug.callback(lambda index: asked.append(int(index)), index)
        return (jnp.arange(20) // 5 == index // 5).astype(jnp.float32)

    keep = non_max(jnp.arange(20.0), row, max_kept=max_kept)
    keep.block_until_ready()
    jax.effects_barrier()
    assert len(asked) == calls
    assert int(keep.sum()) == min(4, max_kept or 4)


@pytest.mark.parametrize("max_kept", [None, 128])
def test_the_row_function_needs_memory_in_proportion_to_n(max_kept):
    """From the compiled program: a few vectors; a matrix would be 4 N bytes a unit."""

    def select(losses, boxes):
        return non_max(losses, lambda index: _iou(boxes, index), max_kept=max_kept)

    used = []
    for num_units in (2000, 4000, 8000):
        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(num_units,), (num_units, 4)])
        memory = jax.jit(select).lower(*shapes).compile().memory_analysis()
        used.append(memory.temp_size_in_bytes)
        assert memory.temp_size_in_bytes < 40 * num_units
    assert used[2] - used[1] <= 1.1 * 2 * (used[1] - used[0]) + 4096


def test_refusals():
    losses = jnp.zeros((2, 5))
    with pytest.raises(ValueError, match=r"similarity of shape \(5, 5\) != \(2, 5, 5\)"):
        non_max(losses, jnp.zeros((5, 5)))
    with pytest.raises(ValueError, match=r"similarity\(index\) of shape \(5,\) != losses \(2, 5\)"):
        non_max(losses, lambda index: jnp.zeros(5))
    with pytest.raises(ValueError, match="max_kept=6 > N=5"):
        non_max(losses, jnp.zeros((2, 5, 5)), max_kept=6)
    with pytest.raises(ValueError, match="max_kept=0 < 1.*N=5"):
        non_max(losses, jnp.zeros((2, 5, 5)), max_kept=0)
    with pytest.raises(TypeError, match="max_kept=.* must be a Python int"):
        jax.jit(lambda m: non_max(losses, jnp.zeros((2, 5, 5)), max_kept=m))(3)
