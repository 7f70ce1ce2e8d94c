"""The hash of a module follows what it imports of this package, and nothing else."""

import pathlib

import pytest

from hardmine_jax.data import code_hash

ROOT = pathlib.Path(code_hash.__file__).parents[1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package: reader -> helper -> one of the three modules that `layer` passes on."""
    root = tmp_path / "hardmine_jax"
    (root / "layer").mkdir(parents=True)
    files = {
        "reader.py": "import os\nfrom hardmine_jax.helper import read\n",
        "helper.py": "def read():\n    from hardmine_jax.layer import Wanted\n",
        "other.py": "",
        "layer/__init__.py": "from hardmine_jax.layer.wanted import Wanted\n"
        "from hardmine_jax.layer.rest import Rest\n",
        "layer/wanted.py": "import hardmine_jax.layer.deep\nclass Wanted: pass\n",
        "layer/deep.py": "from hardmine_jax import reader\n",
        "layer/rest.py": "class Rest: pass\n",
    }
    for name, text in files.items():
        (root / name).write_text(text)
    monkeypatch.setattr(code_hash, "_PACKAGE", root)
    return root


@pytest.mark.parametrize(
    "name, counts",
    [
        ("reader.py", True), ("helper.py", True), ("layer/wanted.py", True), ("layer/deep.py", True),
        ("layer/rest.py", False), ("other.py", False),
    ],
)  # fmt: skip
def test_what_is_imported_near_or_far_counts(package, name, counts):
    reader = str(package / "reader.py")
    before = code_hash.code_hash(reader)
    (package / name).write_text((package / name).read_text() + "# changed\n")
    assert (code_hash.code_hash(reader) != before) == counts


def test_the_same_code_is_the_same_hash(package):
    files = [str(package / name) for name in ("reader.py", "other.py")]
    assert code_hash.code_hash(*files) == code_hash.code_hash(*files[::-1])
    assert code_hash.code_hash(files[0]) != code_hash.code_hash(*files)


def test_names_that_a_layer_passes_on_lead_to_their_own_files():
    path = pathlib.Path(code_hash.__file__).with_name("coco_json.py")
    found = {path.relative_to(ROOT).as_posix() for path in code_hash.imported(path)}
    assert "data/problems.py" in found and "data/cache.py" in found
    assert code_hash._file("hardmine_jax.pose.Skeleton") == ROOT / "pose" / "skeleton.py"
    assert code_hash._file("hardmine_jax.pose.skeleton.Skeleton") == ROOT / "pose" / "skeleton.py"
    assert code_hash._file("numpy.array") is None
