"""COCO AP through faster-coco-eval: perfect, empty, and in between as `oks` says."""

import numpy as np
import pytest

from hardmine_jax.pose import oks

pytest.importorskip("faster_coco_eval", reason="COCO AP needs faster-coco-eval, in the extra `train`")

from hardmine_jax.pose.coco_eval import coco_average_precision  # noqa: E402

SIGMAS = (0.05, 0.03, 0.08, 0.1)
AREAS = np.array([2000.0, 4000.0, 20000.0, 50000.0])


def _truth(rng: np.random.Generator) -> list[dict]:
    """Four images with a person each, two of medium size and two large, one keypoint unlabelled."""
    people = []
    for image, area in enumerate(AREAS):
        keypoints = np.concatenate([rng.uniform(0, 200, (4, 2)), [[2], [1], [2], [0]]], axis=1)
        people.append({"image_id": 10 + image, "keypoints": keypoints, "area": area, "category_id": 1})
    return people


def _found(truth: list[dict], shift: float = 0.0, score: float = 0.9) -> list[dict]:
    return [
        {"image_id": item["image_id"], "keypoints": item["keypoints"] + [[shift, 0, 0]], "score": score}
        for item in truth
    ]


@pytest.fixture
def truth() -> list[dict]:
    return _truth(np.random.default_rng(0))


def test_perfect_predictions_score_one(truth):
    assert coco_average_precision(_found(truth), truth, sigmas=SIGMAS) == pytest.approx(
        {name: 1.0 for name in ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")}
    )


def test_no_predictions_score_zero(truth):
    assert set(coco_average_precision([], truth, sigmas=SIGMAS).values()) == {0.0}


def test_no_ground_truth_scores_minus_one(truth):
    assert set(coco_average_precision(_found(truth), [], sigmas=SIGMAS).values()) == {-1.0}
    assert set(coco_average_precision([], [], sigmas=SIGMAS).values()) == {-1.0}


@pytest.mark.parametrize("shift", [2.0, 5.0, 12.0])
def test_shifted_predictions_score_as_oks_says(truth, shift):
    found = _found(truth, shift)
    target = np.stack([item["keypoints"] for item in truth]).astype(np.float32)
    predicted = np.stack([item["keypoints"] for item in found]).astype(np.float32)
    where = target[..., 2] > 0
    similarity = np.asarray(
        oks(predicted[..., :2], target[..., :2], area=AREAS.astype(np.float32), sigmas=SIGMAS, where=where)
    )
    assert 0.05 < similarity.min() < 0.95
    result = coco_average_precision(found, truth, sigmas=SIGMAS)
    levels = np.linspace(0.5, 0.95, 10)
    # One person an image: recall at a level is the share of people whose OKS reaches it.
    recall = (similarity[:, None] >= levels).mean(axis=0)
    assert result["AR"] == pytest.approx(recall.mean())
    assert result["AR50"] == pytest.approx(recall[0])
    assert result["ARL"] == pytest.approx((similarity[2:, None] >= levels).mean())
    assert result["ARM"] == pytest.approx((similarity[:2, None] >= levels).mean())


def test_precision_falls_with_a_false_alarm_that_scores_higher(truth):
    alarm = _found(truth[:1], shift=1e4, score=0.99)
    result = coco_average_precision(_found(truth) + alarm, truth, sigmas=SIGMAS)
    # The alarm comes first, so precision is n / (n + 1) at best: 4/5.
    assert result["AP"] == pytest.approx(0.8, abs=1e-3)
    assert result["AR"] == 1.0


def test_people_without_labels_are_ignored_and_empty_images_count(truth):
    unlabelled = {"image_id": 99, "keypoints": [0.0] * 12, "area": 4000.0, "bbox": [0, 0, 50, 80]}
    inside = {"image_id": 99, "keypoints": [25.0, 40.0, 1.0] * 4, "score": 0.99}
    assert coco_average_precision(_found(truth) + [inside], truth + [unlabelled], sigmas=SIGMAS)["AP"] == 1.0
    # The same prediction on an image where nobody is annotated is a false alarm.
    assert coco_average_precision(_found(truth) + [inside], truth, sigmas=SIGMAS)["AP"] < 0.9


def test_the_category_is_1_and_no_crowd_where_nothing_is_said(truth):
    said = coco_average_precision(_found(truth, 5.0), truth, sigmas=SIGMAS)
    silent = [{key: item[key] for key in ("image_id", "keypoints", "area")} for item in truth]
    found = [{**item, "category_id": 1} for item in _found(truth, 5.0)]
    assert coco_average_precision(found, silent, sigmas=SIGMAS) == said
    # The box and the count that follow from the labelled keypoints are those that COCO would give.
    spans = [item["keypoints"][item["keypoints"][:, 2] > 0, :2] for item in truth]
    whole = [
        {**item, "bbox": [*span.min(0), *np.ptp(span, axis=0)], "num_keypoints": 3, "iscrowd": 0}
        for item, span in zip(silent, spans, strict=True)
    ]
    assert coco_average_precision(found, whole, sigmas=SIGMAS) == said


def test_numbers_may_be_text(truth):
    text = [
        {
            **item,
            "image_id": str(item["image_id"]),
            "category_id": "1",
            "area": str(item["area"]),
            "iscrowd": "0",
        }
        for item in truth
    ]
    found = [{**item, "image_id": str(item["image_id"]), "score": "0.9"} for item in _found(truth, 5.0)]
    assert coco_average_precision(found, text, sigmas=SIGMAS) == coco_average_precision(
        _found(truth, 5.0), truth, sigmas=SIGMAS
    )


def test_inputs_stay_as_they_are_and_nothing_is_printed(truth, capfd):
    before = [dict(item) for item in truth]
    found = _found(truth)
    coco_average_precision(found, truth, sigmas=SIGMAS)
    assert [sorted(item) for item in truth] == [sorted(item) for item in before]
    assert all(sorted(item) == ["image_id", "keypoints", "score"] for item in found)
    assert capfd.readouterr() == ("", "")


def test_another_number_of_keypoints_names_both(truth):
    with pytest.raises(ValueError, match="12 numbers in keypoints, but 3 sigmas"):
        coco_average_precision([], truth, sigmas=SIGMAS[:3])


def test_ids_may_be_text_and_whole_numbers_of_any_kind(truth):
    expected = coco_average_precision(_found(truth, 5.0), truth, sigmas=SIGMAS)
    kinds = (str, float, np.int64, lambda number: f"frame {number}")
    for kind in kinds:
        here = [item | {"image_id": kind(item["image_id"]), "category_id": "mouse"} for item in truth]
        found = [item | {"category_id": "mouse"} for item in _found(here, 5.0)]
        assert coco_average_precision(found, here, sigmas=SIGMAS) == expected
        # Without one they are of the only category that there is.
        assert coco_average_precision(_found(here, 5.0), here, sigmas=SIGMAS) == expected


def test_predictions_of_another_category_alone_are_refused(truth):
    here = [item | {"category_id": 2} for item in truth]
    found = [item | {"category_id": 1} for item in _found(truth)]
    with pytest.raises(ValueError, match="predictions of category_id 1, annotations of 2: .*in common"):
        coco_average_precision(found, here, sigmas=SIGMAS)
    mixed = found + [item | {"category_id": 2.0} for item in _found(truth)]
    assert coco_average_precision(mixed, here, sigmas=SIGMAS)["AP"] == 1.0


def test_more_than_twenty_people_a_picture_count_where_that_is_asked_for(truth):
    many = [
        truth[0] | {"keypoints": item} for item in truth[0]["keypoints"] + np.arange(30)[:, None, None] * 1e3
    ]
    many = [item | {"keypoints": np.where([False, False, True], 2, item["keypoints"])} for item in many]
    assert coco_average_precision(_found(many), many, sigmas=SIGMAS)["AR"] == pytest.approx(20 / 30)
    assert coco_average_precision(_found(many), many, sigmas=SIGMAS, max_people=30)["AP"] == 1.0
    assert coco_average_precision(_found(many), many, sigmas=SIGMAS, max_people=15)["AR"] == 0.5
    with pytest.raises(ValueError, match="max_people=0 < 1"):
        coco_average_precision([], many, sigmas=SIGMAS, max_people=0)
