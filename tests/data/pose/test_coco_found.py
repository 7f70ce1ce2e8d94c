"""COCO keypoint files as they are found: ids that collide, numbers as text, odd skeletons and boxes."""

import copy
import json

import cv2
import numpy as np
import pytest

from hardmine_jax.data import coco_json, images
from hardmine_jax.data.pose import coco, coco_truth, person_boxes
from hardmine_jax.data.pose.coco_categories import drawn_edges
from hardmine_jax.data.problems import DataError
from tests.data.test_exif import with_orientation

NAMES = ["nose", "left_ear", "right_ear", "tail"]
POINTS = np.array([[10, 12], [30, 20], [40, 30], [50, 36]])
HEIGHT, WIDTH = 48, 80


def listed(number: int) -> dict:
    return {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT}


def labelled(number: int, **changes) -> dict:
    keypoints = [int(value) for x, y in POINTS for value in (x, y, 2)]
    entry = {
        "id": number,
        "image_id": number,
        "category_id": 1,
        "keypoints": keypoints,
        "bbox": [5, 6, 60, 40],
    }
    return entry | {"area": 900.5, "iscrowd": 0, "num_keypoints": 4} | changes


@pytest.fixture
def mice(tmp_path):
    """(content, load): six images; load(content, **options) -> the dataset, and its records by annotation."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for number in range(1, 7):
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        for name in (f"{number}.png", f"sub/a {number}.png"):
            cv2.imwrite(str(tmp_path / "images" / name), pixels)
    mouse = {"id": 1, "name": "mouse", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3], [3, 4]]}
    content = {"images": list(map(listed, range(1, 7))), "annotations": list(map(labelled, range(1, 7)))}

    def load(changed, **options):
        (tmp_path / "mice.json").write_text(json.dumps(changed))
        dataset = coco.load(tmp_path / "mice.json", tmp_path / "images", **options)
        return dataset, {int(one["annotation_id"]): one for one in [*dataset.train, *dataset.validation]}

    return content | {"categories": [mouse]}, load


@pytest.mark.parametrize("same", [1, "1", 1.0, "1.0"])
def test_two_images_with_one_id_are_both_left_out_and_named(mice, same):
    content, load = mice
    content["images"][1]["id"] = same
    dataset, found = load(content)
    assert sorted(found) == [3, 4, 5, 6]
    assert dataset.skipped.reasons == {
        "image whose id other images have, too": ("1.png (id 1)", "2.png (id 1)"),
        "annotation of an id that several images have": ("image 1#1",),
        "annotation of an image that is not listed": ("image 2#2",),
    }
    # The same file listed twice is no riddle.
    content["images"][1] = content["images"][0] | {"file_name": "./1.png"}
    dataset, found = load(content)
    assert sorted(found) == [1, 3, 4, 5, 6] and found[1]["name"] == "1.png"


def test_one_file_under_two_ids_stays_on_one_side_and_two_files_that_share_one_say_so(mice, tmp_path):
    content, load = mice
    content["images"] += [listed(number) | {"id": number + 100} for number in range(1, 7)]
    content["annotations"] += [labelled(number + 100) for number in range(1, 7)]
    dataset, found = load(content)
    sides = [{record["name"] for record in source} for source in (dataset.train, dataset.validation)]
    assert len(found) == 12 and not sides[0] & sides[1] and sides[1]
    (noted,) = dataset.skipped.noted.items()
    assert noted == (
        "image file listed under several ids",
        tuple(f"{n}.png (ids {n}, {n + 100})" for n in range(1, 7)),
    )
    other = content | {"images": [listed(2) | {"id": 55}], "annotations": [labelled(9, image_id=55)]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    content["images"], content["annotations"] = content["images"][:6], content["annotations"][:6]
    dataset, _ = load(content, validation_annotations=tmp_path / "other.json")
    assert dataset.skipped.noted == {"picture in training and in validation": ("2.png",)}


def test_numbers_and_flags_may_be_text_or_floats_anywhere(mice):
    content, load = mice
    _, wanted = load(content)

    def told(value, how):
        if isinstance(value, list):
            return [told(one, how) for one in value]
        return how(value) if isinstance(value, int | float) else value

    for how in (str, float, lambda number: f"{float(number)}"):
        changed = copy.deepcopy(content)
        for entry in changed["images"] + changed["annotations"]:
            entry.update({key: told(value, how) for key, value in entry.items()})
        dataset, found = load(changed)
        assert not dataset.skipped and found.keys() == wanted.keys()
        for number, record in found.items():
            for key in ("keypoints", "visibility", "box", "area", "image_id"):
                np.testing.assert_array_equal(record[key], wanted[number][key])
    for crowd, people in (("0", 6), ("false", 6), (None, 6), ("", 6), ("1", 5), ("true", 5), (1.0, 5)):
        content["annotations"][0]["iscrowd"] = crowd
        assert len(load(content)[1]) == people
        file = coco_json.File(None, None, content)
        truth = coco_truth.annotations(file, num_keypoints=4)[0]
        assert [one["iscrowd"] for one in truth] == [6 - people, 0, 0, 0, 0, 0]


def test_a_visibility_that_is_a_score_is_labelled(mice):
    content, load = mice
    content["annotations"][0]["keypoints"][2::3] = [0.93, 1, 0.0, 1e-6]
    content["annotations"][1]["keypoints"][2::3] = ["0.5", True, None, -1]
    dataset, found = load(content)
    np.testing.assert_array_equal(found[1]["visibility"], [1, 1, 0, 1])
    np.testing.assert_array_equal(found[2]["visibility"], [1, 1, 0, 0])
    reason = "visibility that is not 0, 1 or 2 (a score? above 0 is labelled)"
    assert dataset.skipped.noted == {reason: ("image 1#1", "image 2#2")}


@pytest.mark.parametrize(
    ("skeleton", "edges", "left_out"),
    [
        ([["nose", "left_ear"], ["tail", "x"]], ((0, 1),), ["tail-x"]),
        ([1, 2, 2, 3], ((0, 1), (1, 2)), []),
        (["nose", "tail"], ((0, 3),), []),
        ([[1, 2], [32, 33], [4, 5]], ((0, 1),), ["32-33", "4-5"]),
        ([[0, 1], [2, 3]], ((0, 1), (2, 3)), []),
        ([["1", "2"], [3.0, 4.0]], ((0, 1), (2, 3)), []),
        ([[1, 1], [1, 2, 3], [None, 2], "x", [[1, 2]]], (), ["1-1", "1-2-3", "None-2", "x", "a list"]),
        ({"from": 1}, (), ["a dict"]),
        (7, (), ["7"]),
        (None, (), []),
    ],
)
def test_a_skeleton_is_drawn_as_far_as_it_goes(mice, skeleton, edges, left_out):
    assert drawn_edges(skeleton, NAMES) == (edges, left_out)
    content, load = mice
    content["categories"][0]["skeleton"] = skeleton
    dataset, found = load(content)
    assert dataset.skeleton.edges == edges and len(found) == 6
    assert sum(dataset.skipped.noted.values(), ()) == tuple(left_out) and not dataset.skipped.reasons
    assert load(content, edges=[("nose", "tail")])[0].skeleton.edges == ((0, 3),)


@pytest.mark.parametrize("names", [None, [], "absent", "no categories"])
def test_keypoints_without_names_are_numbered_where_the_annotations_agree(mice, names):
    content, load = mice
    content["categories"][0].pop("keypoints") if names == "absent" else content["categories"][0].update(
        keypoints=names
    )
    if names == "no categories":
        content["categories"] = []
    dataset, found = load(content)
    assert (
        dataset.skeleton.names == ("keypoint_1", "keypoint_2", "keypoint_3", "keypoint_4") and len(found) == 6
    )
    content["annotations"][0]["keypoints"] += [1, 1, 2]
    with pytest.raises(DataError, match=r"no category with .keypoints.*\(theirs have 4 or 5\)"):
        load(content)


def test_several_categories_of_one_skeleton_train_together(mice):
    content, load = mice
    mouse = content["categories"][0]
    content["categories"] = [
        mouse | {"id": n, "name": name} for n, name in enumerate(("dog", "cat", "cow"), 1)
    ]
    content["categories"].append({"id": 9, "name": "stone"})
    for place, entry in enumerate(content["annotations"]):
        entry["category_id"] = 1 + place % 3
    for wanted, people in (
        ("all", 6),
        (("dog", "cat"), 4),
        (["dog", 3], 4),
        ("cow", 2),
        (("2",), 2),
        (("cat", 2), 2),
    ):
        dataset, found = load(content, category=wanted)
        assert len(found) == people and dataset.skeleton.names == tuple(NAMES)
        truth, _ = coco_truth.annotations(
            coco_json.File(None, None, content), num_keypoints=4, category=wanted
        )
        assert len(truth) == people
    with pytest.raises(DataError, match="choose the category by name or id, several .*, or all, among dog"):
        load(content)
    with pytest.raises(DataError, match="has not one category 'bird'"):
        load(content, category=("dog", "bird"))
    content["categories"][1] = content["categories"][1] | {"keypoints": NAMES[::-1]}
    with pytest.raises(DataError, match="category cat has other keypoints than dog"):
        load(content, category="all")
    assert len(load(content, category=("dog", "cow"))[1]) == 4


@pytest.mark.parametrize("bbox", [[0, 0, 0, 0], [5, 6, 0, 9], [5, 6, -9, 4], ["0", "0", "0", "0"]])
def test_a_box_of_no_area_is_made_from_the_keypoints_with_a_margin(mice, bbox):
    content, load = mice
    for entry in content["annotations"]:
        entry.update(bbox=bbox, area=0)
    dataset, found = load(content)
    # The keypoints' own box is 40 wide and 24 high.
    np.testing.assert_allclose(found[1]["box"], [6, 8, 54, 40])
    assert found[1]["area"] == pytest.approx(48 * 32) and dataset.skipped.count == 0
    assert [*map(len, dataset.skipped.noted.values())] == [6]
    truth, _ = coco_truth.annotations(coco_json.File(None, None, content), num_keypoints=4)
    np.testing.assert_allclose([truth[0]["area"], *truth[0]["bbox"]], [48 * 32, 6, 8, 48, 32])


def test_somebody_of_one_point_gets_a_box_of_the_side_that_is_asked_for(mice):
    content, load = mice
    content["categories"][0].update(keypoints=["centre"], skeleton=[])
    for entry in content["annotations"]:
        entry.update(keypoints=[30, 20, 2], bbox=[30, 20, 0.0, 0.0], area=0.0)
    for side, half in ((None, 6), (50, 25)):
        _, found = load(content, point_side=side)
        np.testing.assert_array_equal(found[1]["box"], [30 - half, 20 - half, 30 + half, 20 + half])
        file = coco_json.File(None, None, content)
        truth, _ = coco_truth.annotations(file, num_keypoints=1, point_side=side)
        assert truth[0]["area"] == found[1]["area"] == 4 * half**2
    for side in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="its side must be above 0 and finite"):
            load(content, point_side=side)


@pytest.mark.parametrize("bbox", [None, [], [float("nan")] * 4, [None] * 4])
def test_a_box_that_is_missing_is_the_keypoints_own(mice, bbox):
    content, load = mice
    content["annotations"][0]["bbox"] = bbox
    dataset, found = load(content)
    np.testing.assert_array_equal(found[1]["box"], [10, 12, 50, 36])
    assert not dataset.skipped


def test_reasons_say_what_was_found(mice):
    content, load = mice
    changes = (
        {"keypoints": [1, 2, 2]},
        {"keypoints": "x"},
        {"bbox": [1, 2, 3]},
        {"area": {}},
        {"num_keypoints": "0"},
    )
    for entry, change in zip(content["annotations"], changes, strict=False):
        entry.update(change)
    assert load(content)[0].skipped.reasons == {
        "keypoints of 3 numbers (wanted 12)": ("image 1#1",),
        "keypoints with what is no number": ("image 2#2",),
        "bbox of 3 numbers (wanted 4)": ("image 3#3",),
        "area with what is no number": ("image 4#4",),
        "no labelled joint (num_keypoints 0)": ("image 5#5",),
    }


def test_file_names_of_windows_and_of_addresses_are_found_and_lead_nowhere_else(mice, tmp_path):
    content, load = mice
    names = [
        "sub\\a 1.png",
        "sub/a%202.png",
        "sub\\a%203.png",
        "./4.png",
        "..\\..\\mice.json",
        "%2e%2e/mice.json",
    ]
    for image, name in zip(content["images"], names, strict=True):
        image["file_name"] = name
    dataset, found = load(content)
    assert sorted(found) == [1, 2, 3, 4]
    assert dataset.skipped.reasons == {"image absent": tuple(names[4:])}
    # A file that is really called so comes first.
    (tmp_path / "images" / "sub" / "a%202.png").write_bytes((tmp_path / "images" / "6.png").read_bytes())
    _, again = load(content)
    assert again[2]["image"] != found[2]["image"]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("sizes", [True, False])
def test_labels_meet_their_pixels_whichever_way_a_photograph_was_annotated(
    mice, tmp_path, orientation, upright, sizes
):
    content, load = mice
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stored = with_orientation(".png", orientation, image=pixels)
    seen = images.decode_image(stored) if upright else pixels
    spot = np.array([WIDTH - 12, 30]) if seen.shape == pixels.shape else np.array([30, WIDTH - 12])
    marked = seen.copy()
    marked[spot[1], spot[0]] = 255
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation] if upright else 0
    encoded = with_orientation(".png", orientation, image=np.ascontiguousarray(np.rot90(marked, turns)))
    options = (
        {} if sizes and orientation in (1, 6, 8) else {"orientation": "upright" if upright else "stored"}
    )
    for image, entry in zip(content["images"], content["annotations"], strict=True):
        (tmp_path / "images" / image["file_name"]).write_bytes(encoded)
        image.update(
            {"height": seen.shape[0], "width": seen.shape[1]} if sizes else {"height": None, "width": 0}
        )
        entry.update(
            keypoints=[*map(int, spot), 2, *[0] * 9], bbox=[int(spot[0]) - 9, int(spot[1]) - 9, 19, 19]
        )
    dataset, found = load(content, **options)
    assert len(found) == 6 and not dataset.skipped
    file = coco_json.load_file(tmp_path / "mice.json", tmp_path / "images")
    _, read = person_boxes.CocoImages(file, options.get("orientation", "auto")).read(1)
    for content in (found[1]["image"], read):
        assert images.decode_image(content)[spot[1], spot[0]].min() == 255


def test_photographs_that_can_be_read_both_ways_are_noted(mice, tmp_path):
    content, load = mice
    for number in (1, 2):
        encoded = with_orientation(".png", 3, image=np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        (tmp_path / "images" / f"{number}.png").write_bytes(encoded)
    (noted,) = load(content)[0].skipped.noted.items()
    assert noted == (
        "photograph that its EXIF turns, which its labels fit both ways (read upright)",
        ("1.png", "2.png"),
    )
    datasets = [load(content, orientation=reading)[0] for reading in ("upright", "stored")]
    assert not any(dataset.skipped for dataset in datasets)
    assert datasets[0].folder != datasets[1].folder
