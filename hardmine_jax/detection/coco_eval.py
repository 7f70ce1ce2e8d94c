"""COCO's AP and AR of boxes, through faster-coco-eval. Host side; boxes are xyxy in pixels, labels 1 .. C.

Not part of `hardmine_jax.detection`: `from hardmine_jax.detection.coco_eval import coco_average_precision`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from hardmine_jax.detection.metrics import Found, Truth, checked_images

_NAMES = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR{}", "ARS", "ARM", "ARL")


def coco_average_precision(
    detections: Sequence[Found],
    ground_truth: Sequence[Truth],
    *,
    classes: Sequence[str],
    max_detections: int = 100,
) -> dict[str, float]:
    """Average precision and recall over IoU 0.50, 0.55 ... 0.95, at most so many found a class and image.

    Takes what `average_precision` takes. Difficult objects are handed on as crowds (`iscrowd`): any number of
    detections may lie in one, by the part of their own area, and none of them counts.

    Args:
      detections: one for each image; plain tuples do.
      ground_truth: one for each image, in the same order.
      classes: names of labels 1 .. C.
      max_detections: a class and image, the best ones; above 10. COCO's own tables are by 100: where an image
        shows more objects of a class, no detector finds them all by that.

    Returns:
      AP, AP50, AP75; APS, APM, APL (area of the box below 32^2, up to 96^2, and above; COCO's own tables take
      the area of the outline); AR1, AR10, AR100 (by the number of detections, the last
      by that of max_detections), ARS, ARM, ARL. Each in 0 .. 1,
      and -1, as COCO has it, where there is no object to find.

    Raises:
      ValueError: if the two are not of one length, arrays of an image do not fit, a label is not 1 .. C, or
        max_detections is not above 10.
    """
    if max_detections <= 10:
        raise ValueError(f"max_detections={max_detections} must be above 10, which AR10 takes")
    found: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    num_images = 0
    images = checked_images(detections, ground_truth, num_classes=len(classes))
    for number, (image, truth) in enumerate(images):
        found += [
            {"image_id": number, "category_id": int(label), "bbox": _xywh(box), "score": float(score)}
            for box, score, label in zip(*image, strict=True)
        ]
        objects += [
            {"image_id": number, "category_id": int(label), "bbox": _xywh(box), "iscrowd": int(difficult)}
            for box, label, difficult in zip(*truth, strict=True)
        ]
        num_images = number + 1
    for number, item in enumerate(objects, start=1):
        # The evaluator takes id 0 for "not matched".
        item |= {"id": number, "area": item["bbox"][2] * item["bbox"][3]}
    return _evaluate(found, objects, num_images, classes, max_detections)


def _xywh(box: np.ndarray) -> list[float]:
    return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]


def _evaluate(
    found: list[dict[str, Any]],
    objects: list[dict[str, Any]],
    num_images: int,
    classes: Sequence[str],
    max_detections: int,
) -> dict[str, float]:
    categories = [{"id": label, "name": name} for label, name in enumerate(classes, start=1)]
    images = [{"id": number} for number in range(num_images)]
    truth = COCO({"images": images, "annotations": objects, "categories": categories})
    evaluation = COCOeval_faster(truth, truth.loadRes(found), iouType="bbox")
    evaluation.params.maxDets = [1, 10, max_detections]
    evaluation.run()
    stats = evaluation.all_stats[: len(_NAMES)]
    names = [name.format(max_detections) for name in _NAMES]
    return {name: float(value) for name, value in zip(names, stats, strict=True)}
