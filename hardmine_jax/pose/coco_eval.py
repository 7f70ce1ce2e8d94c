"""COCO's keypoint AP and AR, through faster-coco-eval. Host side; pixels as in the annotation file.

Not part of `hardmine_jax.pose`: `from hardmine_jax.pose.coco_eval import coco_average_precision`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

_NAMES = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")


def coco_average_precision(
    predictions: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    *,
    sigmas: Sequence[float] | np.ndarray,
) -> dict[str, float]:
    """Average precision and recall over OKS 0.50, 0.55 ... 0.95, at most 20 predictions an image.

    Args:
      predictions: COCO results: dicts with `image_id`, `keypoints` (3 K numbers: x, y and anything) and
        `score`; `category_id` if not 1.
      annotations: COCO annotations: dicts with `image_id`, `keypoints` (3 K numbers: x, y, visibility, 0
        unlabelled) and `area`; `category_id` if not 1. `iscrowd`, `num_keypoints` and `bbox` (x, y, w, h)
        are used where given. One without a labelled keypoint is ignored: finding it is neither good nor bad.
      sigmas: K, the dataset's own (`Skeleton.sigmas`).

    Returns:
      AP, AP50, AP75, APM, APL (area 32^2 .. 96^2, and above), AR, AR50, AR75, ARM, ARL; each in 0 .. 1, 0
      without predictions, and -1, as COCO has it, where there is no ground truth to find.

    Raises:
      ValueError: for an annotation or a prediction whose keypoints are not 3 K numbers.
    """
    truth = [_annotation(item, index + 1, len(sigmas)) for index, item in enumerate(annotations)]
    found = [_prediction(item, len(sigmas)) for item in predictions]
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
    evaluation.run()
    return {name: float(value) for name, value in zip(_NAMES, evaluation.all_stats, strict=True)}


def _prediction(item: Mapping[str, Any], num_keypoints: int) -> dict[str, Any]:
    return {
        "image_id": int(item["image_id"]),
        "category_id": int(item.get("category_id", 1)),
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
        "image_id": int(item["image_id"]),
        "category_id": int(item.get("category_id", 1)),
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
