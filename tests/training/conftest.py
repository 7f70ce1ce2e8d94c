import importlib.util
import pathlib

import pytest


@pytest.fixture(scope="session")
def tiny():
    """The module `run_tiny.py`, which the tests run in this process and as one of its own."""
    path = pathlib.Path(__file__).with_name("run_tiny.py")
    spec = importlib.util.spec_from_file_location("run_tiny", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
