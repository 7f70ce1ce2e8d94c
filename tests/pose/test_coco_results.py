"""The COCO procedure on constructed detections: against plain loops and faster-coco-eval called by itself."""

import json

import numpy as np
import pytest

from hardmine_jax.pose.coco_results import coco_results

faster_coco_eval = pytest.importorskip(
    "faster_coco_eval", reason="COCO AP needs faster-coco-eval, in the extra `train`"
)

from hardmine_jax.pose.coco_eval import coco_average_precision  # noqa: E402

NAMES = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
SIGMAS = (0.026, 0.079, 0.072, 0.107, 0.087)
K = len(SIGMAS)


def _truth(rng) -> list[dict]:
    """Ten images: medium and large people, small ones, some with labels missing, unlabelled ones, crowds."""
    annotations = []
    for image in range(1, 11):
        for _ in range(rng.integers(2, 6)):
            side = rng.choice([25, 60, 80, 150, 250])
            corner = rng.uniform(0, 400, 2)
            points = corner + rng.uniform(0, side, (K, 2))
            visibility = rng.choice([0, 1, 2], K, p=[0.2, 0.3, 0.5])
            kind = rng.choice(["labelled", "unlabelled", "crowd"], p=[0.7, 0.15, 0.15])
            visibility = visibility if kind == "labelled" else np.zeros(K)
            points = np.where(visibility[:, None] > 0, points, 0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "keypoints": np.column_stack([points, visibility]).ravel().tolist(),
                    "num_keypoints": int((visibility > 0).sum()),
                    "area": float(side * side * 0.6),
                    "bbox": [*corner.tolist(), float(side), float(side)],
                    "iscrowd": int(kind == "crowd"),
                }
            )
    return annotations


def _found(rng, truth) -> dict[str, np.ndarray]:
    """Several detections around every annotation, of all scores, and false alarms: about 30 an image."""
    image_ids, keypoints, boxes = [], [], []
    for annotation in truth:
        x, y, width, height = annotation["bbox"]
        triples = np.reshape(annotation["keypoints"], (K, 3))
        inside = [x, y] + rng.uniform(0, 1, (K, 2)) * [width, height]
        points = np.where(triples[:, 2:] > 0, triples[:, :2], inside)
        for noise in (0.01, 0.012, 0.05, 0.2, 0.2, 0.3, 0.3):
            image_ids.append(annotation["image_id"])
            keypoints.append(points + rng.normal(0, noise * width, (K, 2)))
            boxes.append(width * height * 1.25**2)
    for _ in range(60):
        image_ids.append(rng.integers(1, 11))
        keypoints.append(rng.uniform(0, 500, (K, 2)))
        boxes.append(rng.uniform(1000, 60000))
    count = len(image_ids)
    order = rng.permutation(count)
    return {
        "image_ids": np.array(image_ids)[order],
        "keypoints": np.array(keypoints)[order],
        "keypoint_scores": rng.uniform(0, 1, (count, K)),
        "box_scores": rng.random(count),
        "areas": np.array(boxes)[order],
    }


def _directly(results: list[dict], truth: list[dict]) -> list[float]:
    """A results file evaluated by the library alone."""
    images = sorted({item["image_id"] for item in truth})
    content = {
        "images": [{"id": image} for image in images],
        "annotations": truth,
        "categories": [{"id": 1, "name": "person"}],
    }
    ground_truth = faster_coco_eval.COCO(content)
    found = ground_truth.loadRes(json.loads(json.dumps(results)))
    evaluation = faster_coco_eval.COCOeval_faster(
        ground_truth, found, iouType="keypoints", kpt_oks_sigmas=list(SIGMAS)
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return list(evaluation.stats[:10])


def _oks(found, i, j) -> float:
    squared = ((found["keypoints"][i] - found["keypoints"][j]) ** 2).sum(-1)
    area = (found["areas"][i] + found["areas"][j]) / 2
    return np.exp(-squared / (2 * np.array(SIGMAS)) ** 2 / area / 2).mean()


def _by_loop(found, *, limit=None) -> list[dict]:
    """Rescored and suppressed in the plainest way, all that is left or the first `limit`."""
    results = []
    for image in dict.fromkeys(found["image_ids"].tolist()):
        scores = {}
        for row in np.flatnonzero(found["image_ids"] == image):
            high = [score for score in found["keypoint_scores"][row] if score > 0.2]
            scores[row] = found["box_scores"][row] * (np.mean(high) if high else 0.0)
        kept = []
        for row in sorted(scores, key=lambda row: -scores[row]):
            if all(_oks(found, row, other) <= 0.9 for other in kept):
                kept.append(row)
        for row in kept[:limit]:
            triples = np.column_stack([found["keypoints"][row], found["keypoint_scores"][row]])
            results.append(
                {
                    "image_id": image,
                    "category_id": 1,
                    "keypoints": triples.ravel().tolist(),
                    "score": float(scores[row]),
                }
            )
    return results


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    truth = _truth(rng)
    return truth, _found(rng, truth)


def test_results_are_the_plain_loops(problem):
    _, found = problem
    results, expected = coco_results(**found, sigmas=SIGMAS), _by_loop(found, limit=20)
    assert len(results) == len(expected) < len(_by_loop(found)) < len(found["image_ids"])
    for result, wanted in zip(results, expected, strict=True):
        assert result["image_id"] == wanted["image_id"]
        assert result["score"] == pytest.approx(wanted["score"], rel=1e-5)
        np.testing.assert_array_equal(result["keypoints"], wanted["keypoints"])


def test_ap_is_the_librarys_own_on_the_whole_list(problem):
    """Crowds, unlabelled people, small ones; what comes after the 20th of an image changes nothing."""
    truth, found = problem
    assert {item["iscrowd"] for item in truth} == {0, 1}
    assert any(not item["iscrowd"] and not item["num_keypoints"] for item in truth)
    expected = dict(zip(NAMES, _directly(_by_loop(found), truth), strict=True))
    results = coco_results(**found, sigmas=SIGMAS)
    # A file with them holds the same as the list itself.
    results = json.loads(json.dumps(results))
    measured = coco_average_precision(results, truth, sigmas=SIGMAS)
    assert measured == pytest.approx(expected, abs=1e-9)
    assert all(0.1 < value < 0.95 for value in measured.values()), measured


def test_without_crowds_and_unlabelled_people_the_score_is_another(problem):
    truth, found = problem
    results = coco_results(**found, sigmas=SIGMAS)
    labelled = [item for item in truth if item["num_keypoints"]]
    everybody = coco_average_precision(results, truth, sigmas=SIGMAS)["AP"]
    assert coco_average_precision(results, labelled, sigmas=SIGMAS)["AP"] < everybody - 0.01


def test_perfect_predictions_score_one(problem):
    truth, _ = problem
    labelled = [item for item in truth if item["num_keypoints"]]
    keypoints = np.array([np.reshape(item["keypoints"], (K, 3))[:, :2] for item in labelled])
    rng = np.random.default_rng(1)
    # Each twice: the copy is taken out, or it would be a false alarm.
    results = coco_results(
        np.repeat([item["image_id"] for item in labelled], 2),
        np.repeat(keypoints, 2, axis=0),
        rng.uniform(0.3, 1, (2 * len(labelled), K)),
        box_scores=rng.uniform(0.1, 1, 2 * len(labelled)),
        areas=np.repeat([item["area"] for item in labelled], 2),
        sigmas=SIGMAS,
    )
    assert len(results) == len(labelled)
    measured = coco_average_precision(results, truth, sigmas=SIGMAS)
    assert measured == pytest.approx(dict.fromkeys(NAMES, 1.0))


def test_one_image_of_many_people_and_the_best_few():
    rng = np.random.default_rng(2)
    keypoints, scores = rng.uniform(0, 1e4, (100, K, 2)), rng.uniform(0.5, 1, (100, K))
    ones = np.ones(100)
    results = coco_results(
        np.full(100, 3), keypoints, scores, box_scores=ones, areas=1000 * ones, sigmas=SIGMAS, max_people=7
    )
    best = np.argsort(-scores.mean(1))[:7]
    np.testing.assert_array_equal([result["keypoints"][:2] for result in results], keypoints[best, 0])


def test_more_may_be_asked_for_than_there_are_people():
    keypoints, ones = np.arange(3 * K * 2).reshape(3, K, 2) * 100.0, np.ones(3)
    results = coco_results(
        np.full(3, 7), keypoints, np.ones((3, K)), box_scores=ones, areas=ones, sigmas=SIGMAS, max_people=500
    )
    assert [result["keypoints"][0] for result in results] == keypoints[:, 0, 0].tolist()


def test_nobody_is_no_result_and_wrong_shapes_are_refused():
    nobody = dict(
        image_ids=np.zeros(0, int), keypoints=np.zeros((0, K, 2)), keypoint_scores=np.zeros((0, K)),
        box_scores=np.zeros(0), areas=np.zeros(0),
    )  # fmt: skip
    assert coco_results(**nobody, sigmas=SIGMAS) == []
    with pytest.raises(ValueError, match=r"\(0, 5, 2\), .* must be .* K=4"):
        coco_results(**nobody, sigmas=SIGMAS[:4])
    with pytest.raises(ValueError, match="max_people=0 < 1"):
        coco_results(**nobody, sigmas=SIGMAS, max_people=0)
