"""COCO detection JSON: a small file with gaps in its ids, crowds, and everything that can be wrong."""

import json

import cv2
import numpy as np
import pytest

from hardmine_jax.data.detection import coco
from hardmine_jax.data.problems import DataError


def annotation(number: int, image_id, category_id=7, bbox=(5, 6, 10, 20), **changes) -> dict:
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(bbox)} | changes


@pytest.fixture
def content(tmp_path) -> dict:
    (tmp_path / "images").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), pixels)
    return {
        "images": [{"id": 10 + n, "file_name": f"{n}.png", "height": 40, "width": 60} for n in range(4)],
        "annotations": [
            annotation(1, 10), annotation(2, 10, 90, (0, 0, 60, 40), iscrowd=1), annotation(3, 11),
            annotation(4, 12.0, 3),
        ],
        "categories": [{"id": 90, "name": "sheep"}, {"id": 7, "name": "dog"}, {"id": 3, "name": "bus"}],
    }  # fmt: skip


@pytest.fixture
def save(tmp_path):
    def save_as(content, name="a.json"):
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name, tmp_path / "images"

    return save_as


def everything(dataset) -> dict[str, dict]:
    return {record["name"]: record for source in (dataset.train, dataset.validation) for record in source}


def test_categories_are_labelled_in_rising_order_and_crowds_are_difficult(content, save):
    dataset = coco.load(*save(content))
    assert dataset.classes == ("bus", "dog", "sheep")
    records = everything(dataset)
    np.testing.assert_array_equal(records["0.png"]["boxes"], np.float32([[5, 6, 15, 26], [0, 0, 60, 40]]))
    np.testing.assert_array_equal(records["0.png"]["labels"], [2, 3])
    np.testing.assert_array_equal(records["0.png"]["difficult"], [False, True])
    np.testing.assert_array_equal(records["2.png"]["labels"], [1])
    assert records["0.png"]["image_id"] == 10 and len(records["3.png"]["boxes"]) == 0
    assert dataset.skipped.noted["image with no object (all background)"] == ("3.png",)
    assert len(dataset.train) + len(dataset.validation) == 4 and len(dataset.validation) >= 1


def test_flaws_are_named(content, save):
    content["annotations"] += [
        annotation(5, 11, 8),
        annotation(6, 99),
        annotation(7, None),
        annotation(8, 11, bbox=(5, 5, 0, 5)),
        annotation(9, 11, bbox=(5, 5, -2, 5)),
        annotation(10, 11, bbox="none"),
        annotation(11, 11, bbox=(55, 5, 20, 5)),
        "text",
    ]
    content["images"] += [
        {"id": 50, "file_name": "../a.json"},
        {"id": 51, "file_name": "gone.png"},
        {"id": 52},
    ]
    second = dict(content, images=[{"id": 12, "file_name": "2.png"}], annotations=[annotation(4, 12)])
    validation_annotations, _ = save(second, "b.json")
    skipped = coco.load(*save(content), validation_annotations=validation_annotations).skipped
    assert skipped.reasons == {
        "object of none of the classes": ("image 11#5",),
        "annotation without image_id": ("a.json annotation 6", "a.json annotation 11"),
        "file_name missing, no path or outside the image folder": ("../a.json", "None"),
        "annotation of an image that is not listed": ("image 99#dog 6",),
        "box of no area": ("1.png#dog 8",),
        "box inverted": ("1.png#dog 9",),
        "box that is no finite number": ("1.png#dog 10",),
        "image absent": ("gone.png",),
    }
    assert skipped.noted == {
        "box reaches out of the image (clipped)": ("1.png#dog 11",),
        "image with no object (all background)": ("3.png",),
    }


def test_a_second_file_must_mean_the_same_by_its_ids(content, save):
    renamed = dict(content, categories=[{"id": 7, "name": "cat"}])
    with pytest.raises(DataError, match=r"category 7 is dog in .*a.json and cat in .*b.json"):
        coco.load(*save(content), validation_annotations=save(renamed, "b.json")[0])


def test_unusable_files_are_one_clear_error(content, save, tmp_path):
    with pytest.raises(DataError, match="images is missing"):
        coco.load(tmp_path / "a.json", None)
    for changes, message in (
        ({"categories": []}, "no category with an id"),
        ({"annotations": []}, "no object to train on .* expected readable images in"),
        ({"images": {}}, "lacks images"),
    ):
        with pytest.raises(DataError, match=message):
            coco.load(*save({**content, **changes}))


def test_a_changed_file_is_other_data(content, save):
    first = coco.load(*save(content))
    assert coco.load(*save(content)).folder == first.folder
    content["annotations"][0]["bbox"][0] += 1
    assert coco.load(*save(content)).folder != first.folder
