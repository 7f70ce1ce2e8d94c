"""What an extra brings is enough for what needs it, and whoever lacks it is told which one to install."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# What the `train` extra asks for besides the `models` extra, less what flax itself brings.
TRAIN_ONLY = (
    "array_record",
    "chex",
    "cv2",
    "faster_coco_eval",
    "grain",
    "matplotlib",
    "safetensors",
    "tensorboardX",
    "tensorflow_datasets",
    "tyro",
)
BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def _run_without(blocked: tuple[str, ...], code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", BLOCK.format(blocked=blocked) + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    "layer, missing, extra",
    [
        ("models", "flax", "models"),
        ("training", "flax", "train"),
        ("training", "optax", "train"),
    ],
)
def test_a_missing_extra_is_named(layer, missing, extra):
    code = f"""
try:
    import hardmine_jax.{layer}
except ImportError as error:
    print(error)
"""
    run = _run_without((missing,), code)
    assert run.returncode == 0, run.stderr
    assert f'pip install "hardmine-jax[{extra}]"' in run.stdout
    assert f"No module named '{missing}'" in run.stdout


def test_the_step_needs_flax_and_optax_alone_and_checkpoints_name_the_extra():
    code = """
from hardmine_jax.training import create_state, make_optimizer, make_train_step, parallelise
import hardmine_jax.tasks.detection.loss, hardmine_jax.tasks.pose.loss
try:
    from hardmine_jax.training import Checkpoints
except ImportError as error:
    print(error)
"""
    run = _run_without(("orbax", *TRAIN_ONLY), code)
    assert run.returncode == 0, run.stderr
    assert 'pip install "hardmine-jax[train]"' in run.stdout and "No module named 'orbax'" in run.stdout


def test_the_functions_need_no_extra():
    run = _run_without(
        ("flax", "optax", "orbax", *TRAIN_ONLY), "import hardmine_jax.mining, hardmine_jax.pose"
    )
    assert run.returncode == 0, run.stderr


def test_the_networks_need_their_extra_only():
    code = "from hardmine_jax import models\nmodels.HRNet(32, 17), models.FastRCNN(20)"
    run = _run_without(TRAIN_ONLY, code)
    assert run.returncode == 0, run.stderr
