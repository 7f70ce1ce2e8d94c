"""The ground truth of COCO's keypoint evaluation: everything a file annotates, also what nobody trains on.

A crowd, and a person without a labelled keypoint, are no records. In the evaluation they excuse what is
predicted on them, so a score without them is too low.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from hardmine_jax.data import coco_json
from hardmine_jax.data.coco_json import id_number
from hardmine_jax.data.pose import coco
from hardmine_jax.data.pose.records import tight_box
from hardmine_jax.data.problems import Skipped, gather


def annotations(
    file: coco_json.File,
    *,
    num_keypoints: int,
    category: str | int | None = None,
    image_ids: Collection[int] | None = None,
) -> tuple[list[dict[str, Any]], Skipped]:
    """The annotations of one category, for `pose.coco_eval.coco_average_precision`.

    Args:
      file: what `coco_json.load_file` gives.
      num_keypoints: K of the category.
      category: name or id; needed only when several categories have keypoints.
      image_ids: only those on these images, ids as records have them; None for all.

    Returns:
      (dicts with `image_id` as records have it, `keypoints`, `num_keypoints`, `area`, `bbox` and `iscrowd`;
      what was left out: annotations with entries that are no numbers, or not as many).

    Raises:
      DataError: no such category.
    """
    chosen = coco.find_category(file.content["categories"], category, file.path)
    kept, problems = [], []
    for position, entry in coco.of_category(file.content["annotations"], chosen, file.path):
        image_id = id_number(entry.get("image_id"))
        if image_id is None or (image_ids is not None and image_id not in image_ids):
            continue
        annotation = _annotation(entry, image_id, num_keypoints)
        if annotation is None:
            name = f"image {image_id}#{coco_json.title(entry.get('id', position))}"
            problems.append(("annotation with keypoints, bbox or area that are no numbers", name))
        else:
            kept.append(annotation)
    return kept, gather(problems)


def _annotation(entry: dict, image_id: int, num_keypoints: int) -> dict[str, Any] | None:
    try:
        keypoints = np.array(entry.get("keypoints") or [0] * 3 * num_keypoints, np.float64)
        keypoints = keypoints.reshape(num_keypoints, 3)
        # As in records: what is no number is not labelled.
        keypoints = np.where(np.isfinite(keypoints).all(-1, keepdims=True), keypoints, 0.0)
        tight = tight_box(keypoints[:, :2], keypoints[:, 2] > 0)
        bbox = [*tight[:2], *(tight[2:] - tight[:2])] if entry.get("bbox") is None else entry["bbox"]
        bbox = np.array(bbox, np.float64).reshape(4)
        area = float(np.nan if entry.get("area") is None else entry["area"])
        area = area if 0 < area < np.inf else float(bbox[2] * bbox[3])
        count = int(entry.get("num_keypoints", np.count_nonzero(keypoints[:, 2] > 0)))
    except (ValueError, TypeError, OverflowError):
        return None
    if not np.isfinite([*bbox, area]).all():
        return None
    return {
        "image_id": image_id,
        "keypoints": keypoints.ravel().tolist(),
        "num_keypoints": count,
        "area": area,
        "bbox": bbox.tolist(),
        "iscrowd": int(bool(entry.get("iscrowd"))),
    }
