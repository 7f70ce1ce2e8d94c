"""A detector's JSON: what is taken, what is counted and left out, what is refused; and the way to batches."""

import json

import cv2
import numpy as np
import pytest

from hardmine_jax.data import coco_json
from hardmine_jax.data.coco_json import Category
from hardmine_jax.data.pose import person_boxes
from hardmine_jax.data.pose.augment import evaluate_crop
from hardmine_jax.data.pose.batches import evaluation_crops
from hardmine_jax.data.pose.coco import COCO_SKELETON
from hardmine_jax.data.problems import DataError, UnreadableImage
from hardmine_jax.data.stream import ordered_batches
from hardmine_jax.pose.affine import affine_matrix

GOOD = {"image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 40], "score": 0.9}


@pytest.fixture
def coco(tmp_path) -> coco_json.File:
    """Three pictures, a gradient each; of a fourth there is no file."""
    (tmp_path / "images").mkdir()
    for number in (7, 8, 9):
        ramp = np.add.outer(np.arange(90), np.arange(120)) % 256
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.uint8(np.stack([ramp] * 3, -1)))
    images = [{"id": number, "file_name": f"{number}.png"} for number in (7, 8, 10)]
    images += [
        {"id": "nine", "file_name": "9.png"},
        {"id": 11, "file_name": "../out.png"},
        {"file_name": "9.png"},
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return coco_json.load_file(tmp_path / "coco.json", tmp_path / "images")


def _write(folder, entries):
    path = folder / "boxes.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return path


def test_boxes_are_records_that_are_cropped_unchanged(tmp_path, coco):
    entries = [
        GOOD,
        GOOD | {"image_id": 8.0, "score": 0.25},
        GOOD | {"image_id": "nine", "bbox": [5, 5, 80, 20]},
    ]
    boxes = person_boxes.load(_write(tmp_path, entries), person_boxes.CocoImages(coco), num_keypoints=17)
    assert len(boxes) == 3 and boxes.skipped.count == 0
    record = boxes[0]
    assert record["image"] == (tmp_path / "images" / "7.png").read_bytes() and record["name"] == "7.png"
    np.testing.assert_array_equal(record["box"], np.float32([10, 20, 40, 60]))
    assert (record["image_id"], record["index"], record["area"]) == (7, 0, 1200)
    assert record["box_score"] == np.float32(0.9) and not record["visibility"].any()
    assert boxes[-1]["index"] == 2 and boxes[-1]["name"] == "9.png"
    with pytest.raises(IndexError, match="box 3 of 3"):
        boxes[3]
    # 40 high: 64 x 48 around the middle, with the published 1.25.
    crop = evaluate_crop(record, size=(64, 48), skeleton=COCO_SKELETON)
    expected = affine_matrix((25, 40), (1.25 * 30, 1.25 * 40), 0, size=(64, 48))
    np.testing.assert_allclose(crop["inverse"] @ np.vstack([expected, [0, 0, 1]]), np.eye(2, 3), atol=1e-5)
    (batch,) = ordered_batches(boxes, evaluation_crops((64, 48), COCO_SKELETON), batch_size=4)
    assert batch["where"].tolist() == [True, True, True, False]
    np.testing.assert_array_equal(batch["image"][0], crop["image"])
    # The third is 80 wide: its height grows to the aspect.
    np.testing.assert_allclose(np.diag(batch["inverse"][2][:, :2]), 1.25 * 80 / 48, rtol=1e-5)


BAD = {
    "no object of names and values": ["text", None],
    "no image_id": [{"score": 1, "bbox": [1, 2, 3, 4]}],
    "no score": [{"image_id": 7, "bbox": [1, 2, 3, 4]}],
    "no bbox": [{"score": 1, "image_id": 7}, GOOD | {"bbox": None}],
    "another category": [GOOD | {"category_id": 2}, GOOD | {"category_id": None}],
    "image not in the dataset": [GOOD | {"image_id": image} for image in (70, 11, None, 7.5, [7])],
    "bbox that is not 4 numbers": [
        GOOD | {"bbox": bbox} for bbox in ([1, 2, 3], "ab", "1234", [10**400, 0, 1, 1], [True, 1, 2, 3])
    ],
    "score that is no number": [GOOD | {"score": "high"}, GOOD | {"score": None}],
    "bbox or score that is no finite number": [
        GOOD | {"bbox": [float("nan"), 0, 1, 1]}, GOOD | {"score": float("nan")},
        GOOD | {"score": float("inf")}, GOOD | {"bbox": [0, 0, 1e39, 1]},
    ],
    "box of no area": [
        GOOD | {"bbox": [1, 2, 0, 4]}, GOOD | {"bbox": [1, 2, 3, -4]}, GOOD | {"bbox": [1e9, 2, 0.1, 4]},
    ],
    "score below 0.05": [GOOD | {"score": 0.04}, GOOD | {"score": -1}],
}  # fmt: skip


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path, coco, capfd):
    entries = [GOOD] + [entry for bad in BAD.values() for entry in bad] + [GOOD | {"score": 0.05}]
    options = dict(num_keypoints=17, min_score=0.05)
    boxes = person_boxes.load(_write(tmp_path, entries), person_boxes.CocoImages(coco), **options)
    assert len(boxes) == 2 and boxes.scores.tolist() == [np.float32(0.9), np.float32(0.05)]
    assert {reason: len(names) for reason, names in boxes.skipped.reasons.items()} == {
        reason: len(bad) for reason, bad in BAD.items()
    }
    assert boxes.skipped.reasons["score below 0.05"] == ("box 28", "box 29")
    assert capfd.readouterr() == ("", "")


def _taken(tmp_path, coco, entries, **options) -> list[float]:
    """Scores of what is taken, which tell the entries apart."""
    entries = [GOOD | {"score": n} | entry for n, entry in enumerate(entries)]
    entries = [{name: value for name, value in entry.items() if value != "absent"} for entry in entries]
    boxes = person_boxes.load(
        _write(tmp_path, entries), person_boxes.CocoImages(coco), num_keypoints=3, **options
    )
    return boxes.scores.tolist()


def test_boxes_of_the_category_that_is_trained_on_are_taken_whatever_its_id(tmp_path, coco):
    entries = [{"category_id": number} for number in (5, "absent", 1, "5", 5.0)]
    mouse = {"categories": [Category(5, "mouse")], "other_ids": (1, 6)}
    assert _taken(tmp_path, coco, entries, category_id=5) == [0, 1, 3, 4]
    assert _taken(tmp_path, coco, entries) == [1, 2]
    # By name, where the detector writes them, as our own does; its ids count for nothing then.
    named = [{"category_id": 1, "category": "Mouse"}, {"category_id": 5, "category": "rat"}]
    assert _taken(tmp_path, coco, named, **mouse) == [0]
    assert _taken(tmp_path, coco, named, **mouse, given="rat") == [1]
    assert _taken(tmp_path, coco, entries, **mouse, given="1") == [1, 2]
    several = [Category(1, "rat"), Category(5, "mouse")]
    assert _taken(tmp_path, coco, [*entries, {"category_id": 6}], categories=several) == [0, 1, 2, 3, 4]
    # A category called by a number is no other's id.
    assert _taken(tmp_path, coco, entries, categories=[Category(5, "1")]) == [0, 1, 3, 4]


@pytest.mark.parametrize("number", [0, 1, "mouse"])
def test_boxes_of_one_unknown_category_are_taken_which_is_noted(tmp_path, coco, number):
    path = _write(tmp_path, [GOOD | {"category_id": number}] * 2)
    images, wanted = person_boxes.CocoImages(coco), {"categories": [Category(2, "mouse")]}
    boxes = person_boxes.load(path, images, num_keypoints=3, **wanted)
    assert (
        len(boxes) == 2
        and f"of category {number}, the only one, taken for mouse (id 2)" in boxes.skipped.report()
    )
    # But not where the data knows what that is, or there are several.
    with pytest.raises(DataError, match="2 another category"):
        person_boxes.load(path, images, num_keypoints=3, **wanted, other_ids=(number,))
    _write(tmp_path, [GOOD | {"category_id": number}, GOOD | {"category_id": 7}])
    with pytest.raises(DataError, match=r'2 another category.*"category_id": 2'):
        person_boxes.load(path, images, num_keypoints=3, **wanted)


def test_a_file_name_decides_on_which_image_a_box_is(tmp_path, coco):
    """Our own detector counts photographs from 1, whatever their ids in an annotation file are."""
    coco.content["images"] += [{"id": 1, "file_name": "a/x.png"}, {"id": 2, "file_name": "b/x.png"}]
    names = {"8.png": 8, "in/8.png": 8, "a/x.png": 1, "b\\x.png": 2, "/far/b/x.png": 2, "9.jpg": "nine"}
    entries = [GOOD | {"file_name": name} for name in names]
    bad = [GOOD | {"file_name": name} for name in ("x.png", "c/x.png", "77.png")]
    alone = [{name: value for name, value in entry.items() if name != "image_id"} for entry in entries]
    images = person_boxes.CocoImages(coco)
    boxes = person_boxes.load(_write(tmp_path, entries + bad + alone), images, num_keypoints=3)
    expected = [coco_json.id_number(one) for one in names.values()]
    assert boxes.image_ids.tolist() == expected * 2
    assert boxes.skipped.reasons == {
        "file_name of several images": ("box 6",), "file_name of no image": ("box 7", "box 8"),
    }  # fmt: skip
    # An id that is right decides where names cannot.
    boxes = person_boxes.load(
        _write(tmp_path, [GOOD | {"file_name": "x.png", "image_id": 2}]), images, num_keypoints=3
    )
    assert boxes.image_ids.tolist() == [2]


def test_pictures_that_share_an_id_have_no_boxes(tmp_path, coco):
    coco.content["images"].append({"id": "7", "file_name": "8.png"})
    boxes = person_boxes.load(
        _write(tmp_path, [GOOD, GOOD | {"image_id": 8}]), person_boxes.CocoImages(coco), num_keypoints=3
    )
    assert len(boxes) == 1 and boxes[0]["name"] == "8.png" and boxes.skipped.count == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is no JSON .*expected"),
        ('{"annotations": []}', "is JSON but no list of detections"),
        ("[]", r"no box of .* can be used \(skipped nothing\)"),
        (
            [GOOD | {"image_id": 1}],
            r"no box of .* can be used \(skipped 1 record: 1 image not in the dataset",
        ),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_files_that_are_no_detections_are_one_clear_line(tmp_path, coco, content, message):
    path = _write(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        person_boxes.load(path, person_boxes.CocoImages(coco), num_keypoints=17)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_is_said(tmp_path, coco):
    with pytest.raises(DataError, match="no file .*boxes.json: give a detector's results"):
        person_boxes.load(tmp_path / "boxes.json", person_boxes.CocoImages(coco), num_keypoints=17)


def test_a_listed_image_that_is_gone_is_padding_in_a_batch(tmp_path, coco, caplog):
    boxes = person_boxes.load(
        _write(tmp_path, [GOOD | {"image_id": 10}, GOOD]), person_boxes.CocoImages(coco), num_keypoints=17
    )
    with pytest.raises(UnreadableImage, match="10.png: No such file"):
        boxes[0]
    (batch,) = ordered_batches(boxes, evaluation_crops((64, 48), COCO_SKELETON), batch_size=2)
    assert batch["where"].tolist() == [False, True]


def test_pictures_of_a_source_are_found_by_their_id(tmp_path):
    records = [
        {"image_id": np.int64(image), "name": f"{image}.jpg", "image": bytes([image])} for image in (7, 7, 8)
    ]
    boxes = person_boxes.load(
        _write(tmp_path, [GOOD, GOOD | {"image_id": 8}, GOOD | {"image_id": 9}]),
        person_boxes.SourceImages(records),
        num_keypoints=17,
    )
    assert [boxes[row]["image"] for row in range(2)] == [b"\x07", b"\x08"] and boxes.skipped.count == 1
