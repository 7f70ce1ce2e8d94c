"""COCO detection JSON: a small file with gaps in its ids, crowds, and everything that can be wrong."""

import json

import cv2
import numpy as np
import pytest

from hardmine_jax.data.detection import coco
from hardmine_jax.data.images import decode_image
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
        {"file_name": "0.png"},
    ]
    second = dict(content, images=[{"id": 12, "file_name": "2.png"}], annotations=[annotation(4, 12)])
    validation_annotations, _ = save(second, "b.json")
    skipped = coco.load(*save(content), validation_annotations=validation_annotations).skipped
    assert skipped.reasons == {
        "object of none of the classes": ("image 11#5",),
        "annotation without image_id": ("a.json annotation 6", "a.json annotation 11"),
        "image without an id": ("0.png",),
        "file_name missing, no path or outside the image folder": ("../a.json", "None"),
        "annotation of an image that is not listed": ("image 99#dog 6",),
        "box of no area": ("1.png#dog 8",),
        "box that is no finite number": ("1.png#dog 10",),
        "image absent": ("gone.png",),
    }
    assert skipped.noted == {
        "box inverted (corners swapped back)": ("1.png#dog 9",),
        "box reaches out of the image (clipped)": ("1.png#dog 11",),
        "image with no object (all background)": ("3.png",),
        "image in the training and in the validation list": ("2.png",),
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


def test_ids_of_the_categories_go_with_the_dataset(content, save):
    assert coco.load(*save(content)).category_ids == (3, 7, 90)
    for category in content["categories"]:
        category["id"] = str(category["id"])
    for one in content["annotations"]:
        one["category_id"] = str(one["category_id"])
    dataset = coco.load(*save(content))
    assert dict(zip(dataset.classes, dataset.category_ids, strict=True)) == {
        "bus": "3",
        "dog": "7",
        "sheep": "90",
    }


def test_a_second_file_is_matched_by_name(content, save):
    numbers = {7: 3, 3: 90, 90: 7}
    second = dict(content, images=[{"id": 77, "file_name": "1.png"}])
    second["categories"] = [{**one, "id": numbers[one["id"]]} for one in content["categories"]]
    second["categories"].append({"id": 1, "name": "cow"})
    second["annotations"] = [annotation(1, 77, 3), annotation(2, 77, 90), annotation(3, 77, 1)]
    dataset = coco.load(*save(content), validation_annotations=save(second, "b.json")[0])
    record = dataset.validation[0]
    assert [dataset.classes[label - 1] for label in record["labels"][:2]] == ["dog", "bus"]
    assert record["labels"][2] == 0 and dataset.category_ids == (3, 7, 90)
    assert dataset.skipped.noted["class that the file to train on lacks"] == ("cow",)
    with pytest.raises(
        DataError, match=r"no category of .*b.json \(cow\) is in .*a.json \(bus, dog, sheep\)"
    ):
        coco.load(
            *save(content),
            validation_annotations=save({**second, "categories": [{"id": 1, "name": "cow"}]}, "b.json")[0],
        )


def test_one_id_of_two_categories(content, save):
    content["categories"].append({"id": 7.0, "name": "wolf"})
    with pytest.raises(DataError, match=r"two categories of id 7, dog and wolf"):
        coco.load(*save(content))
    content["categories"][-1]["name"] = "dog"
    assert coco.load(*save(content)).classes == ("bus", "dog", "sheep")


def test_images_that_share_an_id(content, save):
    content["annotations"].append(annotation(5, 13))
    content["images"][1]["id"] = "10"
    dataset = coco.load(*save(content))
    assert set(everything(dataset)) == {"2.png", "3.png"}
    assert dataset.skipped.reasons["image whose id another image has too"] == (
        "0.png (id 10)",
        "1.png (id 10)",
    )
    # The same image twice is no riddle.
    content["images"][1]["id"], content["images"][2] = 11, dict(content["images"][0])
    assert len(everything(coco.load(*save(content)))["0.png"]["boxes"]) == 2


@pytest.mark.parametrize(
    "flag, crowd", [("0", False), ("1", True), (0.0, False), ("false", False), (None, False), (True, True)]
)
def test_numbers_and_flags_as_text(content, save, flag, crowd):
    content["annotations"] = [
        annotation("1", "10", "7", bbox=["5", "6", "10", "20"], iscrowd=flag),
        annotation(2, 11),
    ]
    for image in content["images"]:
        image.update(id=str(image["id"]), width="60", height="40.0")
    record = everything(coco.load(*save(content)))["0.png"]
    np.testing.assert_array_equal(record["boxes"], [[5, 6, 15, 26]])
    assert record["difficult"].tolist() == record["crowd"].tolist() == [crowd]


def test_an_object_without_a_usable_box_is_never_background(content, save):
    outline = [[10, 8, 31, 8, 31, 26]]
    content["annotations"] = [
        annotation(1, 10, bbox=(15, 26, -10, -20)),
        annotation(2, 10, bbox=(0, 0, 0, 0), segmentation=outline),
        annotation(3, 11, 404),
        annotation(4, 11, bbox=()),
        annotation(5, 11),
        annotation(6, 12, bbox=(1, 2, 3)),
        annotation(7, 13),
    ]
    del content["annotations"][3]["bbox"]
    content["annotations"][3]["segmentation"] = {"size": [40, 60], "counts": [5, 2, 2393]}
    second = dict(content, images=[content["images"][3]])
    dataset = coco.load(*save(content), validation_annotations=save(second, "b.json")[0])
    records = {record["name"]: record for record in dataset.train}
    np.testing.assert_array_equal(records["0.png"]["boxes"], [[5, 6, 15, 26], [10, 8, 31, 26]])
    assert records["0.png"]["labels"].tolist() == [2, 2]
    np.testing.assert_array_equal(records["1.png"]["boxes"], [[5, 6, 15, 26], [0, 5, 1, 7], [5, 6, 15, 26]])
    assert records["1.png"]["labels"].tolist() == [0, 2, 2]
    assert (
        records["1.png"]["crowd"].tolist() == records["1.png"]["difficult"].tolist() == [True, False, False]
    )
    assert set(records) == {"0.png", "1.png", "3.png"}
    reasons = dataset.skipped.reasons
    assert reasons["image left out of training (the place of an object in it is unknown)"] == ("2.png",)


def test_boxes_as_parts_of_the_picture(content, save):
    content["annotations"] = [
        annotation(1, 10, bbox=(0.25, 0.5, 0.5, 0.25)),
        annotation(2, 11, bbox=(0, 0, 1, 1)),
    ]
    dataset = coco.load(*save(content))
    records = everything(dataset)
    np.testing.assert_array_equal(records["0.png"]["boxes"], [[15, 20, 45, 30]])
    np.testing.assert_array_equal(records["1.png"]["boxes"], [[0, 0, 60, 40]])
    assert dataset.skipped.noted["boxes in 0..1, taken for parts of the picture's width and height"]
    # One box that is larger, and they are small boxes.
    content["annotations"].append(annotation(3, 11))
    assert coco.load(*save(content)).skipped.noted["box smaller than a pixel"] == ("0.png#dog 1",)


def test_names_of_windows_and_of_addresses(content, save, tmp_path):
    (tmp_path / "images" / "a b").mkdir()
    (tmp_path / "images" / "0.png").rename(tmp_path / "images" / "a b" / "0.png")
    for name in ("a b\\0.png", "a%20b/0.png", ".\\a%20b\\0.png"):
        content["images"][0]["file_name"] = name
        assert coco.load(*save(content)).skipped.count == 0


def test_one_file_listed_twice(content, save):
    second = dict(content, images=[{"id": 99, "file_name": "./1.png"}, {"id": 98, "file_name": "1.png"}])
    second["annotations"] = [annotation(1, 99), annotation(2, 98)]
    noted = coco.load(*save(content), validation_annotations=save(second, "b.json")[0]).skipped.noted
    assert noted["image in the training and in the validation list"] == ("./1.png", "1.png")
    noted = coco.load(*save(second), validation_annotations=save(content, "b.json")[0]).skipped.noted
    assert noted["image file listed twice"] == ("1.png",)


def test_a_photograph_that_exif_turns_is_read_as_its_boxes_count(content, save, tmp_path):
    """Turned by 180 degrees both readings fit, and a flag decides; what is listed decides by itself."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[6:26, 5:15] = 255
    for number, orientation in ((0, 3), (1, 6)):
        exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0%c\0\0\0\0\0\0\0" % orientation
        encoded = cv2.imencode(".jpg", pixels)[1].tobytes()
        segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
        (tmp_path / "images" / f"{number}.jpg").write_bytes(encoded[:2] + segment + encoded[2:])
        content["images"][number]["file_name"] = f"{number}.jpg"
    content["annotations"] = [annotation(1, 10), annotation(2, 11), annotation(3, 12), annotation(4, 13)]

    def brightness(dataset, name: str) -> float:
        record = everything(dataset)[name]
        x1, y1, x2, y2 = record["boxes"][0].astype(int)
        return decode_image(record["image"])[y1:y2, x1:x2].mean()

    stored, upright, auto = (
        coco.load(*save(content), orientation=way) for way in ("stored", "upright", "auto")
    )
    assert brightness(stored, "0.jpg") > 240 and brightness(upright, "0.jpg") < 15 > brightness(auto, "0.jpg")
    noted = "photograph that its EXIF turns, which its labels fit both ways (read upright)"
    assert auto.skipped.noted[noted] == ("0.jpg",) and noted not in stored.skipped.noted
    # Listed as 60 wide, which it is as stored.
    assert brightness(auto, "1.jpg") > 240 and "1.jpg" not in everything(upright)
