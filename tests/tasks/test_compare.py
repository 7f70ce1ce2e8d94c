"""Runs in a table: what is grouped, what is named, what is missing; made-up folders."""

import json

import pytest

from hardmine_jax.tasks.compare import different, group, main, read_run, rows
from hardmine_jax.tasks.config_json import plain
from hardmine_jax.tasks.pose.config import Config


def _run(folder, *, seed=0, mining="ohem", result=None, **settings):
    folder.mkdir()
    config = {"mining": mining, "k": 8, "seed": seed, "workdir": str(folder), "optimizer": {"name": "adam"}}
    (folder / "config.json").write_text(json.dumps({"config": config | settings, "classes": ["a"]}))
    (folder / "result.json").write_text(json.dumps(result or {"map": 0.5, "coco": {"AP": 0.3}}))
    return folder


def test_seeds_are_one_row_with_mean_and_deviation(tmp_path):
    folders = [
        _run(tmp_path / str(seed), seed=seed, result={"map": 0.5 + 0.02 * seed, "images_per_second": 11.0})
        for seed in range(3)
    ]
    folders.append(_run(tmp_path / "other", mining="random", optimizer={"name": "sgd"}))
    headings, lines = rows([read_run(folder) for folder in folders])
    assert headings == ["--mining", "--optimizer.name", "seeds", "mAP@0.5", "COCO AP", "images/s"]
    # Of 0.50, 0.52 and 0.54 the mean is 0.52 and the deviation, with n - 1, 0.02.
    assert lines == [
        ["ohem", "adam", "3", "52.0 ± 2.0 %", "–", "11.0 ± 0.0"],
        ["random", "sgd", "1", "50.0 %", "30.0 %", "–"],
    ]


def test_where_a_run_lies_is_no_difference(tmp_path):
    runs = [read_run(_run(tmp_path / name, cache_dir=name)) for name in ("a", "b")]
    assert len(group(runs)) == 1 and different(group(runs)) == []
    # The same seed twice is one seed.
    assert rows(runs)[1][0][0] == "1"


def test_a_flag_that_an_older_run_did_not_know_is_no_difference(tmp_path):
    old = read_run(_run(tmp_path / "old"))
    new = read_run(_run(tmp_path / "new", seed=1, init_from=None))
    assert rows([old, new])[1][0][0] == "2"


def test_runs_from_before_easy_weight_are_of_the_same_row(tmp_path):
    settings = plain(Config())
    before = {name: value for name, value in settings.items() if name != "easy_weight"}
    for seed, content in enumerate((before, settings)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"config": {**content, "seed": seed}}))
        (folder / "result.json").write_text(json.dumps({"pck": 0.5}))
    assert rows([read_run(tmp_path / str(seed)) for seed in range(2)])[1][0][0] == "2"


def test_the_command_prints_both_kinds_of_table(tmp_path, capsys):
    folders = [str(_run(tmp_path / kind, mining=kind)) for kind in ("ohem", "a|b")]
    assert main([*folders, "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| --mining | seeds | mAP@0.5 | COCO AP |" and len(lines) == 4
    assert lines[-1].startswith("| a\\|b | 1 | 50.0 %")
    assert main(folders) == 0
    assert "mAP@0.5" in capsys.readouterr().out


def test_what_is_no_number_is_not_averaged(tmp_path):
    runs = [read_run(_run(tmp_path / "a", result={"map": "high", "coco": {"AP": 0.3}}))]
    assert rows(runs) == (["seeds", "COCO AP"], [["1", "30.0 %"]])


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_folders_that_hold_no_finished_run(tmp_path, capsys, name):
    folder = _run(tmp_path / "run")
    (folder / name).write_text("{")
    assert main([str(folder)]) == 2 and str(folder / name) in capsys.readouterr().err
    (folder / name).unlink()
    assert main([str(folder)]) == 2 and f"no {folder / name}" in capsys.readouterr().err
    assert main([]) == 2 and "name at least one" in capsys.readouterr().err
