import importlib.util
import pathlib

import pytest


@pytest.fixture(scope="session")
def readers():
    """The module `readers.py`, which the tests run in this process and as processes of its own."""
    path = pathlib.Path(__file__).with_name("readers.py")
    spec = importlib.util.spec_from_file_location("readers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
