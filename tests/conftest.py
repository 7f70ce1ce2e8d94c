"""Strict settings for every test, eight simulated devices, and where the real data lies."""

import importlib.util
import os
import pathlib
import subprocess

_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Eight devices on two busy cores: XLA would end the process when one keeps the others waiting for 40 s.
    "--xla_cpu_collective_call_terminate_timeout_seconds=300",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402

# A script that imports what lies beside it.
collect_ignore = ["mutate.py"]

# A silent rank or dtype promotion is the commonest way for a mask to go wrong without an error.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Dtypes likewise; but flax and optax promote inside, so only where the tests are of our own arithmetic.
_STRICT_DTYPES = (
    *("mining/", "pose/", "detection/"),
    *(
        f"training/test_{name}.py"
        for name in ("loop", "metrics_log", "optimizer", "progress", "sharding", "step")
    ),
    *(f"models/test_{name}.py" for name in ("cpn", "images", "layers", "resnet")),
)


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


@pytest.fixture
def as_on(monkeypatch):
    """After `as_on("tpu")` our functions take on CPU the formulation that they have for that platform."""

    def choose(platform: str) -> None:
        def take(*operands, default=None, **branches):
            return branches.get(platform, default)(*operands)

        monkeypatch.setattr(jax.lax, "platform_dependent", take)
        jax.clear_caches()

    yield choose
    monkeypatch.undo()
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny():
    """The module `run_tiny.py`, which the tests run in this process and as one of its own."""
    path = pathlib.Path(__file__).parent / "training" / "run_tiny.py"
    spec = importlib.util.spec_from_file_location("run_tiny", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True, scope="session")
def _warnings_are_errors_in_subprocesses_too():
    """As in the tests themselves (pyproject.toml): a script may meet a deprecation that no test imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "error")
        yield


@pytest.fixture(autouse=True)
def _strict_dtypes(request):
    try:
        name = request.path.relative_to(pathlib.Path(__file__).parent).as_posix()
    except ValueError:
        name = ""
    with jax.numpy_dtype_promotion("strict" if name.startswith(_STRICT_DTYPES) else "standard"):
        yield


@pytest.fixture(autouse=True)
def _cache_in_tmp(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's own cache."""
    monkeypatch.setenv("HARDMINE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


class SmallDisk:
    """A file system of a few MB in memory, at `path`, to be filled to the last byte and emptied again."""

    def __init__(self, path: pathlib.Path, megabytes: int):
        self.path, self._filler = path, path / "filler"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no small file system can be mounted here: {getattr(error, 'stderr', error)}")

    def fill(self) -> None:
        with self._filler.open("ab", buffering=0) as filler:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while filler.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        # Lazily: a process that is about to end may still have a file open.
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(megabytes)`, unmounted in the end; skips where nobody may mount."""
    made = []

    def make(megabytes: int) -> SmallDisk:
        made.append(SmallDisk(tmp_path / f"disk{len(made)}", megabytes))
        return made[-1]

    yield make
    for disk in made:
        disk.unmount()
