"""COCO AP of boxes: a constructed set against faster-coco-eval called by itself, and cases by hand."""

import numpy as np
import pytest

from hardmine_jax.detection import Detections, GroundTruth, average_precision

faster_coco_eval = pytest.importorskip(
    "faster_coco_eval", reason="COCO AP needs faster-coco-eval, in the extra `train`"
)

from hardmine_jax.detection.coco_eval import coco_average_precision  # noqa: E402

NAMES = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR100", "ARS", "ARM", "ARL")
CLASSES = ("a", "b", "c")


def _set(difficult: bool) -> tuple[list[Detections], list[GroundTruth]]:
    """Eight images, objects of all three sizes, found more or less well and with false alarms."""
    rng = np.random.default_rng(0)
    detections, ground_truth = [], []
    for _ in range(8):
        corner = rng.uniform(0, 200, (6, 2))
        side = rng.choice([20, 60, 150], (6, 1)) * rng.uniform(0.8, 1.2, (6, 2))
        truth = GroundTruth(
            np.concatenate([corner, corner + side], axis=1),
            rng.integers(1, 4, 6),
            rng.random(6) < 0.2 if difficult else None,
        )
        boxes = np.repeat(truth.boxes, 3, axis=0) + rng.normal(0, 4, (18, 4))
        alarms = np.concatenate([corner[::-1], corner[::-1] + 40], axis=1)
        detections.append(
            Detections(
                np.concatenate([boxes, alarms]),
                rng.random(24),
                np.concatenate([np.repeat(truth.labels, 3), rng.integers(1, 4, 6)]),
            )
        )
        ground_truth.append(truth)
    return detections, ground_truth


def _directly(detections, ground_truth) -> list[float]:
    annotations, results = [], []
    for image, (found, truth) in enumerate(zip(detections, ground_truth, strict=True)):
        crowd = np.zeros(len(truth.labels), int) if truth.difficult is None else truth.difficult.astype(int)
        for (x1, y1, x2, y2), label, is_crowd in zip(truth.boxes, truth.labels, crowd, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(is_crowd),
                }
            )
        for (x1, y1, x2, y2), score, label in zip(*found, strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": image, "category_id": int(label), "bbox": box, "score": float(score)})
    truth = faster_coco_eval.COCO(
        {
            "images": [{"id": image} for image in range(len(ground_truth))],
            "annotations": annotations,
            "categories": [{"id": label} for label in range(1, len(CLASSES) + 1)],
        }
    )
    evaluation = faster_coco_eval.COCOeval_faster(truth, truth.loadRes(results), iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return list(evaluation.stats[:12])


@pytest.mark.parametrize("difficult", [False, True])
def test_is_faster_coco_eval_called_by_itself(difficult):
    detections, ground_truth = _set(difficult)
    result = coco_average_precision(detections, ground_truth, classes=CLASSES)
    expected = dict(zip(NAMES, _directly(detections, ground_truth), strict=True))
    assert result == pytest.approx(expected)
    assert all(0.1 < value < 1 for value in result.values()), result


def test_perfect_detections_score_one():
    _, ground_truth = _set(False)
    found = [Detections(truth.boxes, np.ones(6), truth.labels) for truth in ground_truth]
    result = coco_average_precision(found, ground_truth, classes=CLASSES)
    assert tuple(result) == NAMES
    assert result == pytest.approx(dict.fromkeys(NAMES, 1.0) | {"AR1": result["AR1"]})


def test_shifted_by_a_tenth():
    # Overlap 9 / 11 = 0.82 reaches 0.50 ... 0.80: seven levels of ten.
    truth = GroundTruth(np.array([[0, 0, 100, 100]]), np.array([1]))
    found = Detections(np.array([[10, 0, 110, 100]]), np.array([0.5]), np.array([1]))
    result = coco_average_precision([found], [truth], classes=("a",))
    assert (result["AP"], result["AP50"], result["AP75"]) == pytest.approx((0.7, 1, 1))
    assert (result["APL"], result["AR100"]) == pytest.approx((0.7, 0.7))
    assert (result["APS"], result["APM"]) == (-1, -1)


@pytest.mark.parametrize("box", [[0, 0, 10, 200], [0, 0, 200, 10]])
def test_sizes_go_by_the_area_of_the_box_whatever_its_sides(box):
    """2,000 square pixels are medium; 10 or 200 squared would be small or large."""
    truth, found = (
        GroundTruth(np.array([box]), np.array([1])),
        Detections(np.array([box]), np.ones(1), np.ones(1)),
    )
    result = coco_average_precision([found], [truth], classes=("a",))
    assert (result["APS"], result["APM"], result["APL"]) == (-1, pytest.approx(1), -1)


def test_ap50_is_close_to_voc():
    """COCO reads the curve at 101 recalls, VOC at every one."""
    detections, ground_truth = _set(False)
    voc = average_precision(detections, ground_truth, classes=CLASSES)
    coco = coco_average_precision(detections, ground_truth, classes=CLASSES)
    assert coco["AP50"] == pytest.approx(voc.mean, abs=0.03)


def test_nothing_found_and_nothing_there(capfd):
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    empty = GroundTruth(np.zeros((0, 4)), np.zeros(0, int))
    detections, ground_truth = _set(False)
    found_none = coco_average_precision([nothing] * 8, ground_truth, classes=CLASSES)
    assert set(found_none.values()) == {0.0}
    for found in ([nothing] * 8, detections):
        assert set(coco_average_precision(found, [empty] * 8, classes=CLASSES).values()) == {-1.0}
    assert set(coco_average_precision([], [], classes=CLASSES).values()) == {-1.0}
    assert capfd.readouterr() == ("", "")


def test_more_than_a_hundred_objects_where_asked_for():
    corner = 20.0 * np.stack(np.meshgrid(np.arange(15), np.arange(10)), -1).reshape(-1, 2)
    boxes, labels = np.concatenate([corner, corner + 12], 1), np.ones(150, int)
    given = [(boxes, np.linspace(1, 0.5, 150), labels)], [(boxes, labels)]
    assert coco_average_precision(*given, classes=("a",))["AR100"] == pytest.approx(100 / 150)
    most = coco_average_precision(*given, classes=("a",), max_detections=200)
    assert most["AP"] == most["AR200"] == 1.0 and "AR100" not in most
    with pytest.raises(ValueError, match="max_detections=10 must be above 10"):
        coco_average_precision(*given, classes=("a",), max_detections=10)


def test_a_label_that_is_no_class_is_refused():
    truth = GroundTruth(np.array([[0, 0, 100, 100]]), np.array([4]))
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    with pytest.raises(ValueError, match=r"image 0: labels \[4\] are not all in 1 .. C=3"):
        coco_average_precision([nothing], [truth], classes=CLASSES)
