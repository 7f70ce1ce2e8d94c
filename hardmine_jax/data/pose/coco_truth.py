"""The ground truth of COCO's keypoint evaluation: everything a file annotates, also what nobody trains on.

A crowd, and a person without a labelled keypoint, are no records. In the evaluation they excuse what is
predicted on them, so a score without them is too low.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from hardmine_jax.data import coco_json, listing
from hardmine_jax.data.coco_json import id_number, is_true, numbers, whole_number
from hardmine_jax.data.pose.coco_categories import Wanted, find_categories, of_categories
from hardmine_jax.data.pose.records import roomy_box, tight_box
from hardmine_jax.data.problems import Skipped, gather

# Pixels, where no size of the image is listed.
_POINT_SIDE = 64.0


def annotations(
    file: coco_json.File,
    *,
    num_keypoints: int,
    category: Wanted = None,
    image_ids: Collection[int] | None = None,
    point_side: float | None = None,
) -> tuple[list[dict[str, Any]], Skipped]:
    """The annotations of the wanted categories, for `pose.coco_eval.coco_average_precision`.

    Args:
      file: what `coco_json.load_file` gives.
      num_keypoints: K of the category.
      category: as `coco.load` takes it.
      image_ids: only those on these images, ids as records have them; None for all.
      point_side: as `coco.load` takes it.

    Returns:
      (dicts with `image_id` as records have it, `keypoints`, `num_keypoints`, `area`, `bbox` and `iscrowd`;
      what was left out: annotations with entries that are no numbers, or not as many).

    Raises:
      DataError: no such category.
    """
    chosen = find_categories(file, category)
    kept, problems, sides = [], [], _point_sides(file, point_side)
    for position, entry in of_categories(file.content["annotations"], chosen, file.path):
        image_id = id_number(entry.get("image_id"))
        if image_id is None or (image_ids is not None and image_id not in image_ids):
            continue
        annotation = _annotation(entry, image_id, num_keypoints, sides.get(image_id, _POINT_SIDE))
        if annotation is None:
            name = f"image {image_id}#{coco_json.title(entry.get('id', position))}"
            problems.append(("annotation with keypoints, bbox or area that are no numbers", name))
        else:
            kept.append(annotation)
    return kept, gather(problems)


def _annotation(entry: dict, image_id: int, num_keypoints: int, point_side: float) -> dict[str, Any] | None:
    keypoints = numbers(entry.get("keypoints") or [0] * 3 * num_keypoints)
    given = numbers(entry.get("bbox") or [0] * 4)
    area = numbers([entry.get("area")])
    if keypoints is None or given is None or area is None:
        return None
    if len(keypoints) != 3 * num_keypoints or len(given) != 4 or len(area) != 1:
        return None
    keypoints = keypoints.reshape(num_keypoints, 3)
    # As in records: what is no number is not labelled.
    keypoints = np.where(np.isfinite(keypoints).all(-1, keepdims=True), keypoints, 0.0)
    bbox, where = given, keypoints[:, 2] > 0
    if not (given[2:] > 0).all() and np.isfinite(given).all():
        box = tight_box(keypoints[:, :2], where)
        if where.any() and (entry.get("bbox") or not (box[2:] > box[:2]).all()):
            box = roomy_box(keypoints[:, :2], where, point_side=point_side)
        bbox = np.concatenate([box[:2], box[2:] - box[:2]])
    size = float(area[0]) if 0 < area[0] < np.inf else float(bbox[2] * bbox[3])
    if not np.isfinite([*bbox, size]).all():
        return None
    count = whole_number(entry.get("num_keypoints"))
    return {
        "image_id": image_id,
        "keypoints": keypoints.ravel().tolist(),
        "num_keypoints": int(np.count_nonzero(where)) if count is None else count,
        "area": size,
        "bbox": bbox.tolist(),
        "iscrowd": int(is_true(entry.get("iscrowd"))),
    }


def _point_sides(file: coco_json.File, point_side: float | None) -> dict[int, float]:
    """Image id, as records have it -> side of the box around a single point, as `records.usable` makes it."""
    sizes = {
        listing.id_number(image_id): coco_json.listed_size(image)
        for image_id, image in coco_json.listed_images(file).images.items()
    }
    default = {image_id: _POINT_SIDE if size is None else min(size) / 4 for image_id, size in sizes.items()}
    return default if point_side is None else dict.fromkeys(default, point_side)
