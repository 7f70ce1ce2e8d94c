"""VOC's average precision: cases worked out by hand, and a slow transcription of the rules."""

import numpy as np
import pytest

from hardmine_jax.detection import Detections, GroundTruth, average_precision


def _square(*lefts: float) -> np.ndarray:
    """Squares of side 10 at x = lefts: those 3 apart overlap 7 / 13, those 5 apart 1 / 3."""
    return np.array([[left, 0, left + 10, 10] for left in lefts], np.float32).reshape(-1, 4)


def _found(lefts, scores, label=1) -> Detections:
    return Detections(_square(*lefts), np.array(scores, np.float32), np.full(len(lefts), label))


def _truth(*lefts: float, label=1, difficult=None) -> GroundTruth:
    return GroundTruth(_square(*lefts), np.full(len(lefts), label), difficult)


def _one(found: Detections, truth: GroundTruth, **options):
    return average_precision([found], [truth], classes=("thing",), **options).classes[0]


def test_by_hand():
    # Right, wrong, right, wrong, and one of three objects never found.
    result = _one(_found([0, 500, 103, 600], [0.9, 0.8, 0.7, 0.6]), _truth(0, 100, 200))
    np.testing.assert_allclose(result.precision, [1, 1 / 2, 2 / 3, 1 / 2])
    np.testing.assert_allclose(result.recall, [1 / 3, 1 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(result.scores, [0.9, 0.8, 0.7, 0.6])
    assert (result.name, result.num_objects) == ("thing", 3)
    assert result.ap == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    # Recalls 0 .. 0.3 at precision 1, 0.4 .. 0.6 at 2/3, the rest out of reach.
    assert result.ap_11_point == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)


def test_a_better_precision_further_on_counts_for_all_before():
    result = _one(_found([500, 0, 100], [0.9, 0.8, 0.7]), _truth(0, 100))
    np.testing.assert_allclose(result.precision, [0, 1 / 2, 2 / 3])
    assert result.ap == pytest.approx(2 / 3)
    assert result.ap_11_point == pytest.approx(2 / 3)


def test_recall_that_equals_a_tenth_reaches_it():
    """3 of 10 found: in floats 3 * 0.1 > 0.3."""
    for found in range(1, 11):
        lefts = [100 * number for number in range(10)]
        result = _one(_found(lefts[:found], np.linspace(0.9, 0.5, found)), _truth(*lefts))
        assert result.ap_11_point == pytest.approx((found + 1) / 11)
        assert result.ap == pytest.approx(found / 10)


def test_a_second_detection_of_an_object_is_wrong():
    result = _one(_found([1, 0], [0.9, 0.8]), _truth(0))
    np.testing.assert_allclose(result.precision, [1, 1 / 2])
    # Even where another object nearby is still free and overlaps enough: the nearest one is its own.
    result = _one(_found([0, 1], [0.9, 0.8]), _truth(0, 3))
    np.testing.assert_allclose(result.recall, [1 / 2, 1 / 2])


def test_difficult_objects_are_neither_good_nor_bad():
    difficult = np.array([False, True])
    result = _one(_found([100, 101, 0], [0.9, 0.8, 0.7]), _truth(0, 100, difficult=difficult))
    np.testing.assert_allclose(result.precision, [1])
    assert (result.num_objects, result.ap, result.ap_11_point) == (1, 1, 1)
    np.testing.assert_allclose(result.scores, [0.7], rtol=1e-6)


def test_overlap_equal_to_the_threshold_is_enough_and_no_pixel_is_added():
    half = Detections(np.array([[0, 0, 10, 5]]), np.ones(1), np.ones(1, int))
    assert _one(half, _truth(0)).ap == 1
    # With a pixel more on each side these would overlap 66 / 121 > 0.5.
    assert _one(half, _truth(0), iou_threshold=0.51).ap == 0


def test_classes_and_images_do_not_meet():
    found = [_found([0], [0.9], label=2), _found([0], [0.8], label=1)]
    truth = [_truth(0, label=1), _truth(0, label=2)]
    result = average_precision(found, truth, classes=("a", "b"))
    assert result.mean == 0
    assert average_precision(found, truth[::-1], classes=("a", "b")).mean == 1


def test_a_class_with_nothing_to_find_is_named_and_left_out():
    found = [_found([0, 100], [0.9, 0.8], label=1), _found([0], [0.7], label=3)]
    truth = [_truth(0, label=1), _truth(0, label=2, difficult=np.array([True]))]
    result = average_precision(found, truth, classes=("a", "b", "c", "d"))
    assert result.without_objects == ("b", "c", "d")
    assert result.mean == result.classes[0].ap == 1
    assert np.isnan([row.ap for row in result.classes[1:]]).all()
    assert np.isnan([row.ap_11_point for row in result.classes[1:]]).all()
    assert len(result.classes[2].precision) == 1 and np.isnan(result.classes[2].recall).all()


def test_nothing_found_and_nothing_there():
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    result = average_precision([nothing, nothing], [_truth(0), _truth()], classes=("a",))
    assert (result.mean, result.mean_11_point) == (0, 0)
    for images in ([], [nothing]):
        result = average_precision(images, [_truth()] * len(images), classes=("a",))
        assert np.isnan(result.mean) and np.isnan(result.mean_11_point) and result.without_objects == ("a",)


def test_ties_stay_as_they_come_and_nan_is_last():
    result = _one(_found([500, 0, 100], [0.5, 0.5, np.nan]), _truth(0, 100))
    np.testing.assert_allclose(result.precision, [0, 1 / 2, 2 / 3])


def _overlap(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _voc_by_loops(detections, ground_truth, label, threshold):
    """The rules of the development kit, one detection after another."""
    taken = [np.zeros(len(truth.labels), bool) for truth in ground_truth]
    rows = [
        (-score, image, number)
        for image, found in enumerate(detections)
        for number, score in enumerate(found.scores)
        if found.labels[number] == label
    ]
    right, wrong = [0], [0]
    for _, image, number in sorted(rows):
        truth, best, at = ground_truth[image], -1.0, None
        for index in np.flatnonzero(truth.labels == label):
            overlap = _overlap(detections[image].boxes[number], truth.boxes[index])
            if overlap > best:
                best, at = overlap, index
        enough = best >= threshold
        ignored = enough and truth.difficult[at]
        good = enough and not ignored and not taken[image][at]
        if good:
            taken[image][at] = True
        right.append(right[-1] + good)
        wrong.append(wrong[-1] + (not good and not ignored))
    objects = sum(int(((truth.labels == label) & ~truth.difficult).sum()) for truth in ground_truth)
    recall = [hits / objects for hits in right[1:]]
    precision = [hits / max(1, hits + misses) for hits, misses in zip(right[1:], wrong[1:], strict=True)]
    eleven = sum(
        max([p for r, p in zip(recall, precision, strict=True) if r >= tenth / 10 - 1e-9], default=0)
        for tenth in range(11)
    )
    area, before = 0.0, 0.0
    for index, r in enumerate(recall):
        area, before = area + (r - before) * max(precision[index:]), r
    return area, eleven / 11


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75])
def test_is_the_slow_transcription(threshold):
    rng = np.random.default_rng(int(100 * threshold))
    detections, ground_truth = [], []
    for _ in range(10):
        objects, found = rng.integers(0, 6), rng.integers(0, 25)
        corner = rng.uniform(0, 60, (objects, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(10, 40, (objects, 2))], axis=1)
        ground_truth.append(GroundTruth(boxes, rng.integers(1, 3, objects), rng.random(objects) < 0.2))
        near = boxes[rng.integers(objects, size=found)] if objects else rng.uniform(0, 90, (found, 4))
        detections.append(
            Detections(
                near + rng.normal(0, 2, (found, 4)), rng.integers(0, 9, found) / 9, rng.integers(1, 3, found)
            )
        )
    result = average_precision(detections, ground_truth, classes=("a", "b"), iou_threshold=threshold)
    for label, row in enumerate(result.classes, start=1):
        expected = _voc_by_loops(detections, ground_truth, label, threshold)
        assert 0.05 < expected[0] < 0.95
        assert (row.ap, row.ap_11_point) == pytest.approx(expected)
    assert result.mean == pytest.approx(np.mean([row.ap for row in result.classes]))


def test_refusals():
    with pytest.raises(ValueError, match="2 images with detections, 1 with ground truth"):
        average_precision([_found([0], [1])] * 2, [_truth(0)], classes=("a",))
    with pytest.raises(ValueError, match=r"image 0: labels \[1 2\] are not all in 1 .. C=1"):
        average_precision([_found([0], [1], label=2)], [_truth(0)], classes=("a",))
    with pytest.raises(ValueError, match="image 0: arrays of its detections have lengths 1, 2, 1"):
        average_precision([_found([0], [1, 2])], [_truth(0)], classes=("a",))
    with pytest.raises(ValueError, match="image 0: arrays of its ground truth have lengths 1, 1, 2"):
        average_precision([_found([0], [1])], [_truth(0, difficult=np.zeros(2, bool))], classes=("a",))
    with pytest.raises(ValueError, match="iou_threshold=0"):
        average_precision([], [], classes=("a",), iou_threshold=0)
