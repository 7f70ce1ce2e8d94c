"""The study of OHKM: its grid of runs, its lines, its intervals, and once the whole of it in small."""

import dataclasses
import io
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from experiments.studies import ohkm as study
from hardmine_jax.data.pose.lspet import LSP_SKELETON
from hardmine_jax.tasks import seeds
from hardmine_jax.tasks.pose.config import settle
from hardmine_jax.tasks.pose.train import parse

# The module that the script itself imported.
grid = study.grid

RUNS = [grid.Run(name, seed, ("--mining", name)) for seed in (0, 1) for name in ("none", "ohkm")]


def _line(run, **more) -> dict:
    return json.loads(json.dumps({**run._asdict(), **more}))


def _process(code: str):
    return lambda run: subprocess.Popen([sys.executable, "-c", code, run.name])


def test_the_main_variants_come_first_and_seed_by_seed():
    runs = study.runs(study.Config(seeds=2))
    assert [run.name for run in runs[:5]] == ["none_0", "ohkm_0", "linear_0", "additive_0", "none_1"]
    assert [run.name for run in runs[8:11]] == ["cosine_0", "random_0", "sleap_0"]


@pytest.mark.parametrize("variant", study.VARIANTS)
def test_every_variant_is_a_command_of_the_script(variant, tmp_path):
    config = study.Config(data_dir=tmp_path, variants=(variant,), seeds=1, steps=7, runs=tmp_path / "runs")
    (run,) = study.runs(config)
    parsed = parse(study.arguments(config, run))
    assert (
        parsed.dataset == "lspet"
        and parsed.run.steps == 7
        and parsed.run.workdir == tmp_path / "runs" / run.name
    )
    settle(parsed, LSP_SKELETON)


def test_what_has_a_line_is_not_run_again(tmp_path):
    path = tmp_path / "results" / "lines.jsonl"
    assert grid.left(RUNS, grid.read_lines(path)) == RUNS
    grid.append_line(path, _line(RUNS[1]))
    # A kill in the middle of a line.
    with path.open("a") as file:
        file.write('{"variant": "no')
    assert grid.left(RUNS, grid.read_lines(path)) == [RUNS[0], *RUNS[2:]]
    grid.append_line(path, _line(RUNS[0]))
    assert grid.left(RUNS, grid.read_lines(path)) == RUNS[2:]
    assert grid.left([RUNS[0]._replace(flags=("--steps", "9"))], grid.read_lines(path))


def test_runs_take_turns_and_a_failure_stops_no_other():
    code = "import sys, time; time.sleep(0.3); sys.exit('ohkm' in sys.argv[1])"
    ended = list(grid.run_all(RUNS, _process(code), jobs=3))
    assert {run.name: status for run, status, _ in ended} == {
        "none_0": 0, "ohkm_0": 1, "none_1": 0, "ohkm_1": 1
    }  # fmt: skip
    assert all(0.3 < seconds < 30 for _, _, seconds in ended)


def test_when_time_is_over_none_is_started_and_what_runs_is_stopped():
    began = time.monotonic()
    ended = list(grid.run_all(RUNS, _process("import time; time.sleep(600)"), jobs=2, seconds=0.5))
    assert [run for run, *_ in ended] == RUNS[:2] and all(status for _, status, _ in ended)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("number", [2, 3, 5, 40])
def test_intervals_are_scipys(number):
    values = np.random.default_rng(number).normal(size=number)
    mean, half = seeds.interval(values)
    low, high = scipy.stats.t.interval(0.95, number - 1, np.mean(values), scipy.stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-6)


def test_the_table_pairs_by_seed():
    scores = {"none": [0.40, 0.50, 0.60], "ohkm": [0.41, 0.52]}
    lines = [
        {"variant": name, "seed": seed, "pck": score, "pck@0.2": 0.7}
        for name, found in scores.items()
        for seed, score in enumerate(found)
    ]
    console = Console(width=150, file=io.StringIO())
    console.print(seeds.table(lines, list(scores), study.SCORES, reference="none", title="validation"))
    text = console.file.getvalue().splitlines()
    none, ohkm = (next(row for row in text if row.startswith(f"│ {name} ")) for name in scores)
    assert "50.00 ± 24.84" in none and "+" not in none
    assert "46.50" in ohkm and "+1.50 ± 6.35" in ohkm and "+0.00 ± 0.00" in ohkm


@pytest.mark.slow
def test_the_quick_study(tmp_path, capsys):
    config = study.Config(
        quick=True, jobs=2, results=tmp_path / "results", runs=tmp_path / "runs", commit="0123"
    )
    assert study.study(config) == 0
    assert "+" in capsys.readouterr().out
    lines = grid.read_lines(tmp_path / "results" / "ohkm_quick.jsonl")
    assert sorted((line["variant"], line["seed"]) for line in lines) == sorted(
        (run.variant, run.seed) for run in study.runs(config)
    )
    assert all(line["steps"] == 3 and line["commit"] == "0123" and line["people"] > 8 for line in lines)
    assert all(0 <= line["pck"] <= 1 and len(line["per_joint"]) == 17 for line in lines)
    # Nothing is left to do.
    began = time.monotonic()
    assert study.study(dataclasses.replace(config, jobs=1)) == 0
    assert time.monotonic() - began < 60
