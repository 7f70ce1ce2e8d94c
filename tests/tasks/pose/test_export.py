"""An exported network gives its run's numbers without this package; errors are one line."""

import json
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

pytest.importorskip("flatbuffers", reason="jax.export writes files by flatbuffers, in the extra `train`")

from hardmine_jax import training  # noqa: E402
from hardmine_jax.pose import Skeleton  # noqa: E402
from hardmine_jax.tasks.config_json import change  # noqa: E402
from hardmine_jax.tasks.pose import config as pose_config  # noqa: E402
from hardmine_jax.tasks.pose import networks  # noqa: E402
from hardmine_jax.tasks.pose.export import main  # noqa: E402
from hardmine_jax.tasks.trainer import make_trainer  # noqa: E402

SKELETON = Skeleton(("nose", "left_hand", "right_hand"), ((1, 2),), (0.05,) * 3, ((0, 1), (0, 2)))

# Runs in an empty folder; neither the package nor what it is made with may be importable.
LOAD = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hardmine_jax", "experiments", "flax", "orbax", "optax", "cv2"):
            raise ImportError(f"{name} is blocked here")
sys.meta_path.insert(0, Blocked())
import jax, jax.export, numpy as np, pathlib
predict = jax.jit(jax.export.deserialize(pathlib.Path("pose.jaxexport").read_bytes()).call)
for name in sys.argv[1:]:
    keypoints, scores = predict(np.load(f"{name}.npy"))
    np.savez(f"{name}_found.npz", keypoints=keypoints, scores=scores)
assert not any(name.split(".")[0] in ("hardmine_jax", "flax", "orbax") for name in sys.modules)
"""


class Small(nn.Module):
    """A network that compiles fast, with parameters and batch statistics as all have."""

    num_keypoints: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(16, (7, 7), (4, 4))(images)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Conv(self.num_keypoints, (3, 3))(nn.relu(x))


def _make_run(folder: pathlib.Path) -> pathlib.Path:
    """Two checkpoints, the first of them the best."""
    config = change(pose_config.Config(), image_size=(64, 32), workdir=folder, steps=1000, batch_size=8, k=2)
    pose_config.save_config(config, SKELETON)
    _, state = make_trainer(config.run, pose_config.build(config, SKELETON))
    checkpoints = training.Checkpoints(folder, best_metric="pck")
    checkpoints.save(1, state, None, {"pck": 0.5})
    empty = jax.tree.map(np.zeros_like, state.params)
    checkpoints.save(2, state.replace(params=empty, ema_params=empty), None, {"pck": 0.1})
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "make_model", lambda name, num_keypoints, **_: Small(num_keypoints))
        yield _make_run(tmp_path_factory.mktemp("run"))


def _crops(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (number, 64, 32, 3), np.uint8)


def _expected(workdir, crops) -> dict[str, np.ndarray]:
    run = pose_config.load_run(workdir)
    return jax.device_get(jax.jit(run.predict)(run.variables, crops))


def _export(workdir, folder, *arguments) -> None:
    command = [str(workdir), "--output", str(folder / "pose.jaxexport"), *arguments]
    assert main(command) == 0


def _load(folder, *numbers) -> list[dict]:
    """What another process, which has jax and numpy only, finds in batches of so many crops."""
    for number in numbers:
        np.save(folder / f"{number}.npy", _crops(number))
    command = [sys.executable, "-I", "-c", LOAD, *map(str, numbers)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [dict(np.load(folder / f"{number}_found.npz")) for number in numbers]


def _check(found, expected) -> None:
    assert found["keypoints"].dtype == found["scores"].dtype == np.float32
    np.testing.assert_allclose(found["keypoints"], expected["keypoints"], atol=1e-2)
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-4, atol=1e-6)


def test_any_batch_runs_without_the_package(workdir, tmp_path, capsys):
    _export(workdir, tmp_path)
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'pose.jaxexport'} (")
    for number, found in zip((1, 5), _load(tmp_path, 1, 5), strict=True):
        _check(found, _expected(workdir, _crops(number)))
    description = json.loads((tmp_path / "pose.json").read_text())
    assert description["keypoints"] == list(SKELETON.names)
    assert description["crop"] == {"height": 64, "width": 32, "padding": 1.25}
    assert description["input"]["shape"] == [None, 64, 32, 3]
    assert description["platforms"] == ["cpu"]


def test_a_fixed_batch_for_platforms_that_are_not_here(workdir, tmp_path):
    _export(workdir, tmp_path, "--batch", "3", "--platforms", "cpu", "tpu", "cuda")
    (found,) = _load(tmp_path, 3)
    _check(found, _expected(workdir, _crops(3)))
    exported = jax.export.deserialize((tmp_path / "pose.jaxexport").read_bytes())
    assert exported.platforms == ("cpu", "tpu", "cuda")
    assert json.loads((tmp_path / "pose.json").read_text())["input"]["shape"][0] == 3
    with pytest.raises(ValueError):
        exported.call(_crops(4))


def test_a_named_checkpoint_is_taken(workdir, tmp_path):
    _export(workdir / "checkpoints" / "2", tmp_path, "--batch", "2")
    keypoints, scores = jax.export.deserialize((tmp_path / "pose.jaxexport").read_bytes()).call(_crops(2))
    # Its weights are all zero.
    assert not np.any(scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch 0 must be a number of crops, 1 to 999999, or any"),
        (["--batch", "many"], "--batch many must be a number"),
        (["--output", "pose.json"], "give another ending"),
        (["--output", "."], "--output . is a folder"),
    ],
)
def test_wrong_flags_are_one_line(workdir, capsys, arguments, message):
    assert main([str(workdir), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "nowhere") in error and error.count("\n") == 1


@pytest.mark.slow
def test_the_laptop_network_runs_without_the_package(tmp_path):
    workdir = _make_run(tmp_path / "run")
    _export(workdir, tmp_path)
    (found,) = _load(tmp_path, 2)
    _check(found, _expected(workdir, _crops(2)))
