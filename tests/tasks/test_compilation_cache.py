"""Compiled programs are kept for the next start, in a folder of this machine's; nothing of it ends a run."""

import contextlib
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import lru_cache

from hardmine_jax.tasks import compilation_cache as module
from hardmine_jax.tasks.compilation_cache import compilation_cache, machine
from hardmine_jax.tasks.run_config import RunConfig

_HIT = "/jax/compilation_cache/cache_hits"
_DAMAGE = {
    "cut off": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "flipped": lambda whole: whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:],
    "another's bytes": lambda whole: zlib.compress(b"\0\0\0\1no program"),
}


@pytest.fixture
def hits():
    """Every program taken from the cache; all of them are kept, however fast they compile."""
    events = []

    def listen(event, **_):
        events.extend([event] if event == _HIT else [])

    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.monitoring.register_event_listener(listen)
    yield events
    with contextlib.suppress(AttributeError):
        jax.monitoring.unregister_event_listener(listen)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def _run(run, seed=0):
    """A small training step, compiled anew as in another process."""
    jax.clear_caches()

    def loss(weights, images):
        return jnp.mean(jnp.tanh(images @ weights) ** 2)

    with compilation_cache(run):
        step = jax.jit(jax.value_and_grad(loss), donate_argnums=1)
        rng = np.random.default_rng(seed)
        weights = jnp.asarray(rng.random((16, 8), np.float32))
        return jax.device_get(step(weights, jnp.asarray(rng.random((32, 16), np.float32))))


@pytest.mark.filterwarnings("ignore:Some donated buffers")
def test_a_second_start_takes_what_the_first_compiled_and_gives_the_same_bits(hits, tmp_path):
    plain = _run(RunConfig(cache_dir=tmp_path, compilation_cache=False))
    assert not list(tmp_path.iterdir())
    first = _run(RunConfig(cache_dir=tmp_path))
    assert not hits and list((tmp_path / "compiled" / machine()).iterdir())
    second = _run(RunConfig(cache_dir=tmp_path))
    assert hits
    for one in (first, second):
        jax.tree.map(np.testing.assert_array_equal, one, plain)
    # Nothing of it outlives the run.
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.filterwarnings("ignore:Some donated buffers")
def test_another_machine_has_another_folder(hits, tmp_path, monkeypatch):
    _run(RunConfig(cache_dir=tmp_path))
    assert machine() == machine()
    here = machine()
    monkeypatch.setattr(module, "_cpu_features", lambda: "avx9000")
    assert machine() != here
    _run(RunConfig(cache_dir=tmp_path))
    assert not hits and len(list((tmp_path / "compiled").iterdir())) == 2


@pytest.mark.parametrize("where", ["a file", "under a file"])
def test_a_folder_that_cannot_be_written_is_a_line_and_no_error(where, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" if where == "a file" else tmp_path / "file" / "under"
    with compilation_cache(RunConfig(cache_dir=folder)):
        assert jax.config.jax_compilation_cache_dir is None
    said = capsys.readouterr().err
    assert said.startswith("note: ") and str(folder) in said and said.count("\n") == 1


@pytest.mark.filterwarnings("ignore:Some donated buffers")
@pytest.mark.parametrize("damage", ["full disk", "cut off"])
def test_entries_that_cannot_be_written_or_read_are_compiled(damage, hits, tmp_path, monkeypatch):
    plain = _run(RunConfig(compilation_cache=False))
    if damage == "full disk":

        def put(self, key, value):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(lru_cache.LRUCache, "put", put)
    else:
        _run(RunConfig(cache_dir=tmp_path))
        for path in (tmp_path / "compiled" / machine()).iterdir():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    # In the tests warnings are errors; of this one JAX makes a line.
    with pytest.warns(UserWarning, match="persistent compilation cache"):
        found = _run(RunConfig(cache_dir=tmp_path))
    jax.tree.map(np.testing.assert_array_equal, found, plain)


@pytest.mark.filterwarnings("ignore:Some donated buffers")
@pytest.mark.parametrize("damage", ["cut off", "empty", "flipped", "another's bytes"])
def test_an_entry_that_cannot_be_read_is_told_once_and_written_anew(damage, hits, tmp_path):
    plain = _run(RunConfig(cache_dir=tmp_path))
    folder = tmp_path / "compiled" / machine()
    entries = sorted(folder.iterdir())
    others = [
        folder / name for name in ("jit_step.txt", "jit_step-1-cache", "jit_mine-" + "0" * 64 + "-cache")
    ]
    for path in others:
        path.write_text("no entry of this program")
    for path in entries:
        whole = path.read_bytes()
        path.write_bytes(_DAMAGE[damage](whole))
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
        _run(RunConfig(cache_dir=tmp_path))
    # In the tests warnings are errors.
    hits.clear()
    found = _run(RunConfig(cache_dir=tmp_path))
    assert hits and sorted(folder.iterdir()) == sorted([*entries, *others])
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_what_cannot_be_removed_is_no_error(tmp_path):
    folder = tmp_path / ("jit_loss-" + "0" * 64 + "-cache")
    folder.mkdir()
    module._remove_entries(tmp_path, "jit_loss")
    module._remove_entries(tmp_path / "absent", "jit_loss")
    assert folder.is_dir()


def test_a_folder_that_jax_was_given_stays(tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", "/somewhere/else")
    try:
        with compilation_cache(RunConfig(cache_dir=tmp_path)):
            assert jax.config.jax_compilation_cache_dir == "/somewhere/else"
        assert jax.config.jax_compilation_cache_dir == "/somewhere/else"
    finally:
        jax.config.update("jax_compilation_cache_dir", None)


def test_a_process_of_a_job_goes_without(tmp_path):
    with compilation_cache(RunConfig(cache_dir=tmp_path, distributed=True)):
        assert jax.config.jax_compilation_cache_dir is None


def test_cpus_without_a_list_of_features_have_a_name(monkeypatch):
    def absent(self, **_):
        raise FileNotFoundError(2, "no /proc")

    monkeypatch.setattr(pathlib.Path, "read_text", absent)
    assert isinstance(module._cpu_features(), str) and machine()
