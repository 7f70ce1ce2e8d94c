"""Scoring a run: by name, into a folder of its own, and on its own data to the training's own numbers.

Mice are coloured dots, and the network finds dots by their colours: a joint taken for another is far away.
"""

import functools
import json
import pathlib
import shutil

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax import training
from hardmine_jax.data.pose.coco import COCO_SKELETON, DEFAULT_SIGMA
from hardmine_jax.data.pose.coco_categories import make_skeleton
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.names import match_names
from hardmine_jax.tasks.pose import evaluate as pose_evaluate
from hardmine_jax.tasks.pose import networks, results
from hardmine_jax.tasks.pose import pictures as pose_pictures
from hardmine_jax.tasks.pose import train as pose_train
from hardmine_jax.tasks.pose.config import load_config
from hardmine_jax.tasks.pose.evaluation import Evaluator
from hardmine_jax.tasks.pose.matched import common_skeleton
from hardmine_jax.tasks.pose.people import read_people

MOUSE = ("nose", "left_ear", "right_ear", "spine", "tail")
_PICTURES, _REPORT_PICTURES = Evaluator.pictures, pose_pictures.report_pictures
COLOURS = np.float32([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]]) / 255
_MEAN, _STD = (
    np.float32(three).reshape(1, 1, 1, 3) for three in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
)


class DotNetwork(nn.Module):
    """Heatmaps of how near each colour is; one weight, so that there is something to train."""

    num_keypoints: int

    @nn.compact
    def __call__(self, images, train=False):
        sharpness = self.param("sharpness", nn.initializers.constant(6.0), ())
        colours = COLOURS[: self.num_keypoints].reshape(1, 1, 1, -1, 3)
        distances = jnp.square((images * _STD + _MEAN)[..., None, :] - colours).sum(-1)
        return nn.avg_pool(jnp.exp(-sharpness * distances), (4, 4), (4, 4))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    _shrink(monkeypatch)


def _shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(networks, "make_model", lambda name, num_keypoints, **_: DotNetwork(num_keypoints))
    patch.setattr("hardmine_jax.tasks.run.keep_freed_memory", lambda: True)
    parallelise = functools.partial(training.parallelise, devices=jax.devices()[:1])
    patch.setattr(training, "parallelise", parallelise)
    patch.setattr(Evaluator, "pictures", lambda *_: [])
    patch.setattr(pose_pictures, "report_pictures", lambda *_: [])


def _draw(folder: pathlib.Path, *, num_images: int = 30) -> dict:
    """Pictures of mice, and their COCO file's content, in MOUSE's order."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    images, annotations = [], []
    for n in range(1, num_images + 1):
        picture = rng.integers(0, 60, (96, 96, 3), dtype=np.uint8)
        points = rng.permutation(25)[: len(MOUSE)]
        points = np.column_stack([points % 5, points // 5]) * 18 + 12
        for (x, y), colour in zip(points, COLOURS, strict=True):
            cv2.circle(picture, (int(x), int(y)), 5, (255 * colour[::-1]).tolist(), -1)
        cv2.imwrite(str(folder / f"{n}.png"), picture)
        images.append({"id": f"m{n}", "file_name": f"{n}.png"})
        # Some joints are labelled a little off, and some not at all.
        seen = np.where(rng.random(len(MOUSE)) < 0.8, 2, 0)
        seen[rng.integers(len(MOUSE))] = 2
        labelled = points + rng.normal(0, 5, points.shape)
        triples = np.column_stack([labelled.clip(0, 95), seen]).ravel().tolist()
        box = {"bbox": [2, 2, 92, 92], "area": 8464}
        annotations.append({"id": n, "image_id": f"m{n}", "category_id": 7, "keypoints": triples, **box})
    category = {"id": 7, "name": "mouse", "keypoints": list(MOUSE), "sigmas": [0.05, 0.1, 0.1, 0.2, 0.3]}
    return {"images": images, "annotations": annotations, "categories": [category]}


def _rearranged(content: dict, names: list[str], *, called: dict[str, str] | None = None) -> dict:
    """The same mice with these keypoints alone, in this order; of a new one nothing but the first is seen."""
    (category,) = content["categories"]
    old = category["keypoints"]
    places = [old.index(name) if name in old else None for name in names]
    annotations = []
    for entry in content["annotations"]:
        triples = np.reshape(entry["keypoints"], (-1, 3)).tolist()
        chosen = [[50.0, 50.0, 2] if place is None else triples[place] for place in places]
        annotations.append({**entry, "keypoints": sum(chosen, [])})
    sigmas = [0.15 if place is None else category["sigmas"][place] for place in places]
    shown = [(called or {}).get(name, name) for name in names]
    category = {**category, "keypoints": shown, "sigmas": sigmas}
    return {**content, "annotations": annotations, "categories": [category]}


class Mice:
    """A trained run, pictures, and files of them by name."""

    def __init__(self, folder: pathlib.Path, content: dict):
        self.run, self._folder, self.content = folder / "run", folder, content

    def file(self, name: str, content: dict) -> list[str]:
        path = self._folder / f"{name}.json"
        path.write_text(json.dumps(content))
        return ["--annotations", str(path), "--images", str(self._folder / "pictures")]

    def evaluate(self, *flags: object, folder: str) -> dict:
        assert pose_evaluate.main([str(self.run), *map(str, flags)]) == 0
        return json.loads((self.run / "evaluations" / folder / "result.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """Two steps on mice; not to be written to."""
    folder = tmp_path_factory.mktemp("mice")
    mice = Mice(folder, _draw(folder / "pictures"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMINE_CACHE", str(folder / "cache"))
        _shrink(patch)
        flags = ["--dataset", "coco", *mice.file("mice", mice.content), "--workdir", folder / "run"]
        flags += ["--image-size", 64, 64, "--batch-size", 8, "--steps", 2, "--no-flip-test"]
        assert pose_train.main([*map(str, flags)]) == 0
    (folder / "content.json").write_text(json.dumps(mice.content))
    return folder


@pytest.fixture
def mice(trained, tmp_path, monkeypatch) -> Mice:
    monkeypatch.setenv("HARDMINE_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(trained, tmp_path / "mice")
    return Mice(folder, json.loads((folder / "content.json").read_text()))


def _numbers(result: dict) -> dict:
    return {name: value for name, value in result.items() if name not in ("evaluation", "scored_on")}


def test_its_own_data_gives_the_training_s_own_numbers(mice, monkeypatch):
    monkeypatch.setattr(Evaluator, "pictures", _PICTURES)
    monkeypatch.setattr(pose_pictures, "report_pictures", _REPORT_PICTURES)
    result = mice.evaluate("--which", "latest", folder="mice_latest")
    told = json.loads((mice.run / "result.json").read_text())
    for joint in told["per_joint"].values():
        del joint["unit_rate"]
    speed = told.pop("images_per_second")
    assert speed > 0 and _numbers(result) == told and 0.3 < result["pck"] < 1 and result["ap"] > 0
    assert result["evaluation"]["split"] == "validation" and result["evaluation"]["left_out"] == []
    page = (mice.run / "evaluations" / "mice_latest" / "report.html").read_text()
    assert "subjects of mice" in page and page.count("<img") == 4 and "The hardest images" in page
    assert "Learning curves" not in page and "in training" not in page


def test_all_of_a_file_is_scored_and_names_count_not_their_order(mice, capsys):
    plain = mice.evaluate(*mice.file("test", mice.content), folder="test_best")
    assert plain["people"] == 30 and "mean_pose_pck" not in plain and 0.3 < plain["pck"] < 1
    assert "note:" not in capsys.readouterr().err
    names = ["tail", "right_ear", "nose", "spine", "left_ear"]
    permuted = mice.file("permuted", _rearranged(mice.content, names))
    assert _numbers(mice.evaluate(*permuted, folder="permuted_best")) == _numbers(plain)
    assert "note:" not in capsys.readouterr().err
    spelled = {
        "tail": "Tail",
        "right_ear": "RIGHT EAR",
        "nose": "Nose",
        "spine": "SPINE",
        "left_ear": "leftEar",
    }
    content = _rearranged(mice.content, names, called=spelled)
    other = mice.evaluate(*mice.file("spelled", content), folder="spelled_best")
    assert _numbers(other) == _numbers(plain) and tuple(other["per_joint"]) == MOUSE
    assert "left_ear = leftEar" in capsys.readouterr().err


def test_results_are_in_the_ids_and_the_order_of_the_data(mice):
    content = _rearranged(mice.content, ["paw", "tail", "nose", "left_ear"])
    mice.evaluate(*mice.file("test", content), folder="test_best")
    found = json.loads((mice.run / "evaluations" / "test_best" / "keypoints.json").read_text())
    assert {entry["image_id"] for entry in found} == {f"m{n}" for n in range(1, 31)}
    assert {entry["category_id"] for entry in found} == {7}
    triples = {entry["image_id"]: np.reshape(entry["keypoints"], (4, 3)) for entry in found}
    for entry in content["annotations"]:
        paw, *others = triples[entry["image_id"]]
        assert paw.tolist() == [0, 0, 0]
        for predicted, target in zip(others, np.reshape(entry["keypoints"], (4, 3))[1:], strict=True):
            assert target[2] == 0 or np.linalg.norm(predicted[:2] - target[:2]) < 30


def test_of_several_categories_each_result_has_its_own(mice):
    rat = mice.content["categories"][0] | {"id": "r", "name": "rat"}
    annotations = [
        entry | ({"category_id": "r"} if entry["id"] % 2 else {}) for entry in mice.content["annotations"]
    ]
    annotations[1] = {name: value for name, value in annotations[1].items() if name != "category_id"}
    content = mice.content | {"categories": [*mice.content["categories"], rat], "annotations": annotations}
    flags = mice.file("test", content)
    given = pose_evaluate.parse([str(mice.run), *flags, "--category", "all"])
    config = pose_evaluate.find_data(given, load_config(mice.run)[0]).config
    ids = results.ids_of(config)
    data = pose_evaluate.load_dataset(config)
    people = read_people(data.train, range(4))
    found = results.coco_results(people, np.zeros((4, 5, 3)), np.zeros((4, 5)), ids)
    expected = [annotations[int(one) - 1].get("category_id", 7) for one in people.annotation_id]
    assert [entry["category_id"] for entry in found] == expected and set(expected) == {7, "r"}
    assert [entry["image_id"] for entry in found] == [f"m{one}" for one in people.annotation_id]


def test_what_one_side_lacks_is_named_and_changes_no_number(mice, capsys):
    # One mouse has nothing labelled but what the other side lacks: a prediction on it is no mistake.
    points = np.reshape(mice.content["annotations"][0]["keypoints"], (-1, 3))
    points[:, 2] = np.where(np.array(MOUSE) == "right_ear", 2, 0)
    mice.content["annotations"][0]["keypoints"] = points.ravel().tolist()
    fewer = _rearranged(mice.content, ["tail", "nose", "left_ear"])
    boxes = [
        {"image_id": image["id"], "category_id": 1, "bbox": [2, 2, 92, 92], "score": 0.9}
        for image in mice.content["images"]
    ]
    path = mice.run.parent / "boxes.json"
    path.write_text(json.dumps(boxes))
    flags = ("--boxes", path)
    plain = mice.evaluate(*mice.file("fewer", fewer), *flags, folder="fewer_best")
    told = capsys.readouterr().err
    assert "the data does not have them: keypoint right_ear, spine" in told and "not trained on" not in told
    more = _rearranged(mice.content, ["left_ear", "paw", "nose", "tail"])
    other = mice.evaluate(*mice.file("more", more), *flags, folder="more_best")
    assert "the run was not trained on them: keypoint paw" in capsys.readouterr().err
    everybody = {entry["id"] for entry in mice.content["annotations"]}
    assert other["people"] == len(everybody) and plain["people"] < other["people"]
    assert tuple(plain["per_joint"]) == ("nose", "left_ear", "tail") and 0.3 < plain["pck"] < 1
    for result in (plain, other):
        result.pop("people")
    assert _numbers(other) == _numbers(plain) and plain["detections"]["ap"] > 0
    assert other["evaluation"]["left_out"] == ["right_ear", "spine"]
    assert other["evaluation"]["left_out_of_the_data"] == ["paw"]


def test_sigmas_are_the_data_s_and_pairs_the_run_s():
    run = Skeleton(MOUSE, ((1, 2),), (0.1,) * 5, ((0, 1), (3, 4)))
    data = Skeleton(("tail", "right_ear", "left_ear", "paw"), (), (0.4, 0.3, 0.2, 0.1), ())
    common = common_skeleton(run, data, match_names(run.names, data.names, what="keypoint"))
    assert common == Skeleton(("left_ear", "right_ear", "tail"), ((0, 1),), (0.2, 0.3, 0.4), ())


def test_coco_s_sigmas_go_with_the_names_in_any_order():
    names, options = sorted(COCO_SKELETON.names), {"edges": None, "flip_pairs": None, "sigmas": None}
    known = dict(zip(COCO_SKELETON.names, COCO_SKELETON.sigmas, strict=True))
    for chosen, expected in {
        tuple(names): known,
        tuple(names[1:]): dict.fromkeys(names[1:], DEFAULT_SIGMA),
    }.items():
        category = {"id": 1, "name": "person", "keypoints": list(chosen)}
        skeleton, _ = make_skeleton([category], options, pathlib.Path(), known=known, sigma=DEFAULT_SIGMA)
        assert dict(zip(chosen, skeleton.sigmas, strict=True)) == expected


def test_flags_over_the_training_s_are_another_evaluation_and_the_run_stays_as_it_was(mice):
    before = {path: path.read_bytes() for path in mice.run.glob("*.*")}
    plain = mice.evaluate(folder="mice_best")
    assert (
        mice.evaluate(folder="mice_best") == plain and not (mice.run / "evaluations" / "mice_best_2").exists()
    )
    flipped = mice.evaluate("--flip-test", True, "--decode", "argmax", folder="mice_best_2")
    assert flipped["evaluation"]["settings"]["flip_test"] and flipped["pck"] != plain["pck"]
    train = mice.evaluate("--split", "train", folder="mice_train_best")
    assert train["people"] + plain["people"] == 30
    step = mice.evaluate(folder="mice_best") and sorted((mice.run / "checkpoints").glob("[0-9]*"))[-1]
    assert pose_evaluate.main([str(step), "--batch-size", "3"]) == 0
    result = json.loads((mice.run / "evaluations" / f"mice_{step.name}" / "result.json").read_text())
    assert result["steps"] == int(step.name)
    assert {path: path.read_bytes() for path in mice.run.glob("*.*")} == before


def test_all_of_a_run_with_a_second_file_is_both_wherever_they_lie(mice, tmp_path):
    config = json.loads((mice.run / "config.json").read_text())
    halves = [mice.content["images"][:20], mice.content["images"][20:]]
    for name, images in zip(("annotations", "validation_annotations"), halves, strict=True):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**mice.content, "images": images}))
        config["config"][name] = str(path)
    (mice.run / "config.json").write_text(json.dumps(config))
    assert mice.evaluate("--split", "all", folder="annotations_all_best")["people"] == 30
    moved = shutil.copytree(mice.run.parent / "pictures", tmp_path / "moved")
    result = mice.evaluate("--split", "all", "--images", moved, folder="annotations_all_best_2")
    assert result["people"] == 30


def test_the_run_s_own_file_given_again_is_told(mice, trained, capsys):
    # The run knows the file under the path that it was trained with.
    path = trained / "mice.json"
    mice.evaluate("--annotations", path, "--images", trained / "pictures", folder="mice_best")
    assert "all of which are scored now" in capsys.readouterr().err


# What follows is bad input.


def _fails(mice: Mice, capsys, *flags: object) -> str:
    assert pose_evaluate.main([str(mice.run), *map(str, flags)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_nothing_in_common(mice, capsys):
    names = {name: f"{name}_{number}" for number, name in enumerate(MOUSE)}
    content = _rearranged(mice.content, list(MOUSE), called=names)
    error = _fails(mice, capsys, *mice.file("test", content))
    assert "no keypoint in common" in error and "nose, left_ear" in error and "nose_0" in error
    assert not (mice.run / "evaluations").exists()


def test_a_folder_of_something_else_no_run_and_flags_that_cannot_be(mice, capsys, tmp_path):
    assert "not of the same evaluation" in _fails(mice, capsys, "--output", mice.run)
    assert "--batch-size 0" in _fails(mice, capsys, "--batch-size", 0)
    assert "no.json" in _fails(mice, capsys, "--annotations", "no.json", "--images", tmp_path)
    assert "--data-dir" in _fails(mice, capsys, "--dataset", "synthetic", "--data-dir", tmp_path)
    (tmp_path / "b.json").write_text("[]")
    error = _fails(mice, capsys, "--split", "train", "--boxes", tmp_path / "b.json")
    assert "boxes are for validation images" in error
    mice.run = tmp_path / "nowhere"
    assert "hardmine pose train" in _fails(mice, capsys)
