"""Files are short enough to be read, and experiments are scripts, not a second library."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "hardmine_jax").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))
SCRIPTS = [path for path in EXPERIMENTS if 'if __name__ == "__main__"' in path.read_text()]


def _name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*PACKAGE, *EXPERIMENTS], ids=_name)
def test_no_file_is_above_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", SCRIPTS, ids=_name)
def test_no_script_is_above_150_lines(path):
    assert len(path.read_text().splitlines()) <= 150


@pytest.mark.parametrize("path", EXPERIMENTS, ids=_name)
def test_an_experiment_imports_what_is_installed_or_lies_beside_it(path):
    text = path.read_text()
    assert not re.search(r"\bsys\.path\b|noqa: E402", text)
