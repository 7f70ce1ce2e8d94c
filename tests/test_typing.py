"""Annotations are what the type checkers of others believe: mypy reads the package, and calls of it."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_mypy_finds_nothing(tmp_path):
    pytest.importorskip("mypy")
    # The settings, and what is read, are those of pyproject.toml.
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "hardmine_jax" / "py.typed").is_file()
