"""Does OHKM help? Variants of mining on photographs of people, several seeds each, intervals and differences.

    python experiments/studies/ohkm.py --data-dir DIR              # Leeds Sports Pose Extended
    python experiments/studies/ohkm.py --data-dir DIR --jobs 12    # 12 runs at once, on a GPU
    python experiments/studies/ohkm.py --quick                     # does it work: two minutes on 2 CPU cores

Every run is one of pose_ohkm.py at its laptop preset; on 2 CPU cores each takes 20 minutes, and there are 35.
What came of it is a line of experiments/studies/results/ohkm.jsonl as soon as it ends; the same command
goes on where it was stopped. The table has the mean over the seeds with its 95 % interval, and the difference
to `none` at the same seed: the same initial weights, order of photographs and augmentation.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import sys
from typing import Literal

import grid
import rich

from hardmine_jax.tasks.exit_codes import run_to_exit_code
from hardmine_jax.tasks.flags import parse_flags
from hardmine_jax.tasks.pose import train
from hardmine_jax.tasks.pose.datasets import load_dataset
from hardmine_jax.tasks.seeds import table

HERE = pathlib.Path(__file__).resolve().parent
SCRIPT = HERE.parent / "pose_ohkm.py"
Variant = Literal["none", "ohkm", "linear", "additive", "cosine", "random", "sleap"]
VARIANTS: dict[Variant, tuple[str, ...]] = {
    "none": ("--mining", "none"),
    "ohkm": ("--mining", "ohkm"),
    "linear": ("--mining", "ohkm", "--k-schedule", "linear"),
    "additive": ("--mining", "ohkm", "--easy-weight", "1.0"),
    "cosine": ("--mining", "ohkm", "--k-schedule", "cosine"),
    "random": ("--mining", "random"),
    "sleap": ("--mining", "sleap"),
}
# All seeds of these come before the first of the others.
MAIN = ("none", "ohkm", "linear", "additive")
SCORES = {"pck": "PCK@0.1", "pck@0.2": "PCK@0.2"}
_SILENT = ("--evaluate-every", "0", "--checkpoint-every", "1000", "--log-every", "100")
_QUICK = ("--steps", "3", "--batch-size", "8", "--evaluate-people", "8", "--no-flip-test")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs, how many at once, and where they lie.

    Attributes:
      data_dir: folder of Leeds Sports Pose Extended.
      variants: what is compared.
      seeds: from 0, of each variant.
      steps: of each run; the preset's by default.
      jobs: runs at once.
      minutes: when they are over none is started, and what still runs is stopped, to be gone on with.
      results: folder of the results file.
      runs: folder of the runs' own folders.
      cache_dir: of the prepared data; as in pose_ohkm.py.
      commit: of the code, where git cannot tell.
      quick: made-up data, two variants, two seeds, three steps.
    """

    data_dir: pathlib.Path | None = None
    variants: tuple[Variant, ...] = tuple(VARIANTS)
    seeds: int = 5
    steps: int | None = None
    jobs: int = 1
    minutes: float | None = None
    results: pathlib.Path = HERE / "results"
    runs: pathlib.Path = pathlib.Path("runs/study_ohkm")
    cache_dir: pathlib.Path | None = None
    commit: str | None = None
    quick: bool = False


def runs(config: Config) -> list[grid.Run]:
    """All of them in the order in which they start: seed by seed, so that what is there is balanced."""
    variants, seeds = config.variants, range(config.seeds)
    shared = ("--dataset", "lspet")
    if config.quick:
        variants, seeds, shared = ("none", "ohkm"), range(2), ("--dataset", "synthetic", *_QUICK)
    elif config.steps is not None:
        shared += ("--steps", str(config.steps))
    groups = ([v for v in variants if v in MAIN], [v for v in variants if v not in MAIN])
    return [
        grid.Run(variant, seed, (*shared, *VARIANTS[variant]))
        for group in groups
        for seed in seeds
        for variant in group
    ]


def arguments(config: Config, run: grid.Run) -> list[str]:
    """What pose_ohkm.py is called with."""
    places = {"--data-dir": config.data_dir, "--cache-dir": config.cache_dir}
    given = [str(part) for item in places.items() if item[1] is not None for part in item]
    return [*run.flags, "--seed", str(run.seed), "--workdir", str(config.runs / run.name), *given, *_SILENT]


def line(run: grid.Run, result: dict, seconds: float, origin: dict) -> dict:
    """A run's line, from what its result.json holds."""
    names = ("pck", "pck@0.2", "pck_visible", "pck_occluded", "people", "steps", "images_per_second")
    numbers = {name: result[name] for name in names} | {"seconds": round(seconds, 1)}
    joints = {name: joint["pck"] for name, joint in result["per_joint"].items()}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {**run._asdict(), **numbers, "per_joint": joints, **origin, "date": date}


def study(config: Config) -> int:
    """Does what is left and prints the table; 1 where a run failed or was stopped."""
    wanted = runs(config)
    configs = [train.parse(arguments(config, run)) for run in wanted]
    load_dataset(configs[0])
    path = config.results / ("ohkm_quick.jsonl" if config.quick else "ohkm.jsonl")
    origin, failed = grid.surroundings(HERE, config.commit) | {"jobs": config.jobs}, []
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": str(config.runs.absolute() / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    } | os.environ
    config.runs.mkdir(parents=True, exist_ok=True)

    def start(run: grid.Run) -> subprocess.Popen:
        command = [sys.executable, str(SCRIPT), *arguments(config, run)]
        with (config.runs / f"{run.name}.log").open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    waiting, seconds = grid.left(wanted, grid.read_lines(path)), config.minutes and 60 * config.minutes
    for run, status, took in grid.run_all(waiting, start, jobs=config.jobs, seconds=seconds):
        result = config.runs / run.name / "result.json"
        if status or not result.exists():
            failed.append(run)
            print(f"{run.name}: no result, status {status}, see {config.runs / run.name}.log", flush=True)
            continue
        grid.append_line(path, line(run, json.loads(result.read_text()), took, origin))
        print(f"{run.name}: {took:.0f} s", flush=True)
    flags = {run.variant: list(run.flags) for run in wanted}
    lines = [at for at in grid.read_lines(path) if at["flags"] == flags.get(at["variant"])]
    rich.print(table(lines, list(flags), SCORES, reference="none", title="validation"))
    return int(bool(failed))


if __name__ == "__main__":
    given = parse_flags(Config, description=__doc__)
    sys.exit(run_to_exit_code(lambda: sys.exit(study(given))))
