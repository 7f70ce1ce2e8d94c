"""Folders are layers: imports point down only, and `import hardmine_jax` stays light."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "hardmine_jax"

# What each layer may import from the package besides itself. `coco_eval` and its like are files of a layer.
ALLOWED = {
    "": {"mining", "pose", "detection", "command", "job"},
    "mining": set(),
    "pose": {"mining"},
    "detection": {"mining"},
    "models": set(),
    "data": {"pose", "detection"},
    "job": set(),
    "training": {"job"},
    "tasks": {"mining", "pose", "detection", "models", "data", "job", "training"},
}
# What every layer may import, and no more from there: these import nothing but Python's own modules.
FOR_ALL = ("hardmine_jax.errors.UserError", "hardmine_jax.file_lock.open_locked")
# Third-party modules that must not come with `import hardmine_jax`.
HEAVY = (
    "torch",
    "safetensors",
    "flax",
    "orbax",
    "grain",
    "tensorflow_datasets",
    "tensorflow",
    "cv2",
    "matplotlib",
    "faster_coco_eval",
    "optax",
    "chex",
    "scipy.io",
    "rich",
    "tyro",
    "tensorboardX",
)
# Third-party modules that a layer may import at the top of its files, where the layer is a narrow one.
THIRD_PARTY = {"mining": {"jax", "numpy"}, "pose": {"jax", "numpy"}, "detection": {"jax", "numpy"}}
# Files that are imported by name only, with what they may need besides.
BY_NAME = {"pose/coco_eval.py": {"faster_coco_eval"}, "detection/coco_eval.py": {"faster_coco_eval"}}
# Files that import what they need inside a function, and what that is.
LATE = {"detection/proposals.py": {"cv2"}}


def _imports(path: pathlib.Path) -> list[str]:
    """Absolute dotted names of everything a file imports, wherever in the file it does so."""
    parent = ("hardmine_jax", *path.relative_to(PACKAGE).parts[:-1])
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parent[: len(parent) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            # `from hardmine_jax import pose` names the layer in the alias.
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def _wrong_arrows(path: pathlib.Path) -> list[str]:
    relative = path.relative_to(PACKAGE)
    layer = relative.parts[0] if len(relative.parts) > 1 else ""
    if layer not in ALLOWED:
        return [f"{relative}: {layer}/ is no layer of DESIGN.md"]
    wrong = []
    for name in _imports(path):
        top, *rest = name.split(".")
        if top == "experiments":
            wrong.append(f"{relative} imports {name}: the library does not know its experiments")
        elif name in FOR_ALL:
            continue
        elif top == "hardmine_jax" and rest and rest[0] not in ALLOWED[layer] | {layer}:
            wrong.append(f"{relative} imports {name}: {layer or 'the package'} may not know {rest[0]}")
        elif layer in THIRD_PARTY and top != "hardmine_jax" and top not in sys.stdlib_module_names:
            besides = BY_NAME.get(relative.as_posix(), set()) | LATE.get(relative.as_posix(), set())
            if top not in THIRD_PARTY[layer] | besides:
                wrong.append(f"{relative} imports {name}: {layer} is made of {sorted(THIRD_PARTY[layer])}")
    return wrong


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_import_points_up(path):
    assert _wrong_arrows(path) == []


@pytest.mark.parametrize("name", FOR_ALL)
def test_what_every_layer_may_import_needs_only_python(name):
    imported = _imports(PACKAGE / f"{name.split('.')[1]}.py")
    assert {each.split(".")[0] for each in imported} <= sys.stdlib_module_names


def test_only_the_checkpoint_knows_orbax():
    knows = [path.name for path in FILES if any(name.split(".")[0] == "orbax" for name in _imports(path))]
    assert set(knows) <= {"checkpoint.py"}


def _flags(path: pathlib.Path) -> list[str]:
    """Flags of a command line in the texts of a file."""
    nodes = ast.walk(ast.parse(path.read_text()))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [flag for text in texts for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_library_function_never_names_a_flag(path):
    if path.relative_to(PACKAGE).parts[0] not in ("tasks", "command.py"):
        assert _flags(path) == []


def test_the_check_itself_finds_a_flag(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(
        'def f(x):\n    """Not --this-one."""\n    raise ValueError(f"{x}: give --data-dir DIR, a--b")'
    )
    assert _flags(path) == ["--this-one", "--data-dir"]


@pytest.mark.parametrize(
    "layer, line",
    [
        ("mining", "from hardmine_jax import pose"),
        ("mining", "import hardmine_jax.models.hrnet"),
        ("mining", "from ..pose import Skeleton"),
        ("mining", "def late():\n    import flax"),
        ("pose", "from hardmine_jax.detection.boxes import iou"),
        ("pose", "import cv2"),
        ("detection", "from hardmine_jax.pose import Skeleton"),
        ("detection", "def late():\n    import cv2"),
        ("models", "from hardmine_jax.data.pose import records"),
        ("job", "from hardmine_jax.training import fit"),
        ("training", "from hardmine_jax.pose import ohkm"),
        ("training", "from hardmine_jax.tasks.run import open_run"),
        ("data", "from hardmine_jax.training.state import TrainState"),
        ("data", "from experiments import plots"),
        ("data", "from hardmine_jax.errors import UserError, Other"),
    ],
)
def test_the_check_itself_finds_an_arrow_that_points_up(layer, line, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / layer).mkdir()
    path = tmp_path / layer / "wrong.py"
    path.write_text(line)
    assert len(_wrong_arrows(path)) == 1


def test_importing_the_package_brings_nothing_heavy():
    """What is public is listed at once and there at its first use; jax and numpy come with that."""
    code = (
        "import hardmine_jax, sys\n"
        "early = [name for name in ('jax', 'numpy', 'typing_extensions') if name in sys.modules]\n"
        "names = {'mining', 'pose', 'detection'}\n"
        "unlisted = names - set(dir(hardmine_jax))\n"
        "missing = [name for name in sorted(names) if not hasattr(hardmine_jax, name)]\n"
        "assert hardmine_jax.mining.top_k and not hasattr(hardmine_jax, 'nonsense')\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "wrong = early or unlisted or missing or heavy\n"
        "sys.exit(f'{early}, {unlisted}, {missing}, {heavy}' if wrong else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert run.returncode == 0, run.stderr
