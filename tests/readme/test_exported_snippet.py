"""The README's lines about an exported network find what `predict_pose.py` finds on the same box."""

import json
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flatbuffers", reason="jax.export writes files by flatbuffers, in the extra `train`")
Image = pytest.importorskip("PIL.Image", reason="the README reads its photograph by Pillow")

from hardmine_jax import training  # noqa: E402
from hardmine_jax.pose import Skeleton  # noqa: E402
from hardmine_jax.tasks.config_json import change  # noqa: E402
from hardmine_jax.tasks.pose import config as pose_config  # noqa: E402
from hardmine_jax.tasks.pose import export, networks, predict_photos  # noqa: E402
from hardmine_jax.tasks.trainer import make_trainer  # noqa: E402
from tests.readme import documents  # noqa: E402

SKELETON = Skeleton(("red", "green", "blue"), (), (0.05,) * 3, ())
# xyxy, as the snippet has it; and where three lights are in the photograph, the last cut off by its border.
BOX = (210.0, 40.0, 510.0, 440.0)
LIGHTS = ((300.0, 120.0), (420.0, 390.0), (350.0, 435.0))
# Before the snippet: neither the package nor what it is made with can be imported.
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hardmine_jax", "experiments", "flax", "orbax", "optax", "cv2", "grain"):
            raise ImportError(f"{name} is blocked here")
sys.meta_path.insert(0, Blocked())
"""
SAVE = """
np.savez("found.npz", keypoints=keypoints, scores=scores)
"""


class Light(nn.Module):
    """Three heatmaps that are red, green and blue, 4 times smaller; with variables, as networks have them."""

    @nn.compact
    def __call__(self, images, train=False):
        gain = self.param("gain", nn.initializers.ones, (1, 1, 1, 3))
        self.variable("batch_stats", "steps", lambda: jnp.zeros(()))
        # Zero where it is black, in the network's normalised colours.
        dark = images.min((1, 2), keepdims=True)
        return nn.avg_pool((images - dark) * gain, (8, 8), (4, 4), padding=((2, 2), (2, 2))) / 5


def _photograph(path: pathlib.Path) -> None:
    """640 x 480 pixels, black but for a light of one colour at each place; its grain shows skipped pixels."""
    x, y = np.meshgrid(np.arange(640), np.arange(480))
    lights = [np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 25.0**2)) for u, v in LIGHTS]
    grain = np.random.default_rng(0).uniform(0.4, 1.0, (480, 640, 1))
    Image.fromarray(np.uint8(255 * np.stack(lights, -1) * grain)).save(path, quality=95)


@pytest.fixture(params=[(96, 96), (256, 192)], ids=["much smaller", "smaller"])
def folder(request, tmp_path, monkeypatch) -> pathlib.Path:
    """A photograph, a network that is exported, and what the run itself predicts for the box."""
    monkeypatch.setattr(networks, "make_model", lambda *_, **__: Light())
    fields = dict(image_size=request.param, workdir=tmp_path / "run", steps=1000, batch_size=8, k=2)
    config = change(pose_config.Config(), **fields)
    pose_config.save_config(config, SKELETON)
    _, state = make_trainer(config.run, pose_config.build(config, SKELETON))
    checkpoints = training.Checkpoints(tmp_path / "run", best_metric="pck")
    checkpoints.save(1, state, None, {"pck": 0.5})
    checkpoints.close()
    _photograph(tmp_path / "new.jpg")
    box = [*BOX[:2], BOX[2] - BOX[0], BOX[3] - BOX[1]]
    (tmp_path / "boxes.json").write_text(json.dumps([{"file_name": "new.jpg", "bbox": box}]))
    monkeypatch.chdir(tmp_path)
    assert export.main(["run", "--output", "pose.jaxexport"]) == 0
    flags = ["--checkpoint", "run", "--boxes", "boxes.json", "--output", "poses"]
    assert predict_photos.main(["new.jpg", *flags]) == 0
    return tmp_path


def test_it_finds_what_the_run_finds(folder):
    snippet = documents.exported_snippet()
    assert f"np.array([{', '.join(map(str, BOX))}])" in snippet
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 18
    code = BLOCKED + snippet + SAVE
    command = [sys.executable, "-I", "-c", code]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    found = np.load(folder / "found.npz")
    (result,) = json.loads((folder / "poses/keypoints.json").read_text())
    expected = np.reshape(result["keypoints"], (3, 3))
    crop = json.loads((folder / "pose.json").read_text())["crop"]
    pixel = 1.25 * max(300 / crop["width"], 400 / crop["height"])
    # Pillow and OpenCV interpolate and shrink a little differently. Without shrinking it is three times that.
    np.testing.assert_allclose(found["keypoints"], expected[:, :2], atol=0.05 * pixel)
    np.testing.assert_allclose(found["scores"][0], expected[:, 2], atol=0.005)
    # One light is cut off by the border.
    np.testing.assert_allclose(found["keypoints"], LIGHTS, atol=3.0)
