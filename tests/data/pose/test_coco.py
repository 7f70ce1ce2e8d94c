"""COCO keypoint JSON: mice with five keypoints, files that are none, and the official archives by HTTP."""

import functools
import http.server
import io
import json
import pathlib
import threading
import zipfile

import cv2
import numpy as np
import pytest

from hardmine_jax.data import coco_download, listing
from hardmine_jax.data.pose import coco
from hardmine_jax.data.pose.records import Picture
from hardmine_jax.data.problems import DataError

MOUSE = {
    "id": 3,
    "name": "mouse",
    "keypoints": ["nose", "left_ear", "right_ear", "tail_base", "tail_tip"],
    "skeleton": [[1, 2], [1, 3], [1, 4], [4, 5]],
}


def annotation(number: int, image_id: int, k: int = 5, **changes) -> dict:
    points = np.random.default_rng(number).integers(2, 38, (k, 2))
    keypoints = [int(value) for x, y in points for value in (x, y, 2)]
    return {"id": number, "image_id": image_id, "category_id": 3, "keypoints": keypoints} | changes


def write_images(folder: pathlib.Path, names) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
        assert cv2.imwrite(str(folder / name), pixels)


def write_json(path: pathlib.Path, content) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def content_of(num_images: int, category: dict = MOUSE) -> dict:
    k = len(category["keypoints"])
    return {
        "images": [{"id": 100 + n, "file_name": f"cage/{n}.png"} for n in range(num_images)],
        "annotations": [annotation(n, 100 + n, k, category_id=category["id"]) for n in range(num_images)],
        "categories": [category],
    }


@pytest.fixture
def mice(tmp_path):
    """(content, save): twenty PNG images in a folder; save(content) -> the arguments of load."""
    content = content_of(20)
    write_images(tmp_path / "images", [image["file_name"] for image in content["images"]])
    return content, lambda changed: (write_json(tmp_path / "mice.json", changed), tmp_path / "images")


def everybody(dataset) -> dict[int, dict]:
    records = [*dataset.train, *dataset.validation]
    return {int(record["annotation_id"]): record for record in records}


def test_coco_skeleton_is_the_official_one():
    skeleton = coco.COCO_SKELETON
    assert skeleton.num_keypoints == 17
    # pycocotools' COCOeval: kpt_oks_sigmas = these / 10.
    halves = [0.25, 0.35, 0.79, 0.72, 0.62, 1.07, 0.87, 0.89]
    np.testing.assert_allclose(skeleton.sigmas, [0.026, *(np.repeat(halves, 2) / 10)])
    assert coco.infer_flip_pairs(skeleton.names) == skeleton.flip_pairs
    assert len(skeleton.edges) == 19


def test_mice_with_five_keypoints(mice):
    content, save = mice
    dataset = coco.load(*save(content))
    skeleton = dataset.skeleton
    assert skeleton.names == tuple(MOUSE["keypoints"])
    assert skeleton.flip_pairs == ((1, 2),)
    assert skeleton.edges == ((0, 1), (0, 2), (0, 3), (3, 4))
    assert skeleton.sigmas == (coco.DEFAULT_SIGMA,) * 5
    assert len(dataset.train) + len(dataset.validation) == 20 and 1 <= len(dataset.validation) <= 5
    for number, record in everybody(dataset).items():
        points = np.float32(content["annotations"][number]["keypoints"]).reshape(5, 3)
        np.testing.assert_array_equal(record["keypoints"], points[:, :2])
        np.testing.assert_array_equal(record["visibility"], points[:, 2])
        np.testing.assert_array_equal(record["box"], [*points[:, :2].min(0), *points[:, :2].max(0)])
        assert record["image_id"] == 100 + number and record["name"] == f"cage/{number}.png"
        assert record["image"].startswith(b"\x89PNG")


def test_several_in_an_image_with_box_and_area_of_the_file(mice):
    content, save = mice
    extra = annotation(50, 100, bbox=[3.5, 4, 30, 20], area=77.0)
    no_area = annotation(51, 100, bbox=[3.5, 4, 30, 20], area=0)
    content["annotations"] += [extra, no_area, annotation(52, 105)]
    records = everybody(coco.load(*save(content)))
    assert len(records) == 23
    np.testing.assert_array_equal(records[50]["box"], [3.5, 4, 33.5, 24])
    assert (records[50]["area"], records[51]["area"]) == (77, 600)
    assert records[0]["image"] == records[50]["image"] and records[0]["image_id"] == records[51]["image_id"]


def test_visibility_is_the_files(mice):
    content, save = mice
    content["annotations"][0]["keypoints"] = [5, 6, 2, 7, 8, 1, 0, 0, 0, 9, 30, 2, 11, 12, 1]
    record = everybody(coco.load(*save(content)))[0]
    np.testing.assert_array_equal(record["visibility"], [2, 1, 0, 2, 1])
    np.testing.assert_array_equal(record["box"], [5, 6, 11, 30])


def test_split_follows_the_image_and_stays_when_others_come(mice):
    content, save = mice
    content["annotations"] += [annotation(100 + n, 100 + n) for n in range(20)]
    dataset = coco.load(*save(content))
    train, validation = (
        {int(r["image_id"]) for r in source} for source in (dataset.train, dataset.validation)
    )
    assert train.isdisjoint(validation) and len(train | validation) == 20
    content["images"] = content["images"][:12][::-1]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] < 112]
    fewer = coco.load(*save(content))
    assert {int(record["image_id"]) for record in fewer.train} <= train


@pytest.mark.parametrize("num_images", [2, 3, 1000])
def test_a_tenth_is_set_apart_and_both_sides_have_somebody(num_images):
    pictures = [Picture("", number, b"", ()) for number in range(num_images)]
    train, validation = listing.tenth_apart(pictures, [str(picture.image_id) for picture in pictures])
    assert len(train) + len(validation) == num_images and train and validation
    if num_images == 1000:
        assert 70 < len(validation) < 130


def test_a_second_file_to_validate_on(mice, tmp_path):
    content, save = mice
    other = content_of(4)
    write_images(tmp_path / "other", [image["file_name"] for image in other["images"]])
    second = write_json(tmp_path / "other.json", other)
    dataset = coco.load(*save(content), validation_annotations=second, validation_images=tmp_path / "other")
    assert (len(dataset.train), len(dataset.validation)) == (20, 4)
    other["categories"] = [MOUSE | {"keypoints": ["a", "b", "c", "d", "e"]}]
    write_json(second, other)
    with pytest.raises(DataError, match="other.json has keypoints .*'a'"):
        coco.load(*save(content), validation_annotations=second)


def test_overrides_by_name_and_index(mice):
    content, save = mice
    dataset = coco.load(
        *save(content), sigmas=[0.1] * 5, flip_pairs=[("tail_base", "tail_tip")], edges=[(0, 1), ("nose", 4)]
    )
    assert dataset.skeleton.sigmas == (0.1,) * 5
    assert dataset.skeleton.flip_pairs == ((3, 4),)
    assert dataset.skeleton.edges == ((0, 1), (0, 4))
    content["categories"][0] = MOUSE | {"sigmas": [0.2] * 5, "skeleton": [[0, 1], [3, 4]]}
    dataset = coco.load(*save(content), flip_pairs=[])
    assert dataset.skeleton.sigmas == (0.2,) * 5
    assert dataset.skeleton.flip_pairs == ()
    assert dataset.skeleton.edges == ((0, 1), (3, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmas": [0.1]}, "1 sigmas for 5 keypoints"),
        ({"flip_pairs": [("nose", "fin")]}, r"no keypoints \['fin'\] among"),
        ({"edges": [(0, 9)]}, r"edge \(0, 9\) must be two indices"),
        ({"category": "cat"}, r"not one category 'cat': .* mouse \(id 3, 5 keypoints\)"),
    ],
)
def test_options_that_do_not_fit(mice, options, message):
    content, save = mice
    with pytest.raises(DataError, match=message):
        coco.load(*save(content), **options)


def test_cocos_names_get_cocos_sigmas(mice):
    _, save = mice
    person = {"id": 1, "name": "person", "keypoints": list(coco.COCO_SKELETON.names)}
    dataset = coco.load(*save(content_of(5, person)))
    assert dataset.skeleton.sigmas == coco.COCO_SKELETON.sigmas
    assert dataset.skeleton.flip_pairs == coco.COCO_SKELETON.flip_pairs
    assert dataset.skeleton.edges == ()


def test_several_categories_have_to_be_chosen_from(mice):
    content, save = mice
    fish = {"id": 8, "name": "fish", "keypoints": ["mouth", "fin"]}
    content["categories"] += [fish, {"id": 9, "name": "rock"}]
    content["annotations"].append(annotation(70, 100, 2, category_id=8))
    both = r"mouse \(id 3, 5 keypoints\), fish \(id 8, 2 keypoints\)"
    with pytest.raises(DataError, match=f"several categories with keypoints: choose .* {both}"):
        coco.load(*save(content))
    assert len(everybody(coco.load(*save(content), category="mouse"))) == 20
    for chosen in ("fish", 8, "8"):
        dataset = coco.load(*save(content), category=chosen)
        assert dataset.skeleton.names == ("mouth", "fin") and list(everybody(dataset)) == [70]


def test_skipped_annotations_are_counted_with_their_names(mice, tmp_path):
    content, save = mice
    content["annotations"] += [
        annotation(30, 100, iscrowd=1),
        annotation(31, 100, num_keypoints=0),
        annotation(32, 100, keypoints=[0] * 15),
        annotation(33, 100, keypoints=[1, 2, 2]),
        annotation(34, 100, keypoints=None),
        annotation(35, 100, bbox=[4, 4, 0, 9]),
        annotation(36, 999),
        annotation(37, 100, keypoints=[50, 5, 2] + [0] * 12),
        "no annotation",
    ]
    content["images"][1]["file_name"] = "cage/absent.png"
    content["images"][2].pop("file_name")
    (tmp_path / "images" / "cage" / "4.png").write_bytes(b"\x89PNG cut")
    for _ in range(2):
        dataset = coco.load(*save(content))
        assert dataset.skipped.reasons == {
            "crowd (iscrowd)": ("image 100#30",),
            "no labelled joint (num_keypoints 0)": ("image 100#31",),
            "no labelled joint": ("image 100#32",),
            "keypoints of 3 numbers (wanted 15)": ("image 100#33",),
            "no keypoints": ("image 100#34",),
            "annotation without image_id": ("mice.json annotation 28",),
            "file_name missing, no path or outside the image folder": ("None",),
            "annotation of an image that is not listed": ("image 999#36",),
            "no labelled joint inside the image": ("cage/0.png#37",),
            "image absent": ("cage/absent.png",),
            "image unreadable": ("cage/4.png",),
        }
        assert dataset.skipped.noted == {"box of no area (made around the joints)": ("cage/0.png#35",)}
        assert sorted(everybody(dataset)) == [0, 3, *range(5, 20), 35]


def test_paths_do_not_leave_the_image_folder(mice, tmp_path):
    content, save = mice
    write_images(tmp_path, ["secret.png"])
    write_images(tmp_path / "images2", ["secret.png"])
    away = [
        "../secret.png",
        "../images2/secret.png",
        "cage/../../secret.png",
        str(tmp_path / "secret.png"),
        "\0",
    ]
    for image, name in zip(content["images"], away, strict=False):
        image["file_name"] = name
    content["images"][5]["file_name"] = "cage/../cage/5.png"
    dataset = coco.load(*save(content))
    reason = "file_name missing, no path or outside the image folder"
    assert dataset.skipped.reasons == {reason: (*away[:4], r"\x00")}
    assert sorted(everybody(dataset)) == list(range(5, 20))


def test_ids_that_are_text(mice):
    content, save = mice
    for image, labelled in zip(content["images"], content["annotations"], strict=True):
        image["id"] = labelled["image_id"] = f"image-{image['id']}"
        labelled["id"] = "a"
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = 0
    dataset = coco.load(*save(content))
    numbers = {record["name"]: int(record["image_id"]) for record in everybody(dataset).values()}
    assert len(set(numbers.values())) == 20 and numbers["cage/0.png"] == 0
    # Neither numbers nor split follow the order of the file.
    content["images"].reverse()
    content["annotations"].reverse()
    turned = coco.load(*save(content))
    assert {record["name"]: int(record["image_id"]) for record in everybody(turned).values()} == numbers
    for split in ("train", "validation"):
        names = [{record["name"] for record in getattr(each, split)} for each in (dataset, turned)]
        assert names[0] == names[1]


def test_ids_as_pandas_or_a_form_writes_them(mice):
    content, save = mice
    content["images"][0]["id"] = 100.0
    content["annotations"][1].update(image_id=101.0, id=1.0, category_id=3.0)
    content["annotations"][2].update(image_id="102", category_id="3")
    content["annotations"] += [annotation(30, 100.5), annotation(31, float("inf")), annotation(32, True)]
    content["images"].append({"id": float("nan"), "file_name": "cage/0.png"})
    dataset = coco.load(*save(content))
    names = tuple(f"mice.json annotation {place}" for place in (20, 21, 22))
    assert dataset.skipped.reasons == {
        "annotation without image_id": names,
        "image without an id": ("cage/0.png",),
    }
    found = {number: int(record["image_id"]) for number, record in everybody(dataset).items()}
    assert found == {number: 100 + number for number in range(20)}


def test_no_annotation_of_the_category_names_those_there_are(mice):
    content, save = mice
    for place, labelled in enumerate(content["annotations"]):
        labelled["category_id"] = place % 2 + 7
    message = r"mice.json is of category mouse \(id 3\): their category_id is 7, 8$"
    with pytest.raises(DataError, match=message):
        coco.load(*save(content))


def test_numbers_beyond_what_a_record_holds_are_skipped_or_replaced(mice):
    content, save = mice
    huge = 10**400
    content["annotations"] += [
        annotation(30, 100, keypoints=[huge] * 15),
        annotation(31, 100, area=huge),
        annotation(32, 100, bbox=[0, 0, huge, 5]),
        annotation(33, 100, area=1e300),
        annotation(34, 100, bbox=[0, 0, 1e30, 1e30]),
        annotation(35, 100, bbox=[1e308, 0, 1e308, 5]),
        annotation(36, 100, bbox=[float("-inf"), 0, float("inf"), 5]),
        annotation(37, 100, keypoints=[float("nan"), 5, 2, 5, float("inf"), 2, 5, 5, float("inf")] + [0] * 6),
        annotation(2**70, 101),
        annotation(2**63 - 1, 102),
    ]
    content["images"][3]["id"] = content["annotations"][3]["image_id"] = 2**70
    content["images"][4]["id"] = content["annotations"][4]["image_id"] = 2**63 - 1
    content["images"][5]["file_name"] = "\ud800.png"
    content["images"][6]["file_name"] = "x" * 300 + ".png"
    dataset = coco.load(*save(content))
    assert dataset.skipped.reasons == {
        "keypoints with what is no number": ("image 100#30",),
        "area with what is no number": ("image 100#31",),
        "bbox with what is no number": ("image 100#32",),
        "no labelled joint": ("image 100#37",),
        "file_name missing, no path or outside the image folder": (r"\ud800.png",),
        "box or area that is no finite number": tuple(f"cage/0.png#{number}" for number in (33, 34, 35, 36)),
        "image unreadable": ("x" * 300 + ".png",),
    }
    records = everybody(dataset)
    assert sorted(records) == [0, 1, 2, 3, 4, *range(7, 20), 28, 2**63 - 1]
    assert records[4]["image_id"] == 2**63 - 1 and 0 <= records[3]["image_id"] < 2**63


def test_an_image_turned_since_it_was_labelled_is_skipped(mice, tmp_path):
    content, save = mice
    for image in content["images"]:
        image.update(width=40, height=40)
    content["images"][0].update(width=30)
    content["images"][1].update(width=40.0, height=40.0)
    content["images"][2].update(width=0, height=None)
    dataset = coco.load(*save(content))
    reason = "image is not of the listed width and height (turned by EXIF?)"
    assert dataset.skipped.reasons == {reason: ("cage/0.png",)} and len(everybody(dataset)) == 19


def test_one_image_leaves_the_validation_split_empty(mice):
    content, save = mice
    dataset = coco.load(*save(content | {"images": content["images"][:1]}))
    assert (len(dataset.train), len(dataset.validation)) == (1, 0)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("RAnkle", "LAnkle", "earL", "earR", "Nose"), ((1, 0), (2, 3))),
        (("LEFT_EAR", "RIGHT_EAR", "LEFTEYE", "RIGHTEYE"), ((0, 1), (2, 3))),
        (("LSHOULDER", "RSHOULDER", "Lip", "Rip"), ((0, 1),)),
        (("LeftEar", "RightEar", "L_Hip", "R_Hip", "knee.l", "knee.r"), ((0, 1), (2, 3), (4, 5))),
        (("LEar", "Tail", "pawR"), ()),
    ],
)
def test_flip_pairs_are_found_in_the_names(names, pairs):
    assert coco.infer_flip_pairs(names) == pairs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("this is no JSON", "is no JSON .* expected a JSON object"),
        ("", "is no JSON"),
        ("[1, 2]", "is no COCO file, it lacks images and annotations and categories"),
        ({"images": [], "annotations": []}, "is no COCO file, it lacks categories"),
        ({"images": {}, "annotations": [], "categories": []}, "it lacks images"),
        ({"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}, "no category with"),
        ({"images": [], "annotations": [], "categories": []}, "no category with .keypoints"),
        (content_of(0), "nobody to train on"),
        (content_of(2, MOUSE | {"keypoints": ["a"] * 5}), r"category mouse .*names \['a'\] appear twice"),
        (content_of(2, MOUSE | {"sigmas": [0.1]}), "category mouse .*1 sigmas for 5"),
        (content_of(2), "none of the 2 images that .* lists is there: expected .*cage/0.png"),
    ],
)
def test_json_that_is_no_coco_file_is_one_clear_line(tmp_path, capfd, content, message):
    (tmp_path / "images").mkdir()
    path = write_json(tmp_path / "strange.json", content)
    with pytest.raises(DataError, match=message) as caught:
        coco.load(path, tmp_path / "images")
    assert "strange.json" in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_binary_json_is_a_data_error(tmp_path):
    (tmp_path / "strange.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="is no JSON"):
        coco.load(tmp_path / "strange.json", tmp_path)


def test_missing_arguments_and_paths(mice, tmp_path):
    content, save = mice
    path, folder = save(content)
    with pytest.raises(DataError, match="annotations is missing"):
        coco.load(None, folder)
    with pytest.raises(DataError, match="images is missing"):
        coco.load(path, None)
    with pytest.raises(DataError, match=f"no file {tmp_path / 'no.json'}"):
        coco.load(tmp_path / "no.json", folder)
    with pytest.raises(DataError, match=f"no folder {tmp_path / 'no'}: .* {path} are relative to"):
        coco.load(path, tmp_path / "no")


def test_cache_follows_annotations_images_and_options(mice, tmp_path):
    content, save = mice
    folders = [coco.load(*save(content)).folder]
    assert coco.load(*save(content)).folder == folders[0]
    folders.append(coco.load(*save(content), flip_pairs=[]).folder)
    content["annotations"][0]["keypoints"][0] += 1
    folders.append(coco.load(*save(content)).folder)
    write_images(tmp_path / "images", ["cage/7.png"])
    folders.append(coco.load(*save(content)).folder)
    assert len(set(folders)) == 4
    # A run may write into a folder beside the images; only those listed count.
    write_images(tmp_path / "images", ["run/checkpoints/1.png"])
    assert coco.load(*save(content)).folder == folders[-1]


def test_another_version_of_the_code_is_other_data(mice, change_code):
    content, save = mice
    folder = coco.load(*save(content)).folder
    change_code(coco)
    assert coco.load(*save(content)).folder != folder


def official(folder: pathlib.Path) -> pathlib.Path:
    """COCO 2017 in miniature: six images to train on, two to validate on."""
    person = {"id": 1, "name": "person", "keypoints": list(coco.COCO_SKELETON.names)}
    person["skeleton"] = [[a + 1, b + 1] for a, b in coco.COCO_SKELETON.edges]
    for split, num_images in (("train", 6), ("val", 2)):
        content = content_of(num_images, person)
        for image in content["images"]:
            image["file_name"] = f"{image['id']:012d}.jpg"
        for labelled in content["annotations"]:
            labelled["segmentation"] = [[0, 0, 1, 1, 0, 1]]
        write_images(folder / f"{split}2017", [image["file_name"] for image in content["images"]])
        write_json(folder / "annotations" / f"person_keypoints_{split}2017.json", content)
    return folder


def test_official_layout(tmp_path):
    dataset = coco.load_official(official(tmp_path))
    assert dataset.name == "coco2017" and dataset.skeleton == coco.COCO_SKELETON
    assert (len(dataset.train), len(dataset.validation)) == (6, 2)
    (tmp_path / "annotations" / "person_keypoints_val2017.json").unlink()
    with pytest.raises(DataError, match="no file .*person_keypoints_val2017.json"):
        coco.load_official(tmp_path)


@pytest.fixture
def server(tmp_path):
    """(folder, base URL, requests seen) of an HTTP server with the three archives."""
    source, root = official(tmp_path / "source"), tmp_path / "server"
    for archive, folder in zip(coco_download.ARCHIVES, ("annotations", "train2017", "val2017"), strict=True):
        (root / archive).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(root / archive, "w") as file:
            for path in sorted((source / folder).iterdir()):
                file.write(path, f"{folder}/{path.name}")
    seen = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, form, *values):
            seen.extend([self.path] if self.command == "GET" else [])

    handler = functools.partial(Handler, directory=root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield root, f"http://127.0.0.1:{running.server_port}", seen
        running.shutdown()
        thread.join()


def test_official_archives_are_downloaded_once(server, tmp_path, capfd):
    _, base_url, seen = server
    dataset = coco.load_official(base_url=base_url, cache_dir=tmp_path / "cache")
    assert (len(dataset.train), len(dataset.validation)) == (6, 2)
    assert dataset.skeleton == coco.COCO_SKELETON
    assert sorted(seen) == sorted(f"/{archive}" for archive in coco_download.ARCHIVES)
    out, err = capfd.readouterr()
    assert out == "" and [line.split()[0] for line in err.splitlines()] == ["downloading", "preparing"]
    again = coco.load_official(base_url=base_url, cache_dir=tmp_path / "cache")
    assert again.folder == dataset.folder and len(seen) == 3 and capfd.readouterr() == ("", "")
    assert not list((tmp_path / "cache" / "downloads").rglob("*.zip*"))


def test_download_that_breaks_off_goes_on_where_it_was(server, tmp_path):
    root, base_url, seen = server
    last = root / coco_download.ARCHIVES[2]
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(
        DataError, match=r"cannot download .*val2017.zip .*404.*give data_dir, a folder"
    ) as caught:
        coco.load_official(base_url=base_url, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    last.write_bytes(b"an error page, not a zip")
    with pytest.raises(DataError, match="val2017.zip gave no whole zip archive"):
        coco.load_official(base_url=base_url, cache_dir=tmp_path / "cache")
    last.write_bytes(content)
    dataset = coco.load_official(base_url=base_url, cache_dir=tmp_path / "cache")
    assert len(dataset.train) == 6
    assert sum(path.endswith("train2017.zip") for path in seen) == 1


def test_archive_members_stay_inside(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("../../escaped.txt", "x")
    (tmp_path / "a.zip").write_bytes(buffer.getvalue())
    coco_download._unpack(tmp_path / "a.zip", "url", tmp_path / "deep" / "er")
    assert [path.name for path in tmp_path.rglob("escaped.txt")] == ["escaped.txt"]
    assert (tmp_path / "deep" / "er" / "escaped.txt").exists()


def test_no_server_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="cannot download http://127.0.0.1:9/annotations"):
        coco_download.download(base_url="http://127.0.0.1:9", cache_dir=tmp_path)
