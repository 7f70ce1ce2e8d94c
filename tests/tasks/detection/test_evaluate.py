"""Scoring a run: by name, into a folder of its own, and on its own data to the training's own numbers.

Objects are coloured boxes, and the detector goes by colours: a class taken for another finds nothing.
"""

import functools
import json
import pathlib
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax import training
from hardmine_jax.models import fast_rcnn
from hardmine_jax.models.vgg import VGGTrunk
from hardmine_jax.tasks.detection import config as detection_config
from hardmine_jax.tasks.detection import evaluate as detection_evaluate
from hardmine_jax.tasks.detection import networks
from hardmine_jax.tasks.detection import pictures as detection_pictures
from hardmine_jax.tasks.detection import train as detection_train
from hardmine_jax.tasks.detection.evaluation import Evaluator
from hardmine_jax.tasks.detection.predict import Decoding, find_detections

_PICTURES, _REPORT_PICTURES = Evaluator.pictures, detection_pictures.report_pictures
CLASSES = ("red", "green", "blue")
_COLOURS = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0), "grey": (128, 128, 128)}


def _tiny_model(name, num_classes, *, axis_name, **_):
    trunk = VGGTrunk(((4,), (4,), (4,)), axis_name=axis_name)
    return fast_rcnn.FastRCNN(num_classes, trunk, hidden=(8, 8), dropout=0.0, pooling="align")


def _by_colour(model, decoding: Decoding):
    """`make_predict` with a detector that scores each proposal by how red, green and blue it is."""

    def predict(variables, batch):
        def one(image, boxes, where, limits):
            height, width = image.shape[:2]
            x, y = jnp.arange(width) + 0.5, jnp.arange(height) + 0.5

            def inside(box):
                across, down = (x > box[0]) & (x < box[2]), (y > box[1]) & (y < box[3])
                mask = (down[:, None] & across[None])[..., None]
                return (image * mask).sum((0, 1)) / jnp.maximum(mask.sum((0, 1)), 1) / 255

            scores = jax.vmap(inside)(boxes)
            boxes = jnp.broadcast_to(boxes[:, None], (len(boxes), 3, 4))
            return find_detections(boxes, scores, where, decoding)

        found = jax.vmap(one)(
            batch["image"].astype(jnp.float32),
            batch["proposals"],
            batch["proposals_where"],
            batch["image_size"],
        )
        return {**found, "boxes": found["boxes"] / batch["scale"][:, None, None]}

    return predict


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    _shrink(monkeypatch)


def _shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(networks, "make_model", _tiny_model)
    patch.setattr(detection_config, "make_predict", _by_colour)
    patch.setattr("hardmine_jax.tasks.run.keep_freed_memory", lambda: True)
    parallelise = functools.partial(training.parallelise, devices=jax.devices()[:1])
    patch.setattr(training, "parallelise", parallelise)
    patch.setattr(Evaluator, "pictures", lambda *_: [])
    patch.setattr(detection_pictures, "report_pictures", lambda *_, **__: [])


def _draw(folder: pathlib.Path, *, num_images: int = 24) -> dict:
    """Pictures of coloured boxes, and their COCO file's content; category ids are 10, 20, 30."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    images, annotations = [], []
    for n in range(1, num_images + 1):
        picture = rng.integers(0, 40, (96, 96, 3), dtype=np.uint8)
        for corner in rng.permutation(4)[: rng.integers(2, 5)]:
            x, y = 48 * int(corner % 2) + int(rng.integers(4, 12)), 48 * int(corner // 2) + 6
            # A third of the labels is wrong, so that no score is 1.
            drawn, label = rng.integers(3), rng.integers(3)
            label = drawn if rng.random() < 0.7 else label
            cv2.rectangle(picture, (x, y), (x + 28, y + 30), _COLOURS[CLASSES[drawn]], -1)
            box = {"bbox": [x, y, 29, 31], "category_id": 10 * (int(label) + 1)}
            annotations.append({"id": len(annotations) + 1, "image_id": f"p{n}", **box})
        cv2.imwrite(str(folder / f"{n}.png"), picture)
        images.append({"id": f"p{n}", "file_name": f"{n}.png"})
    categories = [{"id": 10 * place, "name": name} for place, name in enumerate(CLASSES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _renumbered(content: dict, ids: dict[str, int], *, called: dict[str, str] | None = None) -> dict:
    """The same objects of the classes named, under these ids."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    annotations = [
        {**entry, "category_id": ids[names[entry["category_id"]]]}
        for entry in content["annotations"]
        if names[entry["category_id"]] in ids
    ]
    categories = [{"id": number, "name": (called or {}).get(name, name)} for name, number in ids.items()]
    return {**content, "annotations": annotations, "categories": categories}


class Boxes:
    """A trained run, pictures, and files of them by name."""

    def __init__(self, folder: pathlib.Path, content: dict):
        self.run, self.folder, self.content = folder / "run", folder, content

    def file(self, name: str, content: dict) -> list[str]:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(content))
        return ["--annotations", str(path), "--images", str(self.folder / "pictures")]

    def evaluate(self, *flags: object, folder: str) -> dict:
        assert detection_evaluate.main([str(self.run), *map(str, flags)]) == 0
        return json.loads((self.run / "evaluations" / folder / "result.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """Two steps on coloured boxes; not to be written to."""
    folder = tmp_path_factory.mktemp("boxes")
    boxes = Boxes(folder, _draw(folder / "pictures"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMINE_CACHE", str(folder / "cache"))
        _shrink(patch)
        flags = ["--dataset", "coco", *boxes.file("boxes", boxes.content), "--workdir", folder / "run"]
        flags += ["--image-size", 96, 96, "--batch-size", 8, "--steps", 2, "--mining", "all", "--k", 8]
        flags += ["--search.max-proposals", 32, "--search.min-size", 16, "--max-detections", 20]
        flags += ["--min-score", 0.4, "--test-nms", 0.5]
        assert detection_train.main([*map(str, flags)]) == 0
    (folder / "content.json").write_text(json.dumps(boxes.content))
    return folder


@pytest.fixture
def boxes(trained, tmp_path, monkeypatch) -> Boxes:
    monkeypatch.setenv("HARDMINE_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(trained, tmp_path / "boxes")
    return Boxes(folder, json.loads((folder / "content.json").read_text()))


def _numbers(result: dict) -> dict:
    return {name: value for name, value in result.items() if name not in ("evaluation", "scored_on")}


def test_its_own_data_gives_the_training_s_own_numbers(boxes, monkeypatch):
    monkeypatch.setattr(Evaluator, "pictures", _PICTURES)
    monkeypatch.setattr(detection_pictures, "report_pictures", _REPORT_PICTURES)
    before = {path: path.read_bytes() for path in boxes.run.glob("*.*")}
    result = boxes.evaluate("--which", "latest", folder="boxes_latest")
    assert {path: path.read_bytes() for path in boxes.run.glob("*.*")} == before
    told = json.loads((boxes.run / "result.json").read_text())
    assert _numbers(result) == {name: told[name] for name in _numbers(result)}
    assert {"map", "map_11_point", "coco", "per_class", "proposal_recall", "steps", "images"} <= set(result)
    assert 0.2 < result["map"] and result["proposal_recall"] > 0.8
    page = (boxes.run / "evaluations" / "boxes_latest" / "report.html").read_text()
    assert "images of boxes" in page and page.count("<img") >= 2 and "The images with most mistakes" in page
    assert "Learning curves" not in page and "in training" not in page


def test_all_of_a_file_is_scored_and_names_count_not_their_ids(boxes, capsys):
    plain = boxes.evaluate(*boxes.file("test", boxes.content), folder="test_best")
    assert plain["images"] == 24 and 0.3 < plain["map"] < 0.95 and 0 < plain["coco"]["AP"] < 0.95
    assert "note:" not in capsys.readouterr().err
    ids = {"green": 3, "blue": 1, "red": 2}
    other = boxes.evaluate(*boxes.file("other", _renumbered(boxes.content, ids)), folder="other_best")
    assert _numbers(other) == _numbers(plain) and "note:" not in capsys.readouterr().err
    content = _renumbered(boxes.content, ids, called={"green": "GREEN", "blue": "B-lue", "red": "Red "})
    other = boxes.evaluate(*boxes.file("spelled", content), folder="spelled_best")
    assert _numbers(other) == _numbers(plain) and "blue = B-lue" in capsys.readouterr().err


def test_results_are_in_the_ids_of_the_data(boxes):
    ids = {"green": 3, "blue": 1, "red": 2}
    boxes.evaluate(*boxes.file("test", _renumbered(boxes.content, ids)), folder="test_best")
    found = json.loads((boxes.run / "evaluations" / "test_best" / "detections.json").read_text())
    assert len(found) > 24 and {entry["image_id"] for entry in found} <= {f"p{n}" for n in range(1, 25)}
    assert {(entry["category"], entry["category_id"]) for entry in found} == set(ids.items())
    assert all(entry["bbox"][2] > 0 and 0.4 <= entry["score"] < 1.001 for entry in found)


def test_what_one_side_lacks_is_named_and_not_in_the_mean(boxes, capsys):
    plain = boxes.evaluate(*boxes.file("test", boxes.content), folder="test_best")
    fewer = _renumbered(boxes.content, {"blue": 5, "red": 6})
    result = boxes.evaluate(*boxes.file("fewer", fewer), folder="fewer_best")
    assert "the data does not have them: class green" in capsys.readouterr().err
    for name in ("red", "blue"):
        assert result["per_class"][name] == plain["per_class"][name]
    assert set(result["per_class"]) == {"red", "blue"}
    assert result["map"] == pytest.approx(np.mean([row["ap"] for row in result["per_class"].values()]))
    # Objects of a class that the run does not know are no misses.
    more = _renumbered(boxes.content, {"blue": 5, "red": 6, "green": 7}, called={"green": "olive"})
    other = boxes.evaluate(*boxes.file("more", more), folder="more_best")
    assert "the run was not trained on them: class olive" in capsys.readouterr().err
    assert _numbers(other) == _numbers(result)
    assert other["evaluation"]["left_out_of_the_data"] == ["olive"]
    found = json.loads((boxes.run / "evaluations" / "more_best" / "detections.json").read_text())
    assert {entry["category"] for entry in found} == {"red", "blue"}


def test_classes_that_are_not_looked_for_take_no_place():
    rng = np.random.default_rng(0)
    corners = 100 * np.arange(6, dtype=np.float32)[:, None, None]
    boxes = np.broadcast_to(np.concatenate([corners, corners, corners + 9, corners + 9], -1), (6, 3, 4))
    scores, where = rng.random((6, 3), np.float32), np.ones(6, bool)
    whole = find_detections(boxes, scores, where, Decoding(max_detections=18, min_score=0.0))
    few = find_detections(boxes, scores, where, Decoding(max_detections=6, min_score=0.0, labels=(2,)))
    assert few["where"].all() and set(np.asarray(few["labels"])) == {2}
    np.testing.assert_array_equal(few["scores"], whole["scores"][whole["labels"] == 2])


def _voc(boxes: Boxes) -> pathlib.Path:
    """The pictures in VOC's layout, without lists."""
    folder = boxes.folder / "voc"
    (folder / "Annotations").mkdir(parents=True)
    shutil.copytree(boxes.folder / "pictures", folder / "JPEGImages")
    titles = {category["id"]: category["name"] for category in boxes.content["categories"]}
    for n in range(1, 25):
        things = ""
        for entry in boxes.content["annotations"]:
            if entry["image_id"] == f"p{n}":
                x, y, width, height = entry["bbox"]
                corners = dict(xmin=x + 1, ymin=y + 1, xmax=x + width, ymax=y + height)
                box = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners.items())
                name = titles[entry["category_id"]]
                things += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        (folder / "Annotations" / f"{n}.xml").write_text(f"<annotation>{things}</annotation>")
    return folder


def test_a_voc_folder_is_scored_by_its_list_or_whole(boxes):
    folder = _voc(boxes)
    whole = boxes.evaluate("--dataset", "voc", "--data-dir", folder, folder="voc_best")
    counts = [row["count"] for row in whole["per_class"].values()]
    assert whole["images"] == 24 and sum(counts) == len(boxes.content["annotations"]) and whole["map"] > 0.3
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("3\n5\n7\n9\n11\n13")
    # Nothing but the list is asked for: there is none to train on.
    flags = ("--dataset", "voc", "--data-dir", folder, "--validation-split", "test")
    listed = boxes.evaluate(*flags, folder="voc_test_best")
    assert listed["images"] == 6 and listed["per_class"]["red"]["count"] < whole["per_class"]["red"]["count"]


def _ids(boxes: Boxes, folder: str) -> dict:
    found = json.loads((boxes.run / "evaluations" / folder / "detections.json").read_text())
    return {entry["category"]: entry["category_id"] for entry in found}


def test_ids_are_those_of_the_file_that_is_scored_or_else_of_the_run(boxes):
    boxes.evaluate("--dataset", "voc", "--data-dir", _voc(boxes), folder="voc_best")
    assert _ids(boxes, "voc_best") == {"red": 10, "green": 20, "blue": 30}
    path = boxes.run / "config.json"
    content = json.loads(path.read_text())
    numbers = {"green": 3, "blue": 1, "red": 2}
    # Validated on a second file, which numbers otherwise.
    second = boxes.file("second", _renumbered(boxes.content, numbers))
    content["config"]["validation_annotations"] = second[1]
    path.write_text(json.dumps(content))
    boxes.evaluate(folder="second_best")
    assert _ids(boxes, "second_best") == numbers


def test_more_objects_than_can_be_found_are_said_and_found_where_asked_for(boxes, capsys):
    few = boxes.evaluate(*boxes.file("test", boxes.content), "--max-detections", 2, folder="test_best")
    assert "of which --max-detections 2 can be found" in capsys.readouterr().err
    most = boxes.evaluate(*boxes.file("test", boxes.content), "--max-detections", 150, folder="test_best_2")
    assert few["map"] < most["map"] and "AR150" in most["coco"] and "AR100" in few["coco"]
    assert "can be found" not in capsys.readouterr().err


# What follows is bad input.


def _fails(boxes: Boxes, capsys, *flags: object) -> str:
    assert detection_evaluate.main([str(boxes.run), *map(str, flags)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_bad_input_is_one_line(boxes, capsys, tmp_path):
    content = _renumbered(boxes.content, {"red": 1}, called={"red": "unicorn"})
    error = _fails(boxes, capsys, *boxes.file("none", content))
    assert "no class in common" in error and "unicorn" in error and "red, green, blue" in error
    assert "not of the same evaluation" in _fails(boxes, capsys, "--output", boxes.run)
    assert "--batch-size 0" in _fails(boxes, capsys, "--batch-size", 0)
    assert "--annotations" in _fails(boxes, capsys, "--dataset", "voc", "--annotations", "a.json")
    assert not (boxes.run / "evaluations").exists()
    boxes.run = tmp_path / "nowhere"
    assert "hardmine detection train" in _fails(boxes, capsys)
