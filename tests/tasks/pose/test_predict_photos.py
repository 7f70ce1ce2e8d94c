"""Predictions land where the joints are, in pixels of the file; errors are one line and exit code 2."""

import json
import pathlib
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
import pytest

from hardmine_jax import training
from hardmine_jax.data.coco_json import Category
from hardmine_jax.data.images import decode_image
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks import photos
from hardmine_jax.tasks.config_json import change
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose import photo_boxes
from hardmine_jax.tasks.pose import pictures as pose_pictures
from hardmine_jax.tasks.pose import predict_photos as pose_predict_photos
from hardmine_jax.tasks.pose.predict import second_scores, show_several
from hardmine_jax.tasks.trainer import make_trainer

SKELETON = Skeleton(("nose", "left_hand", "right_hand"), ((1, 2),), (0.05,) * 3, ((0, 1), (0, 2)))


def _brightest(variables, images):
    """A network that sees bright dots: red is joint 0, green 1, blue 2; each at the centre of its light."""
    light = images.astype(np.float32)
    light = jax.numpy.where(light > 128, light, 0.0)
    total = light.sum((1, 2)) + 1e-6
    rows, columns = np.arange(images.shape[1], dtype=np.float32), np.arange(images.shape[2], dtype=np.float32)
    x = jax.numpy.einsum("bhwc,w->bc", light, columns) / total
    y = jax.numpy.einsum("bhwc,h->bc", light, rows) / total
    return {"keypoints": jax.numpy.stack([x, y], -1), "scores": (total > 1).astype(np.float32)}


def _dots(path: pathlib.Path, points, *, height=150, width=220) -> pathlib.Path:
    """Dark picture with a dot of the channel's colour at each joint."""
    image = np.zeros((height, width, 3), np.uint8)
    for channel, (x, y) in enumerate(points):
        colour = [0, 0, 0]
        colour[channel] = 255
        cv2.circle(image, (x, y), 5, colour, -1)
    cv2.imwrite(str(path), image[..., ::-1])
    return path


def _workdir(folder: pathlib.Path) -> pathlib.Path:
    config = change(pose_config.Config(), image_size=(96, 64), workdir=folder, steps=1, k=2, flip_test=False)
    pose_config.save_config(config, SKELETON)
    return folder


@pytest.fixture
def dots_network(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setattr(pose_config, "make_predict", lambda *_, **__: _brightest)
    monkeypatch.setattr(training, "load_step", lambda path, which: (0, {}))
    return _workdir(tmp_path / "run")


def _results(output: pathlib.Path) -> list[dict]:
    return json.loads((output / "keypoints.json").read_text())


def _points(result: dict) -> np.ndarray:
    return np.reshape(result["keypoints"], (-1, 3))[:, :2]


def test_keypoints_are_in_pixels_of_the_file(tmp_path, dots_network):
    points = [(110, 30), (60, 75), (170, 120)]
    photo = _dots(tmp_path / "dots.png", points)
    output = tmp_path / "out"
    assert (
        pose_predict_photos.main([str(photo), "--checkpoint", str(dots_network), "--output", str(output)])
        == 0
    )
    (result,) = _results(output)
    np.testing.assert_allclose(_points(result), points, atol=1.0)
    assert result["category_id"] == 1 and result["file_name"] == "dots.png" and result["score"] == 1.0
    assert result["bbox"] == [-0.5, -0.5, 220, 150]
    drawn = cv2.imread(str(output / "dots_pose.png"))[..., ::-1]
    assert drawn.shape == (150, 220, 3)
    # Between the nose and the left hand lies an orange limb now.
    assert (np.abs(drawn[52, 85].astype(int) - pose_pictures.LEFT) < 60).all()


@pytest.mark.parametrize("with_names", [True, False])
def test_boxes_of_two_people_find_their_image(tmp_path, dots_network, with_names):
    first, second = [(40, 40), (30, 60), (55, 70)], [(160, 50), (150, 80), (180, 100)]
    image = cv2.imread(str(_dots(tmp_path / "a.png", first))) | cv2.imread(
        str(_dots(tmp_path / "a.png", second))
    )
    photo = tmp_path / "000000000042.png"
    cv2.imwrite(str(photo), image)
    boxes = [
        {"image_id": 42, "bbox": [20, 20, 50, 70], "score": 0.5},
        {"image_id": 42, "bbox": [140, 30, 60, 80], "score": 1},
        {"image_id": 7, "bbox": [0, 0, 5, 5]},
    ]
    content = (
        {"images": [{"id": 42, "file_name": f"x/{photo.name}"}], "annotations": boxes}
        if with_names
        else boxes
    )
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    arguments = ["--checkpoint", str(dots_network), "--boxes", str(tmp_path / "boxes.json")]
    assert pose_predict_photos.main([str(photo), *arguments, "--output", str(tmp_path / "out")]) == 0
    results = _results(tmp_path / "out")
    assert [result["image_id"] for result in results] == [42, 42]
    assert [result["score"] for result in results] == [0.5, 1.0]
    assert results[1]["bbox"] == [140, 30, 60, 80]
    np.testing.assert_allclose(_points(results[0]), first, atol=1.0)
    np.testing.assert_allclose(_points(results[1]), second, atol=1.0)


@pytest.mark.parametrize("given", ["mouse-7", "mouse-7.png", "0007", 7, 7.0, "7"])
def test_ids_that_training_takes_find_their_image(tmp_path, dots_network, given):
    name = "mouse-7" if str(given).startswith("mouse") else "0007"
    photo = _dots(tmp_path / f"{name}.png", [(60, 40), (40, 60), (80, 70)])
    (tmp_path / "boxes.json").write_text(json.dumps([{"image_id": given, "bbox": [20, 20, 80, 70]}]))
    arguments = ["--checkpoint", str(dots_network), "--boxes", str(tmp_path / "boxes.json")]
    assert pose_predict_photos.main([str(photo), *arguments, "--output", str(tmp_path / "out")]) == 0
    (result,) = _results(tmp_path / "out")
    assert result["image_id"] == given and isinstance(result["image_id"], int | str)


def test_ids_of_a_coco_file_are_joined_as_in_training(tmp_path):
    images = [{"id": "a", "file_name": "x/one.png"}, {"id": 2, "file_name": "two.png"}]
    annotations = [{"image_id": "a", "bbox": [0, 0, 9, 9]}, {"image_id": "2", "bbox": [1, 1, 9, 9]}]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    assert {name: image_id for name, (image_id, _) in pose_predict_photos.read_boxes(path).items()} == {
        "x/one.png": "a", "two.png": "2",
    }  # fmt: skip


def test_more_people_than_a_batch_stay_in_order(tmp_path, dots_network):
    places = [(30 + 4 * n, 40 + 2 * n) for n in range(20)]
    photos = []
    for number, (x, y) in enumerate(places):
        photos.append(str(_dots(tmp_path / f"{number}.png", [(x, y), (x + 20, y), (x, y + 20)])))
    assert (
        pose_predict_photos.main(
            [*photos, "--checkpoint", str(dots_network), "--output", str(tmp_path / "out")]
        )
        == 0
    )
    results = _results(tmp_path / "out")
    np.testing.assert_allclose([_points(result)[0] for result in results], places, atol=1.0)


def test_files_of_one_name_do_not_overwrite_each_other(tmp_path, dots_network):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        _dots(tmp_path / folder / "same.png", [(50, 50), (80, 60), (60, 90)])
    photos = [str(tmp_path / folder / "same.png") for folder in ("a", "b")]
    assert (
        pose_predict_photos.main(
            [*photos, "--checkpoint", str(dots_network), "--output", str(tmp_path / "out")]
        )
        == 0
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "keypoints.json", "same_1_pose.png", "same_2_pose.png",
    ]  # fmt: skip


def test_a_photo_that_its_camera_turned_is_set_upright(tmp_path):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :20] = 255
    encoded = cv2.imencode(".jpg", image)[1].tobytes()
    # EXIF orientation 6: the picture has to be turned clockwise to be seen upright.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    path = tmp_path / "turned.jpg"
    path.write_bytes(encoded[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + encoded[2:])
    (whole,) = pose_predict_photos.read_photos([path], None)
    assert whole.image.shape == (80, 40, 3) and whole.image[:15].min() > 200 and whole.image[30:].max() < 50
    np.testing.assert_array_equal(decode_image(whole.encoded), whole.image)
    boxes = {"turned.jpg": (1, [pose_predict_photos.Box((0, 0, 10, 10))])}
    (boxed,) = pose_predict_photos.read_photos([path], boxes)
    assert boxed.image.shape == (80, 40, 3) and boxed.is_boxed
    # As a COCO file lists its size, by whose labels the boxes are.
    for size in ((40, 80), (80, 40)):
        content = {
            "images": [{"id": 1, "file_name": "turned.jpg", "height": size[0], "width": size[1]}],
            "annotations": [{"image_id": 1, "bbox": [0, 0, 10, 10]}],
        }
        (tmp_path / "boxes.json").write_text(json.dumps(content))
        listed = pose_predict_photos.read_boxes(tmp_path / "boxes.json")
        assert pose_predict_photos.read_photos([path], listed)[0].image.shape == (*size, 3)
    # As a run was trained whose labels count the pixels as they are stored.
    (stored,) = pose_predict_photos.read_photos([path], boxes, "stored")
    assert stored.image.shape == (40, 80, 3)
    np.testing.assert_array_equal(decode_image(stored.encoded), stored.image)


# Whose the boxes are, whatever the folders, the numbers and the ids.


def _predict(tmp_path, workdir, photos, content, *flags) -> list[dict]:
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    arguments = [
        *photos,
        "--checkpoint",
        workdir,
        "--boxes",
        tmp_path / "boxes.json",
        "--output",
        tmp_path / "out",
    ]
    assert pose_predict_photos.main([str(argument) for argument in (*arguments, *flags)]) == 0
    return _results(tmp_path / "out")


def _photos(folder: pathlib.Path, *names: str) -> list[pathlib.Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    return [_dots(folder / name, [(60, 40), (40, 60), (80, 70)]) for name in names]


def _coco(*names: str, **more) -> dict:
    """A file of these images, ids from 11, with a box on each that begins at its id."""
    images = [{"id": 11 + n, "file_name": name} for n, name in enumerate(names)]
    boxes = [{"id": n, "image_id": 11 + n, "bbox": [11 + n, 10, 50, 60], **more} for n in range(len(names))]
    return {"images": images, "annotations": boxes}


def _shares(results: list[dict]) -> set[tuple]:
    return {(result["file_name"], result["image_id"], result["bbox"][0]) for result in results}


def test_files_of_one_name_have_their_own_boxes_and_ids(tmp_path, dots_network, monkeypatch):
    photos = _photos(tmp_path, "a/001.png", "b/001.png")
    content = _coco("a/001.png", "b/001.png")
    expected = {("a/001.png", 11, 11), ("b/001.png", 12, 12)}
    assert _shares(_predict(tmp_path, dots_network, photos, content)) == expected
    assert _shares(_predict(tmp_path, dots_network, photos[::-1], content)) == expected
    # From a folder in between, with folders before, with Windows' and addresses' ways of writing a name.
    monkeypatch.chdir(tmp_path / "a")
    here = [pathlib.Path("001.png"), pathlib.Path("../b/001.png")]
    for names in (
        ("x/a/001.png", "x/b/001.png"),
        ("a\\001.png", ".\\b\\001.png"),
        ("a%2F001.png", "b/001.png"),
    ):
        assert _shares(_predict(tmp_path, dots_network, here, _coco(*names))) == expected
    # As a list of detections, which our own detector writes so.
    listed = [{"file_name": f"{folder}/001.png", "image_id": 5 + n, "bbox": [5 + n, 5, 50, 60], "score": 1}
              for n, folder in enumerate("ab")]  # fmt: skip
    assert _shares(_predict(tmp_path, dots_network, photos, listed)) == {
        ("a/001.png", 5, 5), ("b/001.png", 6, 6),
    }  # fmt: skip


def test_a_photo_whose_box_is_not_there_takes_no_other_s(tmp_path, dots_network, capsys):
    photos = _photos(tmp_path, "a/001.png", "b/001.png")
    assert _shares(_predict(tmp_path, dots_network, photos, _coco("a/001.png"))) == {("a/001.png", 11, 11)}
    assert capsys.readouterr().err == ""
    # Alone it may be the same picture in another folder, which is said.
    assert len(_predict(tmp_path, dots_network, photos[1:], _coco("a/001.png"))) == 1
    assert "b/001.png takes those of a/001.png" in capsys.readouterr().err
    # A longer name is better than a shorter one.
    outer = _photos(tmp_path, "001.png")
    assert _shares(_predict(tmp_path, dots_network, outer + photos[:1], _coco("001.png", "a/001.png"))) == {
        (f"{tmp_path.name}/001.png", 11, 11), ("a/001.png", 12, 12),
    }  # fmt: skip


@pytest.mark.parametrize(
    "names, keys",
    [
        (("a/001.png", "b/001.png"), ("001.png",)),
        (("a/001.png", "b/001.png"), (1,)),
        (("7.png", "007.png"), (7,)),
        (("1.png", "1.bmp"), (1,)),
        (("1.png", "1.bmp"), ("1",)),
        (("c/001.png",), ("a/001.png", "b/001.png")),
    ],
)
def test_where_a_name_cannot_decide_that_is_an_error(tmp_path, dots_network, capsys, names, keys):
    boxes = [
        {"file_name" if isinstance(key, str) and "." in key else "image_id": key, "bbox": [1, 1, 9, 9]}
        for key in keys
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    photos = _photos(tmp_path, *names)
    error = _fails(capsys, *photos, "--checkpoint", dots_network, "--boxes", tmp_path / "boxes.json")
    assert "may be" in error and "file_name" in error and str(photos[0]) in error


def test_a_photo_without_boxes_among_others_takes_nobody_s(tmp_path, dots_network, capsys):
    photos = _photos(tmp_path, "a/001.png", "b/001.png", "c/001.png")
    expected = {("a/001.png", 11, 11), ("b/001.png", 12, 12)}
    assert _shares(_predict(tmp_path, dots_network, photos, _coco("a/001.png", "b/001.png"))) == expected
    # Nor one whose own picture is not asked about.
    shares = _shares(_predict(tmp_path, dots_network, photos[:2], _coco("a/001.png", "d/001.png")))
    assert shares == {("a/001.png", 11, 11)} and capsys.readouterr().err == ""
    # All of it in another folder: what agrees of the paths decides.
    content = _coco("old/a/001.png", "old/b/001.png")
    assert _shares(_predict(tmp_path, dots_network, photos, content)) == expected
    assert "boxes of a file in another folder" in capsys.readouterr().err


def test_many_photos_of_a_few_names_are_shared_out_in_seconds():
    names = [f"video{video}/{frame:06}.jpg" for video in range(200) for frame in range(30)]
    paths = [pathlib.Path("/data") / name for name in names]
    started = time.perf_counter()
    assert photo_boxes.share_out(names, paths) == names
    assert photo_boxes.share_out([f"old/{name}" for name in names], paths) == [
        f"old/{name}" for name in names
    ]
    assert len(set(photos.number_photos(paths))) == len(set(photos.picture_names(paths))) == len(names)
    assert photos.file_names(paths) == names and time.perf_counter() - started < 10


def test_a_name_to_the_letter_decides_between_numbers(tmp_path, dots_network):
    photos = _photos(tmp_path, "7.png", "007.png")
    boxes = [{"image_id": "7", "bbox": [7, 1, 9, 9]}, {"image_id": "007", "bbox": [8, 1, 9, 9]}]
    assert _shares(_predict(tmp_path, dots_network, photos, boxes)) == {
        ("7.png", "7", 7),
        ("007.png", "007", 8),
    }


def test_boxes_of_one_picture_under_two_ids_keep_theirs(tmp_path, dots_network):
    content = _coco("a.png", "a.png")
    assert _shares(_predict(tmp_path, dots_network, _photos(tmp_path, "a.png"), content)) == {
        ("a.png", 11, 11), ("a.png", 12, 12),
    }  # fmt: skip


def test_two_pictures_under_one_id_have_none(tmp_path, dots_network, capsys):
    content = _coco("a.png", "b.png", "c.png")
    content["images"][1]["id"] = content["annotations"][1]["image_id"] = "11"
    photos = _photos(tmp_path, "a.png", "b.png", "c.png")
    assert _shares(_predict(tmp_path, dots_network, photos, content)) == {("c.png", 13, 13)}
    assert (
        "2 image_id that images of several names share (box 0 of 11, box 1 of 11)" in capsys.readouterr().err
    )
    # In a list the names decide, and ids that would meet are given anew.
    ids = {"a": {"image_id": 3}, "b": {"image_id": "3"}, "c": {}}
    boxes = [{"file_name": f"{name}.png", "bbox": [9, 9, 50, 60], **one} for name, one in ids.items()]
    results = _predict(tmp_path, dots_network, photos, boxes)
    found = {result["file_name"]: result["image_id"] for result in results}
    assert found == {"a.png": 1, "b.png": 2, "c.png": 4}
    assert "one image_id to several images (3)" in capsys.readouterr().err


def test_ids_of_files_never_meet(tmp_path, dots_network, capsys):
    photos = _photos(tmp_path, "x.png", "1.png", "007.png", "7.png", "3.png")
    arguments = [*photos, photos[0], "--checkpoint", dots_network, "--output", tmp_path / "out"]
    assert pose_predict_photos.main([str(argument) for argument in arguments]) == 0
    results = _results(tmp_path / "out")
    assert {result["file_name"]: result["image_id"] for result in results} == {
        "x.png": 6, "1.png": 1, "007.png": 8, "7.png": 4, "3.png": 3,
    }  # fmt: skip
    told = capsys.readouterr().err
    assert "2 files have a number for a name that another one has" in told and "007.png 8, " in told
    assert "x.png is given twice" in told


def test_no_picture_is_written_over_another(tmp_path, dots_network, capsys):
    photos = _photos(tmp_path, "a/x.png", "b/x.png", "x_1.png", "b/X.png")
    arguments = [*photos, "--checkpoint", dots_network, "--output", tmp_path / "out"]
    assert pose_predict_photos.main([str(argument) for argument in arguments]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "X_4_pose.png", "x_1_pose.png", "x_2_pose.png", "x_3_pose.png",
    ]  # fmt: skip
    photos = _photos(tmp_path, "y.png", "y_pose.png")
    before = photos[1].read_bytes()
    error = _fails(capsys, *photos, "--checkpoint", dots_network, "--output", tmp_path)
    assert "y_pose.png is one of the images" in error and photos[1].read_bytes() == before


# Categories, scores, and what is left out.


def test_people_have_the_category_of_the_run_or_of_their_box(tmp_path, dots_network, capsys):
    config = pose_config.load_config(dots_network)[0]
    pose_config.save_config(config, SKELETON, [Category(2, "Mouse")])
    photos = _photos(tmp_path, "a.png")
    assert pose_predict_photos.main([str(photos[0]), "--checkpoint", str(dots_network), "--output",
                                     str(tmp_path / "out")]) == 0  # fmt: skip
    assert _results(tmp_path / "out")[0]["category_id"] == 2
    box = {"file_name": "a.png", "bbox": [10, 10, 50, 60]}

    def categories(*entries, **more) -> list:
        content = (
            more | {"annotations": [box | entry for entry in entries]} if more else [box | e for e in entries]
        )
        return [result["category_id"] for result in _predict(tmp_path, dots_network, photos, content)]

    assert categories({}, {"category_id": 2}) == [2, 2] and capsys.readouterr().err == ""
    assert categories({"category_id": 0}) == [0]
    assert (
        "boxes are of category 0, which keypoints.json repeats; the run's is Mouse (id 2)"
        in capsys.readouterr().err
    )
    # One name is one category, whatever its number.
    assert categories({"category_id": 1, "category": "mouse"}) == [2]
    assert categories({"category_id": 9}, categories=[{"id": 9, "name": "mouse"}]) == [2]
    assert capsys.readouterr().err == ""
    assert categories({"category_id": 2}, {"category_id": 3}) == [2, 3]
    assert "several categories are all taken (2, 3): --box-category" in capsys.readouterr().err


def test_boxes_are_chosen_by_score_and_category(tmp_path, dots_network, capsys):
    photos = _photos(tmp_path, "a.png")
    boxes = [
        {
            "file_name": "a.png",
            "bbox": [n, 10, 50, 60],
            "score": n / 10,
            "category_id": n % 2,
            "category": name,
        }
        for n, name in enumerate(("dog", "Cat", "dog", "cat", "cat"))
    ]
    boxes.append({"file_name": "a.png", "bbox": [9, 10, 50, 60], "score": 0.9})
    flags = {
        (): {0, 1, 2, 3, 4, 9},
        ("--box-min-score", 0.2): {2, 3, 4, 9},
        ("--box-category", "cat"): {1, 3, 4},
        ("--box-category", 0, "--box-min-score", 0.1): {2, 4},
    }
    for chosen, taken in flags.items():
        results = _predict(tmp_path, dots_network, photos, boxes, *chosen)
        assert {result["bbox"][0] for result in results} == taken
    assert "1 score below 0.1 (box 0 of a.png); 3 another category" in capsys.readouterr().err
    for flag in (("--box-min-score", "0.5"), ("--box-category", "cat")):
        assert flag[0] in _fails(capsys, *photos, "--checkpoint", dots_network, *flag)
    given = ["--boxes", tmp_path / "boxes.json", "--box-category", "cow"]
    error = _fails(capsys, *photos, "--checkpoint", dots_network, *given)
    assert "6 another category" in error


_BAD = {
    "box of no area": {"bbox": [20, 20, 0, 30]},
    "no bbox": {"bbox": None},
    "bbox that is not 4 numbers": {"bbox": [1, 2, 3]},
    "score that is no number": {"score": None},
    "bbox or score that is no finite number": {"bbox": [1, 1, 1e39, 9]},
    "crowd (iscrowd)": {"iscrowd": "1"},
    "image_id that is neither a whole number nor text": {"image_id": 1.5},
    "box outside the image": {"bbox": [500, 10, 50, 60]},
    "box in 0..1, where pixels are expected": {"bbox": [0.1, 0.2, 0.3, 0.5]},
}


@pytest.mark.parametrize("in_coco_file", [False, True])
def test_bad_boxes_are_left_out_counted_and_named_and_the_others_predicted(
    tmp_path, dots_network, capsys, in_coco_file
):
    photos = _photos(tmp_path, "1.png", "2.png")
    good = {"image_id": 1, "bbox": [10, 10, 50, 60]}
    entries = [
        good,
        *(good | bad for bad in _BAD.values()),
        "text",
        {"bbox": [1, 2, 3, 4]},
        good | {"image_id": 2},
    ]
    content = {"images": [{"id": 1, "file_name": "1.png"}, None, {"id": 2}], "annotations": entries}
    results = _predict(tmp_path, dots_network, photos, content if in_coco_file else entries)
    assert [result["image_id"] for result in results] == [1, 2]
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("boxes: skipped 11 records: ")
    for place, reason in enumerate(_BAD, start=1):
        named = f"box {place} of" if "image_id" not in reason and place < 8 else ""
        assert f"1 {reason} ({named}" in told
    assert "neither file_name nor image_id (box 11)" in told


def test_no_boxes_given_and_several_subjects_is_said(tmp_path, dots_network, monkeypatch, capsys):
    photos, several = _photos(tmp_path, "a.png", "b.png"), np.float32([[0.1, 0.1, 0.1], [0.9, 0.9, 0.1]])

    def predict(variables, images):
        return _brightest(variables, images) | {"second_scores": several}

    monkeypatch.setattr(
        pose_config, "make_predict", lambda *_, with_second, **__: predict if with_second else _brightest
    )
    arguments = [*photos, "--checkpoint", dots_network, "--output", tmp_path / "out"]
    assert pose_predict_photos.main([str(argument) for argument in arguments]) == 0
    told = capsys.readouterr().err
    assert "1 of 2 images seem to show several subjects" in told and "b.png" in told and "a.png" not in told
    _predict(tmp_path, dots_network, photos, _coco("a.png", "b.png"))
    assert capsys.readouterr().err == ""


def test_second_places_are_away_from_the_first_and_from_the_other_side():
    x, y = np.meshgrid(np.arange(24.0), np.arange(24.0))

    def dot(column, row, height=1.0):
        return height * np.exp(-((x - column) ** 2 + (y - row) ** 2) / 4)

    alone = [dot(5, 5), dot(4, 15) + dot(15, 15, 0.9), dot(15, 15)]
    double = [dot(5, 5) + dot(18, 5, 0.8), dot(4, 15) + dot(20, 20, 0.7), dot(15, 15) + dot(7, 21, 0.6)]
    heatmaps = np.float32([alone, double]).transpose(0, 2, 3, 1)
    keypoints = np.float32([[[5, 5], [4, 15], [15, 15]]] * 2)
    found = np.asarray(second_scores(heatmaps, keypoints, SKELETON))
    assert found[0].max() < 0.05
    np.testing.assert_allclose(found[1], [0.8, 0.7, 0.6], atol=0.01)
    assert show_several(np.ones((2, 3)), found).tolist() == [False, True]
    # A single keypoint, and nothing found at all.
    assert show_several(np.ones((1, 1)), np.ones((1, 1))).tolist() == [True]
    assert show_several(np.zeros((1, 3)), np.zeros((1, 3))).tolist() == [False]


def _fails(capsys, *arguments) -> str:
    assert pose_predict_photos.main([str(argument) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    return output.err


def test_bad_images_are_named(tmp_path, capsys, dots_network):
    workdir = dots_network
    assert "absent.jpg" in _fails(capsys, tmp_path / "absent.jpg", "--checkpoint", workdir)
    (tmp_path / "text.jpg").write_text("no picture")
    assert "text.jpg" in _fails(capsys, tmp_path / "text.jpg", "--checkpoint", workdir)
    whole = _dots(tmp_path / "whole.png", [(50, 50)]).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    assert "half.png" in _fails(capsys, tmp_path / "half.png", "--checkpoint", workdir)
    assert str(tmp_path) in _fails(capsys, tmp_path, "--checkpoint", workdir)


def test_a_missing_checkpoint_is_named(tmp_path, capsys):
    photo = _dots(tmp_path / "dots.png", [(50, 50)])
    assert str(tmp_path / "nowhere") in _fails(capsys, photo, "--checkpoint", tmp_path / "nowhere")
    workdir = _workdir(tmp_path / "run")
    assert str(workdir) in _fails(capsys, photo, "--checkpoint", workdir)
    (workdir / "config.json").write_text("{}")
    assert "config.json" in _fails(capsys, photo, "--checkpoint", workdir)


@pytest.mark.parametrize(
    "content",
    ["no json", "[1, 2]", '{"a": 1}', '[{"image_id": 1}]', '[{"image_id": 1, "bbox": [0, 0, 0, 5]}]', "[]",
     '[{"image_id": Infinity, "bbox": [0, 0, 9, 9]}]', '[{"image_id": [1], "bbox": [0, 0, 9, 9]}]',
     '{"images": [{"id": 1.5, "file_name": "dots.png"}], "annotations": []}',
     '[{"image_id": 1, "bbox": [1e308, 0, 1e308, 9]}]',
     f'[{{"image_id": 1, "bbox": [{10**400}, 0, 9, 9]}}]',
     '[{"image_id": 12345, "bbox": [0, 0, 9, 9]}]', '[{"file_name": "other.png", "bbox": [0, 0, 9, 9]}]'],
)  # fmt: skip
def test_bad_boxes_are_one_line(tmp_path, capsys, content, dots_network):
    photo, boxes = _dots(tmp_path / "dots.png", [(50, 50)]), tmp_path / "boxes.json"
    boxes.write_text(content)
    assert "box" in _fails(capsys, photo, "--checkpoint", dots_network, "--boxes", boxes)


def test_the_script_runs_a_trained_network_from_anywhere(tmp_path):
    """The whole way, with a real checkpoint, in a folder that is not the repository."""
    config = change(
        pose_config.Config(), image_size=(32, 32), workdir=tmp_path / "run", steps=1000, k=2, flip_test=False
    )
    pose_config.save_config(config, SKELETON)
    _, state = make_trainer(config.run, pose_config.build(config, SKELETON))
    checkpoints = training.Checkpoints(config.run.workdir, best_metric="pck")
    checkpoints.save(1, state, None, {"pck": 0.5})
    checkpoints.close()
    _dots(tmp_path / "dots.png", [(110, 30), (60, 75), (170, 120)])
    script = pathlib.Path(__file__).parents[3] / "experiments" / "predict_pose.py"
    command = [
        sys.executable,
        str(script),
        "dots.png",
        "--checkpoint",
        "run/checkpoints/1",
        "--output",
        "out",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / "out" / "dots_pose.png")).shape == (150, 220, 3)
    (result,) = _results(tmp_path / "out")
    assert len(result["keypoints"]) == 9 and np.isfinite(result["keypoints"]).all()
