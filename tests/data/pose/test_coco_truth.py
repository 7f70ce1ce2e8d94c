"""Everything a COCO file annotates: crowds and people without labels too, and what is left out of it."""

import json

import numpy as np
import pytest

from hardmine_jax.data import coco_json
from hardmine_jax.data.pose import coco_truth
from hardmine_jax.data.problems import DataError

TRIPLES = [5, 6, 2, 0, 0, 0, 25, 46, 1]
WHOLE = {"id": 1, "image_id": 1, "category_id": 1, "keypoints": TRIPLES, "num_keypoints": 2, "area": 300.0,
         "bbox": [1, 2, 30, 50], "iscrowd": 0}  # fmt: skip


def _file(tmp_path, annotations, categories=None) -> coco_json.File:
    categories = categories or [{"id": 1, "name": "mouse", "keypoints": ["nose", "left_ear", "right_ear"]}]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": annotations,
        "categories": categories,
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return coco_json.load_file(tmp_path / "coco.json", tmp_path)


def test_crowds_and_people_without_labels_are_there(tmp_path):
    crowd = WHOLE | {"id": 2, "iscrowd": 1, "keypoints": [0] * 9, "num_keypoints": 0}
    unlabelled = WHOLE | {"id": 3, "keypoints": [0] * 9, "num_keypoints": 0}
    found, skipped = coco_truth.annotations(_file(tmp_path, [WHOLE, crowd, unlabelled]), num_keypoints=3)
    expected = {
        name: WHOLE[name] for name in ("image_id", "keypoints", "num_keypoints", "area", "bbox", "iscrowd")
    }
    assert found[0] == expected
    assert [item["iscrowd"] for item in found] == [0, 1, 0]
    assert [item["num_keypoints"] for item in found] == [2, 0, 0]
    assert skipped.count == 0


def test_what_is_missing_is_filled_in_as_for_records(tmp_path):
    bare = {"image_id": "a", "keypoints": [5, 6, 2, float("nan"), 1, 2, 25, 46, 1]}
    (found,), _ = coco_truth.annotations(_file(tmp_path, [bare]), num_keypoints=3)
    assert found["keypoints"] == TRIPLES and found["num_keypoints"] == 2
    assert found["bbox"] == [5, 6, 20, 40] and found["area"] == 800 and found["iscrowd"] == 0
    boxed = {"image_id": 1, "bbox": [0, 0, 4, 5], "area": None, "iscrowd": 1}
    (found,), _ = coco_truth.annotations(_file(tmp_path, [boxed]), num_keypoints=3)
    assert found["keypoints"] == [0] * 9 and found["area"] == 20


def test_other_categories_and_images_are_left_out_and_bad_entries_counted(tmp_path):
    categories = [{"id": 1, "name": "mouse", "keypoints": ["a", "b", "c"]}, {"id": 2, "name": "cheese"}]
    bad = [{"keypoints": [1, 2]}, {"bbox": [1]}, {"area": "big"}, {"bbox": [0, 0, float("inf"), 1]}]
    entries = [WHOLE, WHOLE | {"category_id": 2}, WHOLE | {"image_id": 5}, WHOLE | {"image_id": None}]
    file = _file(tmp_path, entries + [WHOLE | change for change in bad], categories)
    found, skipped = coco_truth.annotations(file, num_keypoints=3, category="mouse", image_ids={1})
    assert len(found) == 1
    assert {reason: len(names) for reason, names in skipped.reasons.items()} == {
        "annotation with keypoints, bbox or area that are no numbers": 4
    }
    assert len(coco_truth.annotations(file, num_keypoints=3)[0]) == 2
    with pytest.raises(DataError, match="not one category 'rat'"):
        coco_truth.annotations(file, num_keypoints=3, category="rat")


def test_numbers_are_plain_and_go_into_a_file(tmp_path):
    found, _ = coco_truth.annotations(_file(tmp_path, [WHOLE, {"image_id": 1}]), num_keypoints=3)
    assert json.loads(json.dumps(found)) == found
    np.testing.assert_array_equal(found[1]["bbox"], 0)
