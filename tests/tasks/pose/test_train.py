"""The script from its command line to its files, with a tiny network; mistakes end with 2 and one line."""

import dataclasses
import functools
import json
import pathlib
import shutil
import subprocess
import sys

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from hardmine_jax import training
from hardmine_jax.data.pose import lspet, synthetic
from hardmine_jax.data.pose.augment import AugmentConfig
from hardmine_jax.data.pose.coco import COCO_SKELETON
from hardmine_jax.models.hrnet import ConvNorm
from hardmine_jax.models.layers import Conv
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.config_json import change, from_plain, plain
from hardmine_jax.tasks.detection import config as detection_config
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose import datasets as pose_datasets
from hardmine_jax.tasks.pose import networks
from hardmine_jax.tasks.pose import pictures as pose_pictures
from hardmine_jax.tasks.pose import train as pose_train
from hardmine_jax.tasks.pose.config import settle
from hardmine_jax.tasks.pose.evaluation import Evaluator
from hardmine_jax.tasks.pose.loss import Mining
from hardmine_jax.tasks.pose.mining import mining_of
from hardmine_jax.tasks.pose.presets import PRESETS
from hardmine_jax.tasks.trainer import make_trainer
from tests.tasks import guarded

SCRIPT = pathlib.Path(__file__).parents[3] / "experiments" / "pose_ohkm.py"
MOUSE = ("nose", "left_ear", "right_ear", "spine", "tail")


class TinyNetwork(nn.Module):
    """Two strided convolutions: everything that the script asks of a network, compiled in a second."""

    num_keypoints: int
    axis_name: str | None = None
    width: int = 4

    @nn.compact
    def __call__(self, images, train=False):
        features = ConvNorm(self.width, stride=2, train=train, axis_name=self.axis_name, name="stem1")(images)
        features = ConvNorm(self.width, stride=2, train=train, axis_name=self.axis_name, name="stem2")(
            features
        )
        return Conv(self.num_keypoints, 1, use_bias=True, name="final_layer")(features)


def _tiny_model(name, num_keypoints, *, axis_name, width=4, **_):
    return TinyNetwork(num_keypoints, axis_name, width)


def _shrink(patch: pytest.MonkeyPatch, *, devices: int) -> None:
    """A network that compiles in seconds, few people, and an allocator that stays as it is."""
    patch.setattr(networks, "make_model", _tiny_model)
    patch.setattr("hardmine_jax.tasks.run.keep_freed_memory", lambda: True)
    few = functools.partial(synthetic.load, num_train=24, num_validation=10)
    patch.setattr(synthetic, "load", few)
    parallelise = functools.partial(guarded.parallelise, devices=jax.devices()[:devices])
    patch.setattr(training, "parallelise", parallelise)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    _shrink(monkeypatch, devices=1)
    # Drawing takes longer than all the rest; `trained` has its pictures.
    monkeypatch.setattr(Evaluator, "pictures", lambda *_: [])
    monkeypatch.setattr(pose_pictures, "report_pictures", lambda *_: [])


def _arguments(workdir: pathlib.Path, *more: object) -> list[str]:
    common = ["--workdir", workdir, "--image-size", 32, 32, "--batch-size", 8, "--log-every", 1]
    return [str(argument) for argument in (*common, *more)]


def _result(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


def _steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """A run of 4 steps on made-up people and 8 devices; not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMINE_CACHE", str(folder / "cache"))
        _shrink(patch, devices=8)
        arguments = _arguments(folder / "run", "--steps", 4, "--checkpoint-every", 2, "--evaluate-every", 3)
        assert pose_train.main(arguments) == 0
    return folder / "run"


@pytest.fixture
def copied(trained, tmp_path, monkeypatch) -> pathlib.Path:
    """The trained run in a folder of this test's own, and the cache that it was made with."""
    monkeypatch.setenv("HARDMINE_CACHE", str(trained.parent / "cache"))
    return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_writes_everything_that_it_promises(trained):
    result = _result(trained)
    assert set(result) >= {
        "pck", "pck@0.2", "pck_visible", "pck_occluded", "mean_pose_pck", "ap", "per_joint", "steps",
        "images_per_second", "people",
    }  # fmt: skip
    assert (result["steps"], result["people"]) == (4, 10) and result["images_per_second"] > 0
    assert 0 <= result["pck"] <= result["pck@0.2"] <= 1 and 0 < result["mean_pose_pck"] < 1
    assert tuple(result["per_joint"]) == COCO_SKELETON.names
    for joint in result["per_joint"].values():
        assert set(joint) == {"pck", "pck_visible", "pck_occluded", "count", "unit_rate"}
    rates = [joint["unit_rate"] for joint in result["per_joint"].values()]
    assert 4 < sum(rates) < 17 and 0 <= min(rates) and max(rates) <= 1
    assert {3, 4} <= set(_steps(trained))
    html = (trained / "report.html").read_text()
    assert html.count("data:image/png;base64,") >= 3 and f"{100 * result['pck']:.1f} %" in html
    assert json.loads((trained / "config.json").read_text())["config"]["steps"] == 4


def test_every_log_line_has_the_losses_and_what_was_mined(trained):
    lines = training.read_metrics(trained / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert {"loss", "mse", "grad_norm", "learning_rate", "seconds"} <= set(line)
        assert len(line["unit_rate"]) == 17 and 0 <= min(line["unit_rate"]) <= max(line["unit_rate"]) <= 1
        # At most 8 of 17 joints of each image are mined, and all only where fewer are labelled.
        assert 8 / 17 - 1e-6 <= line["fraction_kept"] < line["loss_captured"] < 1
        assert 1 < np.exp(line["entropy"]) <= 17.001
    for line in lines[2:]:
        assert {"validation/pck", "validation/pck@0.2", "validation/ap"} <= set(line)


def test_evaluation_alone_gives_the_same_numbers_and_trains_no_further(copied):
    before, config = _result(copied), (copied / "config.json").read_text()
    (copied / "result.json").unlink()
    assert pose_train.main(_arguments(copied, "--eval-only", "--mining", "none", "--seed", 9)) == 0
    after = _result(copied)
    # One device evaluates what eight trained: the same, rounding apart.
    assert after.pop("per_joint").keys() == before.pop("per_joint").keys()
    assert after == pytest.approx(before, abs=1e-6)
    assert max(_steps(copied)) == 4 and (copied / "config.json").read_text() == config


def test_the_same_command_on_a_finished_run_trains_no_further(copied, capsys):
    weights = training.load_variables(copied, which="latest")
    assert pose_train.main(_arguments(copied, "--steps", 4)) == 0
    assert "resuming from step 4" in capsys.readouterr().out
    assert _result(copied)["steps"] == 4 and _result(copied)["images_per_second"] > 0
    jax.tree.map(np.testing.assert_array_equal, weights, training.load_variables(copied, which="latest"))
    assert len(training.read_metrics(copied / "metrics.jsonl")) == 4


def test_a_changed_flag_is_reported_and_no_resume_starts_anew(copied, capsys):
    assert pose_train.main(_arguments(copied, "--steps", 5, "--mining", "random")) == 0
    captured = capsys.readouterr()
    assert "mining='ohkm'" in captured.err and "resuming from step 4" in captured.out
    assert [line["step"] for line in training.read_metrics(copied / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert pose_train.main(_arguments(copied, "--steps", 2, "--mining", "none", "--no-resume")) == 0
    captured = capsys.readouterr()
    assert "resuming" not in captured.out and "note:" not in captured.err
    assert _steps(copied) == [1, 2] and (copied / "checkpoints.previous" / "5").is_dir()
    assert {joint["unit_rate"] for joint in _result(copied)["per_joint"].values()} == {None}


def test_threshold_mining_keeps_at_least_k(copied):
    assert pose_train.main(_arguments(copied, "--steps", 2, "--mining", "threshold", "--no-resume")) == 0
    lines = training.read_metrics(copied / "metrics.jsonl")
    assert all(8 / 17 - 1e-6 <= line["fraction_kept"] <= 1 for line in lines)


def _step_and_batch(*flags: object):
    """A placed step, its state, and a batch in which everybody's 17 joints are labelled."""
    arguments = _arguments(pathlib.Path("nowhere"), "--steps", 12, *flags)
    config = pose_config.settle(pose_train.parse(arguments), COCO_SKELETON)
    parallel, state = make_trainer(config.run, pose_config.build(config, COCO_SKELETON))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8),
        "keypoints": rng.uniform(0, 32, (8, 17, 2)).astype(np.float32),
        "visibility": np.full((8, 17), 2, np.int32),
        "where": np.ones(8, bool),
        "index": np.arange(8, dtype=np.int32),
    }
    return parallel, parallel.put_state(state), parallel.put_batch(batch)


def _run_steps(*flags: object, steps: int) -> list[dict]:
    """Metrics of every step; only the first may compile."""
    parallel, state, batch = _step_and_batch(*flags)
    lines, events = [], []
    listen = lambda event, *_, **__: events.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for _ in range(steps):
            state, metrics = parallel.train_step(state, batch)
            lines.append((jax.device_get(parallel.get(metrics)), len(events)))
            jax.block_until_ready(state)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    compiled = ["backend_compile" in event for event in events]
    assert any(compiled[: lines[0][1]]) and not any(compiled[lines[0][1] :])
    return [line for line, _ in lines]


@pytest.mark.parametrize("shape, devices", [("linear", 1), ("cosine", 8)])
def test_k_falls_from_all_joints_and_nothing_compiles_again(shape, devices, monkeypatch):
    parallelise = functools.partial(training.parallelise, devices=jax.devices()[:devices])
    monkeypatch.setattr(training, "parallelise", parallelise)
    lines = _run_steps("--k", 5, "--k-schedule", shape, "--k-steps", 0.5, steps=8)
    kept = [17 * float(line["fraction_kept"]) for line in lines]
    assert (kept[0], kept[3]) == pytest.approx((17, 11))
    assert kept[6:] == pytest.approx([5, 5]) and kept == sorted(kept, reverse=True)
    # All are kept: then the loss is the mean over all of them.
    assert float(lines[0]["loss"]) == pytest.approx(float(lines[0]["mse"]), rel=1e-6)


def test_a_schedule_that_starts_at_k_changes_nothing():
    flags = ("--k", 17, "--batch-size", 16, "--accumulate", 2)
    constant = _run_steps(*flags, steps=3)
    falling = _run_steps(*flags, "--k-schedule", "linear", steps=3)
    for one, other in zip(constant, falling, strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-6)
        np.testing.assert_allclose(one["grad_norm"], other["grad_norm"], rtol=1e-5)


def _mice(folder: pathlib.Path, *, num_images=16, draw=True) -> list[str]:
    """A COCO file of five keypoints as dots on noise; the flags that name it."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for n in range(1, num_images + 1):
        picture = rng.integers(0, 80, (48, 64, 3), dtype=np.uint8)
        points = rng.integers(6, 42, (len(MOUSE), 2))
        for joint, (x, y) in enumerate(points):
            cv2.circle(picture, (int(x), int(y)), 2, (255, 40 * joint, 255 - 40 * joint), -1)
        if draw:
            cv2.imwrite(str(folder / "images" / f"{n}.png"), picture)
        images.append({"id": n, "file_name": f"{n}.png"})
        triples = np.column_stack([points, np.full(len(MOUSE), 2)]).ravel().tolist()
        annotations.append({"id": n, "image_id": n, "category_id": 1, "keypoints": triples})
    category = {"id": 1, "name": "mouse", "keypoints": MOUSE, "skeleton": [[1, 2], [1, 3], [1, 4], [4, 5]]}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    (folder / "mice.json").write_text(json.dumps(content))
    return [
        "--dataset",
        "coco",
        "--annotations",
        str(folder / "mice.json"),
        "--images",
        str(folder / "images"),
    ]


def test_somebody_with_mice_brings_two_paths_and_trains(tmp_path):
    arguments = _arguments(tmp_path / "run", *_mice(tmp_path), "--steps", 2)
    assert pose_train.main(arguments) == 0
    result = _result(tmp_path / "run")
    assert tuple(result["per_joint"]) == MOUSE and result["steps"] == 2
    config, skeleton = pose_config.load_config(tmp_path / "run")
    assert config.k == 4 and skeleton.names == MOUSE
    assert skeleton.flip_pairs == ((1, 2),) and skeleton.edges == ((0, 1), (0, 2), (0, 3), (3, 4))


# What follows is bad input.


def _fails(capsys, arguments: list[str], *, only_line=True, code=2) -> str:
    assert pose_train.main(arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines].count(True) == 1
    assert lines[-1].startswith("error: ") and len(lines[-1]) > 20
    # Otherwise what was said on the way: that data is prepared, and what was skipped.
    assert len(lines) == 1 or not only_line
    return lines[-1]


def _lsp(folder: pathlib.Path, joints: np.ndarray, *, num_images=0) -> list[str]:
    (folder / "images").mkdir(parents=True)
    scipy.io.savemat(folder / "joints.mat", {"joints": joints})
    for n in range(1, num_images + 1):
        picture = np.random.default_rng(n).integers(0, 255, (60, 50, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / f"im{n:05d}.jpg"), picture)
    return ["--dataset", "lspet", "--data-dir", str(folder)]


def _joints(num_people: int) -> np.ndarray:
    joints = np.ones((14, 3, num_people))
    joints[:, :2] = np.random.default_rng(0).uniform(5, 45, (14, 2, num_people))
    return joints


def test_a_missing_folder(tmp_path, capsys):
    arguments = _arguments(tmp_path / "run", "--dataset", "lspet", "--data-dir", tmp_path / "nowhere")
    error = _fails(capsys, arguments)
    assert str(tmp_path / "nowhere") in error and "joints.mat" in error
    mice = _mice(tmp_path / "mice")
    error = _fails(capsys, _arguments(tmp_path / "run", *mice[:-1], tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in error
    error = _fails(capsys, _arguments(tmp_path / "run", "--dataset", "lspet"))
    assert "--data-dir" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(14, 4, 20), (20, 14, 3), (5,)])
def test_joints_of_the_wrong_shape(tmp_path, capsys, shape):
    error = _fails(capsys, _arguments(tmp_path / "run", *_lsp(tmp_path, np.ones(shape))))
    assert "joints.mat" in error and "[14, 3, N]" in error and str(shape[-1]) in error


@pytest.mark.parametrize("content", ["no json", "[1, 2]", '{"images": []}', '{"a": {"b": 1}}'])
def test_json_that_is_no_coco_file(tmp_path, capsys, content):
    (tmp_path / "a.json").write_text(content)
    arguments = ["--dataset", "coco", "--annotations", tmp_path / "a.json", "--images", tmp_path]
    error = _fails(capsys, _arguments(tmp_path / "run", *arguments))
    assert str(tmp_path / "a.json") in error and '"annotations"' in error


def test_a_folder_where_every_listed_image_is_absent(tmp_path, capsys):
    error = _fails(capsys, _arguments(tmp_path / "run", *_mice(tmp_path / "mice", draw=False)))
    assert str(tmp_path / "mice" / "images") in error and "16" in error
    error = _fails(capsys, _arguments(tmp_path / "run", *_lsp(tmp_path / "lsp", _joints(1010))))
    assert str(tmp_path / "lsp" / "images") in error and "1010" in error


def test_more_hard_joints_than_joints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lspet, "load", functools.partial(lspet.load, num_validation=2))
    arguments = _lsp(tmp_path / "lsp", _joints(6), num_images=6)
    error = _fails(capsys, _arguments(tmp_path / "run", *arguments, "--k", 20), only_line=False)
    assert "20" in error and "14" in error
    # Prepared now, so that nothing but the error is left to say.
    assert _fails(capsys, _arguments(tmp_path / "run", *arguments, "--k", 0)).count("14") == 1


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--batch-size", 12], "--batch-size 12"),
        (["--batch-size", 0], "--batch-size 0"),
        (["--image-size", 40, 32], "--image-size (40, 32)"),
        (["--steps", 0], "--steps 0"),
        (["--steps", -3], "--steps -3"),
        (["--heatmap-sigma", 0], "--heatmap-sigma 0"),
        (["--ema-decay", 1], "--ema-decay 1"),
        (["--min-loss", -1], "--min-loss -1"),
        (["--k-steps", 0], "--k-steps 0"),
        (["--k-steps", 1.5], "--k-steps 1.5"),
        (["--k-schedule", "linear", "--mining", "none"], "--k-schedule linear"),
        (["--easy-weight", 0.5, "--mining", "none"], "--easy-weight 0.5"),
        (["--easy-weight", -0.5], "--easy-weight -0.5"),
        (["--easy-weight", "nan"], "--easy-weight nan"),
        (["--k-schedule", "linear", "--mining", "sleap"], "--k-schedule linear"),
        (["--hard-weight", -1], "--hard-weight -1"),
        (["--hard-weight", 2, "--mining", "none"], "--hard-weight 2"),
        (["--hard-weight", 0], "--hard-weight 0"),
        (["--mining-over", "batch", "--mining", "random"], "--mining-over batch"),
        (["--mining-over", "image", "--mining", "sleap"], "--mining-over image"),
        (["--mining-over", "image", "--mining", "none"], "--mining-over image"),
        (["--keypoint-weights", "wrist=2"], "--keypoint-weights wrist=2"),
        (["--keypoint-weights", "left_wrist=1e39"], "--keypoint-weights left_wrist=1e39"),
        (["--keypoint-weights", "nose=1", "nose=3"], "--keypoint-weights nose=3: give NAME=WEIGHT, once"),
        (["--keypoint-weights", "head"], "--keypoint-weights head"),
        (["--keypoint-weights", "left_wrist=nan"], "--keypoint-weights left_wrist=nan"),
        (["--keypoint-weights", "left_wrist=two"], "--keypoint-weights left_wrist=two"),
        (["--inputs.flip-shift", 16], "--inputs.flip-shift 16"),
        (["--inputs.flip-shift", -1], "--inputs.flip-shift -1"),
        (["--keep-last", 0], "--keep-last 0"),
        (["--accumulate", 0], "--accumulate 0"),
        (["--accumulate", 3], "--accumulate 3"),
        (["--evaluate-people", 0], "--evaluate-people 0"),
        (["--evaluate-every", -1], "--evaluate-every -1"),
        (["--seed", -1], "--seed -1"),
        (["--seed", 2**32], "--seed 4294967296"),
        (["--images", "d"], "--images"),
        (["--dataset", "coco", "--category", "mouse"], "--category"),
        (["--dataset", "mpii"], "mpii needs --data-dir DIR with DIR/annot/train.json"),
        (["--dataset", "lspet"], "lspet needs --data-dir DIR with"),
        (
            ["--dataset", "coco", "--images", "d"],
            "coco needs --annotations JSON and --images DIR: --annotations missing",
        ),
    ],
)
def test_flags_that_cannot_be_leave_the_run_as_it_was(copied, capsys, flags, named):
    assert named in _fails(capsys, _arguments(copied, "--no-resume", *flags))
    assert max(_steps(copied)) == 4 and (copied / "result.json").exists()


def test_fewer_steps_than_were_made(copied, capsys):
    error = _fails(capsys, _arguments(copied, "--steps", 3))
    assert "step 4" in error and "--steps 3" in error and "--eval-only" in error


def test_a_checkpoint_of_another_model(copied, capsys, monkeypatch, tmp_path):
    before = (copied / "config.json").read_text()
    monkeypatch.setattr(networks, "make_model", functools.partial(_tiny_model, width=8))
    error = _fails(capsys, _arguments(copied, "--steps", 6))
    assert "another model" in error and "params/" in error and "--no-resume" in error
    # Other joints are another model too.
    monkeypatch.setattr(networks, "make_model", _tiny_model)
    error = _fails(capsys, _arguments(copied, *_mice(tmp_path / "mice")), only_line=False)
    assert "another model" in error and "final_layer" in error
    assert (copied / "config.json").read_text() == before and _steps(copied) == [3, 4]


def test_nothing_to_evaluate(copied, capsys, tmp_path):
    error = _fails(capsys, _arguments(tmp_path / "new", "--eval-only"))
    assert str(tmp_path / "new") in error
    assert not (tmp_path / "new" / "config.json").exists()


def test_a_loss_that_is_not_finite(copied, capsys):
    weights = training.load_variables(copied, which="latest")
    arguments = _arguments(
        copied, "--steps", 8, "--optimizer.learning-rate", 1e9, "--optimizer.weight-decay", 1e9
    )
    # Launchers start again from the last checkpoint, in case a chip was broken; but not if it comes again.
    for code in (1, 2):
        error = _fails(capsys, arguments, only_line=False, code=code)
        assert "step 6: loss is nan" in error or "step 6: loss is inf" in error
        assert ("the same in the start before" in error) == (code == 2)
        assert _steps(copied) == [3, 4]
    jax.tree.map(np.testing.assert_array_equal, weights, training.load_variables(copied, which="latest"))


@pytest.mark.parametrize("content", ["{}", "no json", "[]"])
def test_a_foreign_config_in_the_workdir(copied, capsys, content):
    (copied / "config.json").write_text(content)
    assert "config.json" in _fails(capsys, _arguments(copied, "--steps", 4))


def test_the_process_itself_ends_with_2_after_one_line(tmp_path):
    """Slow to start, so one process for the whole way; the others above are the same function."""
    arguments = _arguments(tmp_path / "run", "--dataset", "lspet", "--data-dir", tmp_path / "nowhere")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    # That it has begun to read the data.
    assert done.stdout.count("\n") <= 1


@pytest.mark.slow
@pytest.mark.parametrize("case", ["joints", "json", "absent", "k", "model", "nothing to evaluate"])
def test_every_promised_mistake_ends_the_process_with_2(tmp_path, case):
    def run(*flags, steps=1):
        arguments = _arguments(tmp_path / "run", *flags, "--steps", steps, "--cache-dir", tmp_path / "cache")
        command = [sys.executable, str(SCRIPT), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    if case == "joints":
        done = run(*_lsp(tmp_path / "lsp", np.ones((14, 4, 20))))
    elif case == "json":
        (tmp_path / "a.json").write_text("{}")
        done = run("--dataset", "coco", "--annotations", tmp_path / "a.json", "--images", tmp_path)
    elif case == "absent":
        done = run(*_lsp(tmp_path / "lsp", _joints(1010)))
    elif case == "k":
        done = run(*_mice(tmp_path / "mice"), "--k", 20)
    else:
        mice = _mice(tmp_path / "mice")
        if case == "model":
            assert run(*mice).returncode == 0
            done = run(*mice, "--model", "simple_baseline_18", steps=2)
        else:
            done = run(*mice, "--eval-only")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and done.stderr.splitlines()[-1] == errors[0]


# What the command line and config.json say.


def test_every_promised_flag_is_there(tmp_path):
    config = pose_train.parse(
        [
            "--dataset", "coco", "--data-dir", "d", "--annotations", "a.json", "--images", "i", "--workdir",
            str(tmp_path), "--model", "hrnet_w32", "--image-size", "256", "192", "--mining", "threshold",
            "--k", "5", "--batch-size", "16", "--steps", "7", "--seed", "3", "--parallel", "pmap",
            "--no-resume", "--eval-only",
        ]
    )  # fmt: skip
    assert (config.dataset, config.model, config.image_size) == ("coco", "hrnet_w32", (256, 192))
    paths = (config.data_dir, config.annotations, config.images, config.run.workdir)
    assert paths == (pathlib.Path("d"), pathlib.Path("a.json"), pathlib.Path("i"), tmp_path)
    assert (config.mining, config.k, config.run.batch_size, config.run.steps) == ("threshold", 5, 16, 7)
    assert (config.run.seed, config.run.parallel, config.run.resume, config.run.eval_only) == (
        3,
        "pmap",
        False,
        True,
    )
    assert pose_train.parse(["--resume"]).run.resume and pose_train.parse([]).run.resume


@pytest.mark.parametrize(
    "flag, values",
    [
        ("dataset", ("synthetic", "lspet", "coco")),
        ("mining", ("none", "ohkm", "random", "threshold")),
        ("k_schedule", ("constant", "linear", "cosine")),
        ("parallel", ("auto", "jit", "pmap", "shard_map")),
        ("preset", ("laptop", "hrnet_w32", "hrnet_w48", "simple_baseline_50")),
    ],
)
def test_every_promised_choice_is_there_and_no_other(flag, values, capsys):
    for value in values:
        config = pose_train.parse([f"--{flag.replace('_', '-')}", value])
        assert plain(config)[flag] == value
    with pytest.raises(SystemExit) as raised:
        pose_train.parse([f"--{flag.replace('_', '-')}", "nonsense"])
    assert raised.value.code == 2 and "nonsense" in capsys.readouterr().err


def test_without_arguments_it_is_the_laptop_preset_on_made_up_people():
    config = pose_train.parse([])
    assert (config.preset, config.dataset, config.mining) == ("laptop", "synthetic", "ohkm")
    assert pose_config.settle(config, COCO_SKELETON).k == 8
    assert config.run.steps == pose_datasets.DATASETS["synthetic"].steps
    assert config.run.workdir == pathlib.Path("runs/pose_synthetic_laptop")


@pytest.mark.parametrize("kind", [pose_config.Config, detection_config.Config])
def test_what_an_older_config_json_lacks_is_the_task_s_default(kind):
    older = {name: value for name, value in plain(kind()).items() if name not in ("ema_decay", "optimizer")}
    assert from_plain(kind, {**older, "seed": 3}) == change(kind(), seed=3)


@pytest.mark.parametrize("num_keypoints, k", [(1, 1), (5, 4), (14, 8), (17, 8), (133, 8)])
def test_k_follows_the_number_of_joints_unless_it_is_given(num_keypoints, k):
    names = tuple(f"joint{number}" for number in range(num_keypoints))
    skeleton = Skeleton(names, (), (0.05,) * num_keypoints, ())
    assert pose_config.settle(pose_train.parse([]), skeleton).k == k
    assert pose_config.settle(pose_train.parse(["--k", "1"]), skeleton).k == 1


@pytest.mark.parametrize("preset", ["hrnet_w32", "hrnet_w48", "simple_baseline_50"])
def test_a_preset_gives_the_defaults_and_flags_change_them(preset):
    config = pose_train.parse(["--preset", preset])
    assert config.model == preset and config.image_size == (256, 192) and config.run.batch_size == 128
    optimizer = config.run.optimizer
    assert optimizer.learning_rate == 1e-3 and optimizer.schedule == "step"
    changed = pose_train.parse(["--batch-size", "64", "--preset", preset, "--optimizer.learning-rate", "0.5"])
    assert (changed.model, changed.run.batch_size, changed.run.optimizer.learning_rate) == (preset, 64, 0.5)
    assert changed.run.optimizer.schedule == "step"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_network_and_passes_the_checks(preset, monkeypatch):
    monkeypatch.undo()
    config = pose_train.parse(["--preset", preset])
    skeleton = pose_datasets.DATASETS["mpii" if config.dataset == "mpii" else "synthetic"].skeleton
    settled = pose_config.settle(config, skeleton)
    assert settled.k == min(8, -(-2 * skeleton.num_keypoints // 3)) and config.preset == preset
    network = pose_config.make_model(config, skeleton.num_keypoints)
    height, width = config.image_size
    images = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
    heatmaps, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    *early, last = jax.tree.leaves(heatmaps)
    assert last.shape == (1, height // 4, width // 4, skeleton.num_keypoints) and last.dtype == np.float32
    assert len(pose_config.supervision_of(config).early.sigmas) == len(early)
    run = config.run
    schedule = training.make_schedule(run.optimizer, steps=run.steps)
    assert schedule(run.steps - 1) < run.optimizer.learning_rate


def test_config_comes_back_as_it_was(tmp_path):
    config = change(
        pose_config.Config(), dataset="coco", data_dir=pathlib.Path("d"), annotations=pathlib.Path("a.json"),
        workdir=tmp_path,
        sigmas=(0.1, 0.2), flip_pairs=(("a", "b"),), edges=(("a", "b"), ("b", "a")), category="mouse",
        steps=9, image_size=(64, 96), k=1, augment=AugmentConfig(scale=0.1),
        optimizer=training.OptimizerConfig(milestones=(0.25, 0.5), clip_norm=None),
    )  # fmt: skip
    skeleton = Skeleton(("a", "b"), ((0, 1),), (0.1, 0.2), ((0, 1),))
    pose_config.save_config(config, skeleton)
    assert pose_config.load_config(tmp_path) == (config, skeleton)


def test_unit_rates_weigh_each_line_by_its_steps():
    lines = [{"step": 1, "unit_rate": [1.0, 0.0]}, {"step": 4, "unit_rate": [0.0, 1.0]}]
    assert pose_train.mean_unit_rates(lines, 2) == [0.25, 0.75]
    assert pose_train.mean_unit_rates([{"step": 1}], 2) == [None, None]


def test_keypoints_that_look_sided_and_have_no_partner_are_told_in_one_line(capsys):
    def notes(names, pairs, *flags):
        skeleton = Skeleton(names, pairs, (0.1,) * len(names), ())
        pose_config.settle(pose_train.parse(flags), skeleton)
        return capsys.readouterr().err

    names = ("nose", "earL", "earR", "legL1", "legR2", "legR3", "pawR")
    told = notes(names, ((1, 2),))
    assert told.startswith(
        "note: 4 keypoints look sided and have no partner (legL1, legR2, legR3, pawR): mirrored"
    )
    assert told.count("\n") == 1 and "--flip-pairs" in told
    assert notes(names[:3], ((1, 2),)) == ""
    assert "no left/right pairs among nose, tail" in notes(("nose", "tail"), ())
    # Who says what is mirrored, or mirrors nothing, knows.
    assert notes(names, ((1, 2),), "--dataset", "coco", "--flip-pairs", "earL", "earR") == ""
    assert notes(names, ((1, 2),), "--augment.flip-probability", "0", "--no-flip-test") == ""


@pytest.mark.parametrize("given", [["dog"], ["dog", "cat"], ["all"]])
def test_one_category_or_several_go_through_the_command_line_and_config_json(given):
    config = pose_train.parse(["--dataset", "coco", "--category", *given])
    assert config.category == (given[0] if len(given) == 1 else tuple(given))
    content = plain(config)
    assert from_plain(pose_config.Config, content) == config
    for name in ("exif_orientation", "point_side"):  # What older versions did not write.
        assert content.pop(name) is None
    assert from_plain(pose_config.Config, content) == config


@pytest.mark.parametrize(
    "flags, expected",
    [
        ((), {}),
        (("--easy-weight", 0.5, "--hard-weight", 3), {"easy_weight": 0.5, "hard_weight": 3.0}),
        (("--mining-over", "batch"), {"over": "batch"}),
        (("--mining", "sleap"), {"kind": "sleap", "easy_weight": 1.0, "hard_weight": 5.0}),
        (
            ("--mining", "sleap", "--hard-weight", 0, "--easy-weight", 2),
            {"kind": "sleap", "easy_weight": 2.0, "hard_weight": 0.0},
        ),
        (
            ("--mining", "sleap", "--hard-weight", 0),
            {"kind": "sleap", "easy_weight": 1.0, "hard_weight": 0.0},
        ),
        (("--mining", "threshold", "--min-loss", 0.5), {"kind": "threshold", "min_loss": 0.5}),
        (("--keypoint-weights", "nose=2", "left_eye=0.5"), {"weights": (2.0, 0.5, *[1.0] * 15)}),
    ],
)
def test_what_the_flags_of_mining_come_to(flags, expected):
    config = settle(pose_train.parse([*map(str, flags), "--batch-size", "8"]), COCO_SKELETON)
    made = mining_of(config, COCO_SKELETON)
    assert dataclasses.replace(made, k_at=None) == Mining(**{"kind": "ohkm", "k_at": None} | expected)
    assert made.k_at(jnp.int32(0)) == 8
