"""Both experiments, as jobs of two processes, under random faults: they end where undisturbed ones do."""

import json
import os
import pathlib
import random
import time
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import jax
import numpy as np
import pytest

from hardmine_jax import training

NAMES = ["nose", "left_ear", "right_ear", "tail_base", "tail_tip"]
STEPS, MEGABYTES = 220, 600
_COMMON = {
    "--dataset": "coco", "--image-size": (64, 64), "--batch-size": 8, "--checkpoint-every": 5,
    "--evaluate-every": 0, "--log-every": 1,
}  # fmt: skip
_DETECTION = {
    "--evaluate-images": 4, "--k": 8, "--search.max-proposals": 40, "--max-detections": 10, "--rounds": 3,
}  # fmt: skip
RUNS = {
    "pose_ohkm": _COMMON | {"--evaluate-people": 4},
    "detection_ohem": _COMMON | _DETECTION,
}


def write_pictures(folder: pathlib.Path, count: int = 40) -> pathlib.Path:
    """Photographs of mice, so to speak, in COCO's JSON with boxes and keypoints; one of them cut off."""
    rng, images, annotations = np.random.default_rng(0), [], []
    folder.mkdir()
    for number in range(count):
        picture = rng.integers(0, 80, (96, 96, 3), np.uint8)
        low, size = rng.integers(4, 40, 2), rng.integers(30, 50, 2)
        centre, axes = (int(x) for x in low + size // 2), (int(x) for x in size // 2)
        cv2.ellipse(picture, tuple(centre), tuple(axes), 0, 0, 360, (200, 160, 90), -1)
        points = low + rng.random((5, 2)) * size
        for x, y in points.astype(int).tolist():
            cv2.circle(picture, (x, y), 3, (20, 20, 250), -1)
        assert cv2.imwrite(str(folder / f"{number}.jpg"), picture)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 96, "height": 96})
        keypoints = [float(value) for x, y in points for value in (x, y, 2)]
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [*map(float, (*low, *size))],
             "area": float(size.prod()), "iscrowd": 0, "num_keypoints": 5, "keypoints": keypoints}
        )  # fmt: skip
    category = {"id": 1, "name": "mouse", "keypoints": NAMES, "skeleton": []}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    (folder.parent / "mice.json").write_text(json.dumps(content))
    return folder.parent / "mice.json"


def without_time(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


class Ended(NamedTuple):
    """What a run leaves: CRC-32 of every array of its last state with the input's position, the bits of the
    weights, the log, the result."""

    about: dict
    weights: list[bytes]
    lines: list[dict]
    result: dict


def ended(workdir: pathlib.Path) -> Ended:
    (path,) = (workdir / "checkpoints" / str(STEPS)).glob("about/metadata")
    variables = training.load_variables(workdir, which="latest")
    result = json.loads((workdir / "result.json").read_text())
    for name in ("images_per_second", "seconds", "peak_memory_mb", "step_memory_mb"):
        result.pop(name, None)
    return Ended(
        json.loads(path.read_text()),
        [np.asarray(x).tobytes() for x in jax.tree.leaves(variables)],
        without_time(training.read_metrics(workdir / "metrics.jsonl")),
        result,
    )


class Row(NamedTuple):
    """A fault in the table: what, after which logged step, from which step the run went on, seconds until it
    was as far again."""

    fault: str
    step: int
    resumed: int | None
    seconds: float


def disturb(job, jobs, draw: random.Random, faults: list) -> Iterator[Row]:
    """Lets each fault happen at a random step, in that order."""
    # Not before the first checkpoint, nor so late that training ends meanwhile, at some milliseconds a step;
    # and no step twice, for its NaN.
    steps = sorted(draw.sample(range(8, STEPS - 80, 4), len(faults)))
    for step, fault in zip(steps, faults, strict=True):
        job.wait_for_step(step)
        time.sleep(draw.uniform(0.0, 0.5))
        since, before, started = len(job.lines), job.step(), time.monotonic()
        said = fault(job, draw)
        resumed = None
        if fault is not jobs.fill_disk:
            resumed = int(job.wait_for_line(r"resuming from step (\d+)", since)[1])
            # The log may have been further than the checkpoint: a SIGTERM now would come before training.
            job.wait_for_line(rf"\bstep {resumed + 1}/", since)
        job.wait_for_step(before + 1)
        yield Row(said, before, resumed, time.monotonic() - started)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", RUNS)
def test_a_job_under_random_faults_ends_as_an_undisturbed_one(
    experiment, jobs, small_disk, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(2**31)))
    draw = random.Random(seed)
    annotations = write_pictures(tmp_path / "pictures")
    spoiled = tmp_path / "pictures" / f"{draw.randrange(40)}.jpg"
    at = draw.randrange(400, spoiled.stat().st_size - 100)
    os.truncate(spoiled, at)
    flags = RUNS[experiment] | {
        "--steps": STEPS, "--annotations": annotations, "--images": tmp_path / "pictures",
        "--cache-dir": tmp_path / "cache",
    }  # fmt: skip

    calm = jobs.Job(experiment, flags, small_disk(MEGABYTES), tmp_path / "no faults")
    calm.start()
    assert calm.end() == 0, "\n".join(calm.lines)

    job = jobs.Job(experiment, flags, small_disk(MEGABYTES), tmp_path / "faults")
    # Each kind once, and some again.
    faults = [*jobs.FAULTS, *draw.choices(jobs.FAULTS[:-2], k=3)]
    draw.shuffle(faults)
    job.start()
    with capsys.disabled():
        print(f"\n{experiment}, seed {seed}: a picture cut at byte {at}, from the beginning, in both runs")
        try:
            for row in disturb(job, jobs, draw, faults):
                resumed = "went on" if row.resumed is None else f"resumed from {row.resumed}"
                print(f"{row.fault:60} after step {row.step:4}, {resumed:18} {row.seconds:5.0f} s")
            assert job.end() == 0, "\n".join(job.lines[-60:])
        finally:
            job.kill_all()
    one, other = ended(calm.workdir), ended(job.workdir)
    assert one.weights == other.weights and one.about == other.about
    assert one.lines == other.lines
    assert one.result == other.result
