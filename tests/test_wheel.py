"""The wheel has all that a user needs: installed elsewhere, its command loads a run and predicts."""

import os
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile

import cv2
import jax
import numpy as np
import pytest

from hardmine_jax import training
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.config_json import change
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.trainer import make_trainer

ROOT = pathlib.Path(__file__).parents[1]
SKELETON = Skeleton(("nose", "left_hand", "right_hand"), ((1, 2),), (0.05,) * 3, ((0, 1), (0, 2)))


def _environment(*left_out: str) -> dict[str, str]:
    """Of what is run here; pip's own warnings are no errors of ours."""
    left_out += ("PYTHONPATH", "PYTHONWARNINGS")
    return {name: value for name, value in os.environ.items() if name not in left_out}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Built from a copy, without the network: hatchling comes with the extra `test`."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(
        ROOT / "hardmine_jax", copy / "hardmine_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, copy]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_every_module_and_the_types(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("hardmine_jax/")}
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hardmine_jax").rglob("*.py")}
    assert there <= inside and "hardmine_jax/py.typed" in inside


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    """The folder of an environment's commands: the wheel in it, what it needs from where the tests run."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run(command, env=_environment(), check=True, timeout=300)
    # Packages that are here already, after the environment's own; an editable install of the checkout is not.
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "from_the_tests.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    return folder / "bin"


def _run(command: list, folder: pathlib.Path) -> subprocess.CompletedProcess:
    environment = _environment("XLA_FLAGS")
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_what_is_installed_is_the_wheel(installed, tmp_path):
    where = _run([installed / "python", "-c", "import hardmine_jax; print(hardmine_jax.__file__)"], tmp_path)
    assert pathlib.Path(where.stdout.strip()).is_relative_to(installed.parent), where.stderr


def test_the_command_answers(installed, tmp_path):
    done = _run([installed / "hardmine", "--help"], tmp_path)
    assert done.returncode == 0 and "pose" in done.stdout and "detection" in done.stdout, done.stderr


def test_the_command_loads_a_run_and_predicts(installed, tmp_path):
    config = change(
        pose_config.Config(), image_size=(32, 32), workdir=tmp_path / "run", steps=200, k=2, flip_test=False
    )
    pose_config.save_config(config, SKELETON)
    _, state = make_trainer(config.run, pose_config.build(config, SKELETON))
    checkpoints = training.Checkpoints(tmp_path / "run", best_metric="pck")
    checkpoints.save(1, jax.device_get(state), None, {"pck": 0.5})
    checkpoints.close()
    cv2.imwrite(str(tmp_path / "new.png"), np.full((40, 60, 3), 90, np.uint8))
    command = [
        installed / "hardmine",
        "pose",
        "predict",
        "new.png",
        "--checkpoint",
        "run",
        "--output",
        "poses",
    ]
    done = _run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "poses" / "keypoints.json").exists() and (tmp_path / "poses" / "new_pose.png").exists()
