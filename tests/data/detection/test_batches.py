"""Batches of detection records: static shapes, the same whatever reads them, nothing silently lost."""

import itertools
import logging

import chex
import numpy as np
import pytest

from hardmine_jax.data.detection import synthetic
from hardmine_jax.data.detection.augment import DetectionAugmentConfig
from hardmine_jax.data.detection.batches import evaluation_images, train_images
from hardmine_jax.data.stream import endless_batches, ordered_batches

NUM_RECORDS = 7
LIMITS = dict(size=(96, 128), max_boxes=6, max_proposals=10)


class ListSource:
    """Records in memory; module-level so that worker processes can unpickle it."""

    def __init__(self, records: list[dict]):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        return self._records[index]

    def changed(self, index: int, **changes) -> "ListSource":
        return ListSource([{**record, **(changes if record["index"] == index else {})} for record in self])

    def __iter__(self):
        return iter(self._records)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> ListSource:
    folder = tmp_path_factory.mktemp("cache")
    made = synthetic.load(num_train=NUM_RECORDS, num_validation=1, cache_dir=folder).train
    return ListSource(list(made))


def found(index: int) -> np.ndarray:
    """As many proposals as the index says times three; best first they come from left to right."""
    x = np.arange(3 * index, dtype=np.float32)[:, None]
    return np.concatenate([x, x, x + 40, x + 30], -1)


def start(source, **options):
    defaults = dict(batch_size=3, config=DetectionAugmentConfig(short_sides=(64, 80)), seed=3, **LIMITS)
    return _train(source, found, **{**defaults, **options})


_OF_STREAM = ("batch_size", "seed", "num_workers", "prefetch", "shard_index", "shard_count")


def _train(source, proposals, **options):
    of_stream = {name: options.pop(name) for name in _OF_STREAM if name in options}
    return endless_batches(source, train_images(proposals, **options), **of_stream)


def _evaluation(source, proposals, **options):
    of_stream = {name: options.pop(name) for name in _OF_STREAM if name in options}
    return ordered_batches(source, evaluation_images(proposals, **options), **of_stream)


def take(batches, count: int) -> list[dict]:
    return list(itertools.islice(batches, count))


def assert_same(first: list[dict], second: list[dict]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def check_batch(batch: dict, batch_size: int) -> None:
    shapes = {
        "image": (96, 128, 3), "image_size": (2,), "scale": (), "boxes": (6, 4), "labels": (6,),
        "boxes_where": (6,), "difficult": (6,), "crowd": (6,), "proposals": (10, 4), "proposals_where": (10,),
        "index": (), "where": (),
    }  # fmt: skip
    assert batch.keys() == shapes.keys()
    for name, shape in shapes.items():
        chex.assert_shape(batch[name], (batch_size, *shape))
    types = {name: value.dtype.name for name, value in batch.items()}
    assert {name for name, dtype in types.items() if dtype == "float32"} == {"scale", "boxes", "proposals"}
    assert {name for name, dtype in types.items() if dtype == "int32"} == {"image_size", "labels", "index"}
    assert (
        types["image"] == "uint8" and types["difficult"] == types["crowd"] == types["boxes_where"] == "bool"
    )
    for name, where in (("boxes", "boxes_where"), ("proposals", "proposals_where")):
        there, absent = batch[name][batch[where]], batch[name][~batch[where]]
        assert (there[:, 2:] > there[:, :2]).all() and not absent.any()
    np.testing.assert_array_equal(batch["labels"] > 0, batch["boxes_where"])


def test_shapes_types_and_rows(source):
    (batch,) = take(start(source, batch_size=NUM_RECORDS), 1)
    check_batch(batch, NUM_RECORDS)
    assert batch["where"].all()
    for row, index in enumerate(batch["index"]):
        assert batch["boxes_where"][row].sum() == len(source[index]["boxes"])
        assert batch["proposals_where"][row].sum() == min(3 * index, 10)
        there = batch["boxes_where"][row]
        np.testing.assert_array_equal(batch["labels"][row][there], source[index]["labels"])


def test_of_more_proposals_the_best_stay_in_their_places(source):
    batches = _evaluation(source, found, batch_size=NUM_RECORDS, **LIMITS)
    (batch,) = batches
    np.testing.assert_allclose(
        batch["proposals"][6] / batch["scale"][6], found(6)[:10], rtol=1e-5
    )  # 18 were found.
    assert not batch["proposals_where"][0].any()


def test_proposals_may_be_a_sequence_and_empty(source):
    sequence = [found(index) for index in range(NUM_RECORDS)]
    by_place = start(source, config=DetectionAugmentConfig())
    batches = _train(source, sequence, batch_size=3, config=DetectionAugmentConfig(), seed=3, **LIMITS)
    assert_same(take(by_place, 3), take(batches, 3))


def test_more_objects_than_room_is_an_error_that_names_the_picture(source):
    index = max(range(NUM_RECORDS), key=lambda place: len(source[place]["labels"]))
    count = len(source[index]["labels"])
    message = f"shows {count} objects > max_boxes={count - 1}: give max_boxes={count} or more"
    with pytest.raises(ValueError, match=f"{source[index]['name']} {message}"):
        list(_evaluation(source, found, batch_size=1, **{**LIMITS, "max_boxes": count - 1}))


def test_difficult_and_crowd_stay_with_their_object(source):
    index = next(place for place in range(NUM_RECORDS) if len(source[place]["labels"]) >= 2)
    difficult = np.zeros(len(source[index]["labels"]), bool)
    difficult[1] = True
    changed = source.changed(index, difficult=difficult, crowd=difficult)
    (batch,) = _evaluation(changed, found, batch_size=NUM_RECORDS, **LIMITS)
    for name in ("difficult", "crowd"):
        assert np.argwhere(batch[name]).tolist() == [[index, 1]]


def test_a_box_that_clipping_leaves_no_side_takes_no_part(source):
    thin = np.float32([[10, 10, 20, 20], [159.9999999, 5, 160, 9]])
    changed = source.changed(0, boxes=thin, labels=np.int32([1, 2]), difficult=np.ones(2, bool))
    (batch,) = _evaluation(changed, found, batch_size=NUM_RECORDS, **LIMITS)
    check_batch(batch, NUM_RECORDS)
    assert batch["boxes_where"][0].tolist() == [True] + [False] * 5


def test_the_seed_decides_and_resuming_gives_what_would_have_followed(source):
    expected = take(start(source), 6)
    assert_same(take(start(source), 6), expected)
    first = start(source)
    take(first, 2)
    second = start(source)
    second.set_state(first.get_state())
    assert_same(take(second, 4), expected[2:])
    epoch = np.concatenate([batch["index"] for batch in take(start(source), 7)]).reshape(3, NUM_RECORDS)
    np.testing.assert_array_equal(np.sort(epoch, -1), np.tile(np.arange(NUM_RECORDS), (3, 1)))


def test_worker_processes_change_nothing(source):
    expected = take(start(source), 3)
    batches = start(source, num_workers=2)
    assert_same(take(batches, 3), expected)
    batches.close()


def test_an_unreadable_image_is_counted_and_replaced(source, caplog):
    broken = source.changed(4, image=b"gone")
    batches = start(broken, batch_size=NUM_RECORDS)
    with caplog.at_level(logging.WARNING):
        (batch,) = take(batches, 1)
    assert sorted(batch["index"]) == [0, 1, 2, 3, 5, 5, 6] and batches.unreadable == {4}
    (batch,) = _evaluation(broken, found, batch_size=NUM_RECORDS, **LIMITS)
    np.testing.assert_array_equal(batch["where"], np.arange(NUM_RECORDS) != 4)
    assert batch["index"][4] == -1 and not batch["image"][4].any() and not batch["boxes_where"][4].any()


def test_evaluation_is_ordered_finite_padded_and_repeatable(source):
    batches = _evaluation(source, found, batch_size=3, short_side=48, **LIMITS)
    taken = list(batches)
    for batch in taken:
        check_batch(batch, 3)
    np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in taken]), [*range(7), -1, -1])
    np.testing.assert_array_equal(taken[-1]["where"], [True, False, False])
    np.testing.assert_array_equal(taken[0]["image_size"], [[48, 48]] * 3)
    assert_same(taken, list(batches))


@pytest.mark.parametrize("changes", [{"size": (0, 9)}, {"max_boxes": 0}, {"max_proposals": 0}])
def test_numbers_out_of_range_are_named(source, changes):
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f"{name}="):
        start(source, **{name: value})
