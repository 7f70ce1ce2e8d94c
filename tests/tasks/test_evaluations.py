"""Which data an evaluation is of, and which folder it may write to."""

import dataclasses
import json
import pathlib

import pytest

from hardmine_jax.data.problems import DataError
from hardmine_jax.tasks.evaluations import checkpoint_name, choose_folder, scored_data, settings_of
from hardmine_jax.tasks.rows import Joined


def _evaluated(folder: pathlib.Path, settings: dict) -> pathlib.Path:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"evaluation": {"settings": settings}}))
    return folder


def test_the_same_command_writes_over_its_own_results_and_others_are_numbered(tmp_path):
    first, second = {"which": "best"}, {"which": "best", "flip_test": False}
    assert choose_folder(None, tmp_path, "test_best", first) == tmp_path / "evaluations" / "test_best"
    folder = _evaluated(tmp_path / "evaluations" / "test_best", first)
    assert choose_folder(None, tmp_path, "test_best", first) == folder
    numbered = folder.with_name("test_best_2")
    assert choose_folder(None, tmp_path, "test_best", second) == numbered
    _evaluated(numbered, second)
    assert choose_folder(None, tmp_path, "test_best", second) == numbered
    assert choose_folder(None, tmp_path, "test_best", {}) == folder.with_name("test_best_3")


def test_an_output_with_anything_else_in_it_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        assert choose_folder(tmp_path / name, tmp_path, "x", {}) == tmp_path / name
    mine = _evaluated(tmp_path / "mine", {"which": "best"})
    assert choose_folder(mine, tmp_path, "x", {"which": "best"}) == mine
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text('{"pck": 1.0}')
    (tmp_path / "file").write_text("")
    for name in ("mine", "run", "file"):
        with pytest.raises(DataError, match=f"{name} is not empty.*another folder"):
            choose_folder(tmp_path / name, tmp_path, "x", {})


@dataclasses.dataclass(frozen=True)
class _Data:
    dataset: str | None = None
    data_dir: pathlib.Path | None = None
    annotations: pathlib.Path | None = None
    validation_annotations: pathlib.Path | None = None
    category: str | None = None
    output: pathlib.Path | None = None


_NAMES = ("dataset", "data_dir", "annotations", "validation_annotations", "category")
_TRAINED = _Data("coco", None, pathlib.Path("mice.json"), pathlib.Path("few.json"), "mouse")


def test_without_flags_the_data_is_the_run_s_own():
    assert scored_data(_Data(output=pathlib.Path("o")), _TRAINED, _NAMES) == (_TRAINED, False)


def test_a_new_file_or_dataset_keeps_nothing_of_the_run_s():
    test = pathlib.Path("test.json")
    found = scored_data(_Data(annotations=test), _TRAINED, _NAMES)
    assert found == (_Data("coco", annotations=test), True)
    found = scored_data(_Data("lspet", pathlib.Path("d")), _TRAINED, _NAMES)
    assert found == (_Data("lspet", pathlib.Path("d")), True)


def test_other_flags_change_what_the_run_had():
    moved = pathlib.Path("elsewhere")
    trained = _Data("lspet", pathlib.Path("here"))
    assert scored_data(_Data(data_dir=moved), trained, _NAMES) == (_Data("lspet", moved), True)


def test_settings_are_what_changes_the_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = settings_of(_Data("coco", annotations=pathlib.Path("a.json")))
    other = settings_of(_Data("coco", annotations=tmp_path / "a.json", output=tmp_path / "o"))
    assert one == other and one["annotations"] == str(tmp_path / "a.json") and "output" not in one


def test_one_checkpoint_is_called_by_its_number(tmp_path):
    step = tmp_path / "checkpoints" / "30"
    assert checkpoint_name(step, tmp_path, step=30, which="best") == "30"
    assert checkpoint_name(tmp_path, tmp_path, step=30, which="best") == "best"
    assert checkpoint_name(tmp_path / "checkpoints", tmp_path, step=30, which="latest") == "latest"
    # A run's folder may be called by a number too.
    assert checkpoint_name(tmp_path / "30", tmp_path / "30", step=30, which="best") == "best"


def test_joined_sources_are_one_after_the_other():
    joined = Joined([{"name": "a", "index": 0}], [{"name": "b", "index": 0}, {"name": "c", "index": 1}])
    records = [joined[index] for index in range(len(joined))]
    assert [record["name"] for record in records] == ["a", "b", "c"]
    assert [record["index"] for record in records] == [0, 1, 2]
