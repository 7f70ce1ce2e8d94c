"""COCO keypoint results of what was scored, with the ids that the data's own files have."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hardmine_jax.data import coco_json
from hardmine_jax.data.coco_json import whole_id
from hardmine_jax.data.pose.coco import id_of_annotation
from hardmine_jax.data.pose.coco_categories import find_categories, of_categories
from hardmine_jax.tasks.evaluations import written_image_ids
from hardmine_jax.tasks.pose.config import Config
from hardmine_jax.tasks.pose.people import People
from hardmine_jax.tasks.pose.protocol import validation_file


class Ids(NamedTuple):
    """Ids as COCO files have them.

    Attributes:
      images: by those of the records, which are taken where there is none.
      categories: by ids of image and annotation, as records have them; `category` of all others.
    """

    images: Mapping[int | None, Any]
    categories: Mapping[tuple[int | None, int], Any]
    category: Any


def ids_of(config: Config) -> Ids:
    """Those of the files that the data comes from."""
    if config.dataset != "coco" or config.annotations is None:
        return Ids({}, {}, 1)
    files = [coco_json.load_file(config.annotations, config.images)]
    if config.validation_annotations is not None:
        files.append(validation_file(config)[0])
    categories, first = {}, None
    for file in files:
        chosen = find_categories(file, config.category)
        first = whole_id(chosen[0]["id"])
        if len(chosen) > 1:
            for place, entry in of_categories(file.content["annotations"], chosen, file.path):
                key = coco_json.id_number(entry.get("image_id")), id_of_annotation(entry, place)
                categories[key] = whole_id(entry.get("category_id", first))
    return Ids(written_image_ids(files), categories, first)


def coco_results(people: People, triples: np.ndarray, scores: np.ndarray, ids: Ids) -> list[dict[str, Any]]:
    """COCO keypoint results; a person's score is the mean of what was scored of them.

    Args:
      triples: [N, K, 3], (x, y, score) of the data's keypoints; scores: [N, K common].
      ids: as the results have them.
    """
    keys = list(zip(people.image_id.tolist(), people.annotation_id.tolist(), strict=True))
    return [
        {
            "image_id": ids.images.get(key[0], key[0]),
            "file_name": people.names[row],
            "category_id": ids.categories.get(key, ids.category),
            "keypoints": np.round(triples[row], 3).ravel().tolist(),
            "score": float(scores[row].mean()),
        }
        for row, key in enumerate(keys)
    ]
