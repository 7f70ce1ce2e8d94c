"""COCO's keypoint AP and AR, through faster-coco-eval. Host side; pixels as in the annotation file.

Not part of `hardmine_jax.pose`: `from hardmine_jax.pose.coco_eval import coco_average_precision`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

_NAMES = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")


def coco_average_precision(
    predictions: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    *,
    sigmas: Sequence[float] | np.ndarray,
    max_people: int = 20,
) -> dict[str, float]:
    """Average precision and recall over OKS 0.50, 0.55 ... 0.95, at most `max_people` predictions an image.

    Ids are whole numbers or text, and 1, 1.0 and "1" are the same.

    Args:
      predictions: COCO results: dicts with `image_id`, `keypoints` (3 K numbers: x, y and anything) and
        `score`; `category_id` if the annotations have several.
      annotations: COCO annotations: dicts with `image_id`, `keypoints` (3 K numbers: x, y, visibility, 0
        unlabelled) and `area`; `category_id` if not 1. `iscrowd`, `num_keypoints` and `bbox` (x, y, w, h)
        are used where given. One without a labelled keypoint is ignored: finding it is neither good nor bad.
      sigmas: K, the dataset's own (`Skeleton.sigmas`).
      max_people: of an image's predictions so many with the best scores count, 1 or more; 20 in COCO.

    Returns:
      AP, AP50, AP75, APM, APL (area 32^2 .. 96^2, and above), AR, AR50, AR75, ARM, ARL; each in 0 .. 1, 0
      without predictions, and -1, as COCO has it, where there is no ground truth to find.

    Raises:
      ValueError: for an annotation or a prediction whose keypoints are not 3 K numbers, for predictions none
        of which is of a category of the annotations, and for max_people < 1.
    """
    if max_people < 1:
        raise ValueError(f"max_people={max_people} < 1: give how many people an image may have")
    truth = [_annotation(item, index + 1, len(sigmas)) for index, item in enumerate(annotations)]
    categories = {item["category_id"] for item in truth}
    only = next(iter(categories)) if len(categories) == 1 else _id(1)
    found = [_prediction(item, len(sigmas), only) for item in predictions]
    if truth and found and categories.isdisjoint(item["category_id"] for item in found):
        theirs = {item["category_id"] for item in found}
        raise ValueError(
            f"predictions of category_id {_listed(theirs)}, annotations of {_listed(categories)}: they have "
            "no category in common, and nothing would be found"
        )
    for name in ("image_id", "category_id"):
        _count_ids(truth + found, name)
    ground_truth = COCO(
        {
            "images": [{"id": image} for image in sorted({item["image_id"] for item in truth + found})],
            "annotations": truth,
            "categories": [{"id": category} for category in sorted({item["category_id"] for item in truth})],
        }
    )
    evaluation = COCOeval_faster(
        ground_truth, ground_truth.loadRes(found), iouType="keypoints", kpt_oks_sigmas=list(sigmas)
    )
    evaluation.params.maxDets = [max_people]
    evaluation.run()
    return {name: float(value) for name, value in zip(_NAMES, evaluation.all_stats, strict=True)}


def _id(given: Any) -> int | str:
    """Whole numbers as such, also those written as text or with a point; other text as it is."""
    text = str(int(given) if isinstance(given, float) and given.is_integer() else given)
    return int(text) if text.removeprefix("-").isdecimal() and str(int(text)) == text else text


def _count_ids(items: Sequence[dict[str, Any]], name: str) -> None:
    """Numbers in place of ids that are text, which the evaluator cannot take."""
    ids = {item[name] for item in items}
    if any(isinstance(one, str) for one in ids):
        numbers = {one: number for number, one in enumerate(sorted(ids, key=str), start=1)}
        for item in items:
            item[name] = numbers[item[name]]


def _listed(ids: Iterable[int | str]) -> str:
    return ", ".join(sorted(map(str, ids))[:10])


def _prediction(item: Mapping[str, Any], num_keypoints: int, category_id: int | str) -> dict[str, Any]:
    return {
        "image_id": _id(item["image_id"]),
        "category_id": _id(item.get("category_id", category_id)),
        "keypoints": _triples(item, num_keypoints).ravel().tolist(),
        "score": float(item["score"]),
    }


def _annotation(item: Mapping[str, Any], number: int, num_keypoints: int) -> dict[str, Any]:
    triples = _triples(item, num_keypoints)
    labelled = triples[triples[:, 2] > 0, :2]
    corner, opposite = (labelled.min(axis=0), labelled.max(axis=0)) if len(labelled) else np.zeros((2, 2))
    return {
        # The evaluator takes id 0 for "not matched", and two equal ids for one annotation.
        "id": number,
        "image_id": _id(item["image_id"]),
        "category_id": _id(item.get("category_id", 1)),
        "keypoints": triples.ravel().tolist(),
        "num_keypoints": int(item.get("num_keypoints", len(labelled))),
        "area": float(item["area"]),
        "bbox": [float(side) for side in item.get("bbox", (*corner, *(opposite - corner)))],
        "iscrowd": int(item.get("iscrowd", 0)),
    }


def _triples(item: Mapping[str, Any], num_keypoints: int) -> np.ndarray:
    keypoints = np.asarray(item["keypoints"], np.float64).ravel()
    if len(keypoints) != 3 * num_keypoints:
        raise ValueError(
            f"image {item['image_id']}: {len(keypoints)} numbers in keypoints, but {num_keypoints} sigmas: "
            f"give (x, y, visibility) for each keypoint, {3 * num_keypoints} numbers"
        )
    return keypoints.reshape(-1, 3)
