"""Predictions land where the joints are, in pixels of the file; errors are one line and exit code 2."""

import json
import pathlib
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from hardmine_jax import training
from hardmine_jax.data.images import decode_image
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.config_json import change
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose import pictures as pose_pictures
from hardmine_jax.tasks.pose import predict_photos as pose_predict_photos
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
        "one.png": "a", "two.png": "2",
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
    # As a run was trained whose labels count the pixels as they are stored.
    (stored,) = pose_predict_photos.read_photos([path], boxes, "stored")
    assert stored.image.shape == (40, 80, 3)
    np.testing.assert_array_equal(decode_image(stored.encoded), stored.image)


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
