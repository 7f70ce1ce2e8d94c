"""What the tests of data share."""

import pathlib
import types

import pytest

from hardmine_jax.data import code_hash


@pytest.fixture
def change_code(monkeypatch):
    """`change_code(module)`: from then on that module counts as another version of itself."""

    def change(module: types.ModuleType) -> None:
        real, changed = code_hash.source, pathlib.Path(module.__file__)
        monkeypatch.setattr(code_hash, "source", lambda path: b"new" if path == changed else real(path))

    return change
