"""A config.json of somebody else's, or edited by hand: one line that names it, no traceback."""

import json
import os
import stat

import pytest

from hardmine_jax.data.pose.coco import COCO_SKELETON
from hardmine_jax.data.problems import DataError
from hardmine_jax.tasks import compare
from hardmine_jax.tasks.config_json import change
from hardmine_jax.tasks.detection import config as detection_config
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose import predict_photos

TASKS = {"pose": pose_config, "detection": detection_config}


def _write(folder, task):
    """A run's config.json; what it holds."""
    config = change(TASKS[task].Config(), workdir=folder, steps=30)
    if task == "pose":
        pose_config.save_config(pose_config.check_config(config, COCO_SKELETON), COCO_SKELETON)
    else:
        detection_config.save_config(config, ("cell", "plate"))
    return json.loads((folder / "config.json").read_text())


STRANGERS = {
    "another program's": json.dumps({"architectures": ["BertModel"], "vocab_size": 30522, "config": "bert"}),
    "a list": "[1, 2]",
    "a number": "3",
    "a word": '"config"',
    "null": "null",
    "empty": "",
    "half": '{"config": {',
    "parts that are lists": json.dumps({"config": [], "skeleton": [], "classes": []}),
    "parts that are null": json.dumps({"config": None, "skeleton": None, "classes": None}),
    "parts that are numbers": json.dumps({"config": 1e308, "skeleton": 2, "classes": 3}),
    "empty parts": json.dumps({"config": {}, "skeleton": {}, "classes": {}}),
    "deep": '{"config": ' * 100_000,
    "a long number": '{"config": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("content", [*STRANGERS.values(), b"\xff\xfe\x00"], ids=[*STRANGERS, "no text"])
def test_a_strangers_is_named_in_one_line(task, content, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as raised:
        TASKS[task].load_config(tmp_path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    # A run needs its result too, and what is there of it is not believed.
    (tmp_path / "result.json").write_text('{"map": 0.5}')
    assert compare.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and str(path) in said


def _edits(task):
    """(name of the edit, what it changes) of what cannot be."""
    common = {
        "NaN": {"ema_decay": float("nan")},
        "infinite": {"optimizer": {"learning_rate": float("inf")}},
        "too large": {"batch_size": 10**20},
        "negative": {"batch_size": -4},
        "no length": {"steps": None},
        "nowhere": {"workdir": None},
        "no size": {"image_size": [0, 0]},
        "one side": {"image_size": [96]},
        "a vast size": {"image_size": [32 * 10**6] * 2},
        "text": {"steps": "many"},
        "a flag": {"seed": True},
        "unknown": {"model": "gpt"},
        "a new flag": {"colour_of_the_sky": "blue"},
        "a list": {"model": ["laptop"]},
        "no path": {"cache_dir": "a\0b"},
        "half a letter": {"data_dir": "\ud800"},
        "a number": {"cache_dir": 3},
        "nested": {"augment": 3},
        "another nested": {"optimizer": {"name": "adam", "momentum": 2.0}},
    }
    own = {
        "pose": {
            "k": {"k": 18},
            "no k": {"k": 0},
            "sigma": {"heatmap_sigma": -1.0},
            "sides": {"image_size": [97, 96]},
            "padding": {"augment": {"padding": 0.0}},
        },
        "detection": {
            "k": {"k": 10**6},
            "overlap": {"nms": 1.5},
            "rounds": {"rounds": 0},
            "mode": {"search": {"mode": "slow"}},
            "boxes": {"max_boxes": 0},
        },
    }[task]
    return [pytest.param(task, given, id=f"{task} {name}") for name, given in (common | own).items()]


@pytest.mark.parametrize("task, edit", [*_edits("pose"), *_edits("detection")])
def test_what_cannot_be_is_named_in_one_line(task, edit, tmp_path):
    content = _write(tmp_path, task)
    assert TASKS[task].load_config(tmp_path)
    for name, value in edit.items():
        before = content["config"].get(name)
        content["config"][name] = {**before, **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="config.json") as raised:
        TASKS[task].load_config(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "part, value",
    [
        ("sigmas", [0.1] * 3),
        ("edges", [[0, 99]]),
        ("flip_pairs", [[1, 1]]),
        ("names", ["a"] * 17),
        ("names", [1] * 17),
        ("names", "nose"),
    ],
)
def test_a_skeleton_that_cannot_be_is_named(part, value, tmp_path):
    content = _write(tmp_path, "pose")
    content["skeleton"][part] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="config.json"):
        pose_config.load_config(tmp_path)


def test_a_pipe_is_not_waited_for_and_a_folder_is_no_file(tmp_path, capsys):
    os.mkfifo(tmp_path / "config.json")
    assert stat.S_ISFIFO((tmp_path / "config.json").stat().st_mode)
    with pytest.raises(DataError, match="is no file"):
        pose_config.load_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert predict_photos.main(["a.jpg", "--checkpoint", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_of_more_devices_is_loaded_on_one(tmp_path):
    content = _write(tmp_path, "pose")
    # Eight devices are simulated here, over which it does not split: to predict with it that does not matter.
    content["config"]["batch_size"] = 3
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert pose_config.load_config(tmp_path)[0].run.batch_size == 3
