import importlib.util
import pathlib
import sys

import pytest


@pytest.fixture(scope="session")
def jobs():
    """The module `job.py` beside this file."""
    path = pathlib.Path(__file__).with_name("job.py")
    spec = importlib.util.spec_from_file_location("chaos_job", path)
    module = sys.modules["chaos_job"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
