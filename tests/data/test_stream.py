"""Batches: every example once an epoch, the same whatever reads them, resumed where they stopped."""

import itertools
import json
import logging

import chex
import numpy as np
import pytest

from hardmine_jax.data.pose import rendering
from hardmine_jax.data.pose.augment import BORDER, AugmentConfig
from hardmine_jax.data.pose.batches import evaluation_crops, train_crops
from hardmine_jax.data.pose.coco import COCO_SKELETON
from hardmine_jax.data.stream import TrainBatches, endless_batches, ordered_batches

NUM_RECORDS = 11


class ListSource:
    """Records in memory; module-level so that worker processes can unpickle it."""

    def __init__(self, records: list[dict]):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        return self._records[index]


@pytest.fixture(scope="module")
def source() -> ListSource:
    records = []
    for index, example in enumerate(rendering.examples(0, 0, NUM_RECORDS)):
        records.append({**example._asdict(), "name": f"{index:02d}.jpg", "index": index})
    return ListSource(records)


def start(source, **options) -> TrainBatches:
    defaults = dict(batch_size=4, size=(48, 32), skeleton=COCO_SKELETON, config=AugmentConfig(), seed=3)
    options = {**defaults, **options}
    crops = train_crops(*(options.pop(name) for name in ("size", "skeleton", "config")))
    return endless_batches(source, crops, **options)


def take(batches, count: int) -> list[dict]:
    return list(itertools.islice(batches, count))


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_shapes_and_types(source):
    (batch,) = take(start(source), 1)
    assert set(batch) == {"image", "keypoints", "visibility", "index", "inverse", "where"}
    chex.assert_shape(batch["image"], (4, 48, 32, 3))
    chex.assert_shape(batch["keypoints"], (4, 17, 2))
    chex.assert_shape(batch["visibility"], (4, 17))
    chex.assert_shape(batch["inverse"], (4, 2, 3))
    types = {name: value.dtype.name for name, value in batch.items()}
    assert types["image"] == "uint8" and types["where"] == "bool" and batch["where"].all()
    assert types["keypoints"] == types["inverse"] == "float32"
    assert types["visibility"] == types["index"] == "int32"


def test_an_epoch_holds_each_example_once_and_the_next_in_another_order(source):
    stream = np.concatenate([batch["index"] for batch in take(start(source), 11)])
    epochs = stream.reshape(4, NUM_RECORDS)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(NUM_RECORDS))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_an_example_is_augmented_anew_each_epoch(source):
    batches = take(start(source, batch_size=NUM_RECORDS), 2)
    inverse = [batch["inverse"][np.argsort(batch["index"])] for batch in batches]
    assert (np.abs(inverse[0] - inverse[1]).max((1, 2)) > 1e-3).all()


def test_the_seed_decides_everything(source):
    assert_same(take(start(source), 4), take(start(source), 4))
    other = np.concatenate([batch["index"] for batch in take(start(source, seed=4), 4)])
    assert (other != np.concatenate([batch["index"] for batch in take(start(source), 4)])).any()


def test_a_source_smaller_than_a_batch_still_fills_it(source):
    few = ListSource([source[i] for i in range(3)])
    (batch,) = take(start(few, batch_size=8), 1)
    assert batch["where"].all()
    assert sorted(np.bincount(batch["index"])) == [2, 3, 3]


@pytest.mark.parametrize("stop", [0, 1, 3, 7])
def test_resuming_gives_what_would_have_followed(source, stop):
    uninterrupted = take(start(source), stop + 4)
    first = start(source)
    take(first, stop)
    state = json.loads(json.dumps(first.get_state()))
    second = start(source)
    take(second, 2)
    second.set_state(state)
    assert second.get_state() == state
    assert_same(take(second, 4), uninterrupted[stop:])
    assert_same(take(first, 4), uninterrupted[stop:])


def test_batches_prefetched_but_not_taken_are_not_counted(source):
    batches = start(source, prefetch=8)
    take(batches, 2)
    assert batches.get_state() == {"batches": 2}


def test_closing_keeps_the_position(source):
    batches = start(source)
    first = take(batches, 2)
    batches.close()
    assert_same(first + take(batches, 2), take(start(source), 4))


@pytest.mark.parametrize("shard_count", [2, 3])
def test_shards_share_one_stream(source, shard_count):
    whole = take(start(source, batch_size=2 * shard_count), 5)
    shards = [
        take(start(source, batch_size=2, shard_index=i, shard_count=shard_count), 5)
        for i in range(shard_count)
    ]
    for step, batch in enumerate(whole):
        for i, shard in enumerate(shards):
            part = {name: value[2 * i : 2 * i + 2] for name, value in batch.items()}
            assert_same([shard[step]], [part])


def test_worker_processes_of_a_shard(source):
    options = dict(batch_size=2, shard_index=1, shard_count=2)
    batches = start(source, num_workers=2, **options)
    assert_same(take(batches, 3), take(start(source, **options), 3))
    batches.close()


def test_worker_processes_change_nothing(source):
    expected = take(start(source), 5)
    batches = start(source, num_workers=2)
    assert_same(take(batches, 3), expected[:3])
    state = batches.get_state()
    batches.close()
    resumed = start(source)
    resumed.set_state(state)
    assert_same(take(resumed, 2), expected[3:])


def test_an_unreadable_image_is_counted_and_replaced_by_the_next(source, caplog):
    broken = ListSource(
        [{**source[i], "image": b"gone"} if i in (4, 5, 10) else source[i] for i in range(NUM_RECORDS)]
    )
    batches = start(broken, batch_size=NUM_RECORDS)
    with caplog.at_level(logging.WARNING):
        taken = take(batches, 2)
    for batch in taken:
        # 4 and 5 give way to 6, and 10, the last, to 0.
        np.testing.assert_array_equal(np.sort(batch["index"]), [0, 0, 1, 2, 3, 6, 6, 6, 7, 8, 9])
        assert batch["where"].all()
    assert batches.unreadable == {4, 5, 10}
    assert len(caplog.records) == 3
    assert_same(taken, take(start(broken, batch_size=NUM_RECORDS), 2))


def test_nothing_readable_is_an_error(source):
    broken = ListSource([{**source[i], "image": b"gone"} for i in range(3)])
    with pytest.raises(ValueError, match="none of the 3 images"):
        take(start(broken), 1)


def test_evaluation_is_ordered_finite_and_padded(source):
    batches = ordered_batches(source, evaluation_crops((48, 32), COCO_SKELETON), batch_size=4)
    taken = list(batches)
    assert [batch["image"].shape for batch in taken] == [(4, 48, 32, 3)] * 3
    where = np.concatenate([batch["where"] for batch in taken])
    index = np.concatenate([batch["index"] for batch in taken])
    np.testing.assert_array_equal(where, np.arange(12) < NUM_RECORDS)
    np.testing.assert_array_equal(index, [*range(NUM_RECORDS), -1])
    np.testing.assert_array_equal(taken[-1]["image"][-1], np.broadcast_to(np.uint8(BORDER), (48, 32, 3)))
    assert not taken[-1]["visibility"][-1].any()
    assert set(taken[0]) == set(take(start(source), 1)[0])
    assert_same(taken, list(batches))


def test_evaluation_shards_have_as_many_batches_each(source):
    shards = [
        list(
            ordered_batches(
                source,
                evaluation_crops((32, 32), COCO_SKELETON),
                batch_size=2,
                shard_index=i,
                shard_count=4,
            )
        )
        for i in range(4)
    ]
    assert {len(shard) for shard in shards} == {2}
    # One after another they are the batches of one process.
    batches = zip(*shards, strict=True)
    index = np.concatenate([batch["index"][batch["where"]] for parts in batches for batch in parts])
    np.testing.assert_array_equal(index, np.arange(NUM_RECORDS))


def test_an_unreadable_image_is_left_out_of_the_evaluation(source, caplog):
    broken = ListSource([{**source[i], "image": b"gone"} if i == 1 else source[i] for i in range(3)])
    with caplog.at_level(logging.WARNING):
        (batch,) = ordered_batches(broken, evaluation_crops((32, 32), COCO_SKELETON), batch_size=3)
    np.testing.assert_array_equal(batch["where"], [True, False, True])
    np.testing.assert_array_equal(batch["index"], [0, -1, 2])
    assert "record 01.jpg" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"shard_index": 2, "shard_count": 2}, "shard_index=2"),
    ],
)
def test_numbers_out_of_range_are_named(source, options, message):
    with pytest.raises(ValueError, match=message):
        start(source, **options)


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="no records"):
        start(ListSource([]))
    with pytest.raises(ValueError, match="no records"):
        ordered_batches(ListSource([]), evaluation_crops((8, 8), COCO_SKELETON), batch_size=1)
