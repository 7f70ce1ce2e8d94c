"""Strict settings for every test, eight simulated devices, and where the real data lies."""

import os
import pathlib

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402

# A silent rank or dtype promotion is the commonest way for a mask to go wrong without an error.
jax.config.update("jax_numpy_rank_promotion", "raise")


def _shared(name: str) -> pathlib.Path:
    beside = pathlib.Path(__file__).parents[2] / "shared" / "data"
    root = pathlib.Path(os.environ.get("HARDMINE_TEST_DATA", beside))
    if not (root / name).is_dir():
        pytest.skip(f"no real data at {root / name}: set HARDMINE_TEST_DATA to the folder with {name}/ in it")
    return root / name


@pytest.fixture(scope="session")
def lspet_dir() -> pathlib.Path:
    return _shared("lspet")


@pytest.fixture(scope="session")
def bccd_dir() -> pathlib.Path:
    return _shared("bccd")


@pytest.fixture(autouse=True)
def _cache_in_tmp(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's own cache."""
    monkeypatch.setenv("HARDMINE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
