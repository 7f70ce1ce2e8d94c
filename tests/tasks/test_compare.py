"""Runs in a table: what is grouped, what is named, what is missing; made-up folders."""

import io
import json

import pytest
import rich.console

from hardmine_jax.tasks.compare import CompareConfig, different, group, main, read_run, rows, run
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


def _shown(folders, width=80):
    console = rich.console.Console(file=io.StringIO(), width=width)
    run(CompareConfig(tuple(folders)), console)
    return console.file.getvalue()


POSE = {name: 0.5 for name in ("pck", "pck_visible", "pck_occluded", "pck@0.2", "ap")} | {
    "pckh": {"pckh@0.5": 0.6},
    "detections": {"ap": 0.4},
    "images_per_second": 1234.5,
}


def test_every_kind_of_run_has_its_own_table(tmp_path, capsys):
    pose = dict(heatmap_sigma=1.5, result={"pck": 0.25})
    folders = [
        _run(tmp_path / "a", dataset="voc"),
        _run(tmp_path / "b", dataset="coco", annotations="/x/cells.json"),
        _run(tmp_path / "c", dataset="coco", annotations="/moved/cells.json", seed=1),
        _run(tmp_path / "d", dataset="coco", annotations="/x/plates.json"),
        _run(tmp_path / "e", dataset="coco", annotations="/x/cells.json", **pose),
        _run(tmp_path / "f", dataset="synthetic", mining="none", **pose),
        _run(tmp_path / "g", dataset="synthetic", **pose),
    ]
    shown = _shown(folders)
    titles = [line.strip() for line in shown.splitlines() if ": " in line]
    assert titles == [
        "detection, voc: 1 run (a)",
        "detection, coco: cells.json: 2 runs (b, c)",
        "detection, coco: plates.json: 1 run (d)",
        "pose, coco: cells.json: 1 run (e)",
        "pose, synthetic: 2 runs (f, g)",
    ]
    # Of a table of detections no column is PCK, and none is empty.
    assert shown.count("PCK@0.1") == 2 and shown.count("mAP@0.5") == 3 and "–" not in shown
    assert main([str(folders[0]), str(folders[-1]), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["**detection, voc**", "", "| seeds | mAP@0.5 | COCO AP |"] and "" in lines[3:]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_nothing_is_cut_at_any_width(tmp_path, width):
    names = [f"a_rather_long_setting_{number}" for number in range(6)]
    folders = [
        _run(
            tmp_path / f"{variant} {seed}",
            seed=seed,
            heatmap_sigma=1.0,
            result=POSE | {"pck": 0.1 * seed + 0.4},
            mining=variant,
            **{name: variant for name in names},
        )
        for variant in ("ohkm", "none", "an extremely long value of a setting " * 3)
        for seed in range(2)
    ]
    shown = _shown(folders, width)
    assert max(map(len, shown.splitlines())) <= width and "…" not in shown
    for heading in ("seeds", "PCK@0.1", "PCKh@0.5", "AP on boxes", "images/s"):
        assert heading in shown
    # What a row is is not lost where its scores go on below.
    assert shown.count("--mining ohkm") == shown.count("settings")
    assert shown.count("45.0 ± 7.1 %") == 3 and "1,234.5 ± 0.0" in shown


def test_no_table_is_blank(tmp_path):
    shown = _shown([_run(tmp_path / "stopped", result={"steps": 3})])
    assert "1 run (stopped)" in shown and "none of them has a score" in shown and "seeds" in shown


def test_what_is_not_finite_is_no_score(tmp_path):
    runs = [
        read_run(_run(tmp_path / "a", result={"map": float("nan"), "coco": {"AP": True}, "seconds": 3.0}))
    ]
    assert rows(runs) == (["seeds", "seconds"], [["1", "3.0"]])


def test_a_setting_that_one_row_lacks_is_a_dash(tmp_path):
    runs = [read_run(_run(tmp_path / "a", easy_weight=1.0)), read_run(_run(tmp_path / "b"))]
    assert [line[0] for line in rows(runs)[1]] == ["1.0", "–"]


def test_names_cannot_reach_the_terminal(tmp_path):
    shown = _shown(
        [
            _run(tmp_path / "a", dataset="\x1b[31mred", mining="[bold]x"),
            _run(tmp_path / "b", mining="y", dataset="\x1b[31mred"),
        ]
    )
    assert "\x1b" not in shown and "[bold]x" in shown
