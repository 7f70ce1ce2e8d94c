"""JAX's persistent compilation cache, beside the prepared data: a second start does not compile again."""

import contextlib
import hashlib
import pathlib
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jaxlib.version
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from hardmine_jax.data.cache import cache_root
from hardmine_jax.job.exchange import is_main
from hardmine_jax.tasks.run_config import RunConfig

_SETTING = "jax_compilation_cache_dir"
# JAX's own words, and the program's name, with which its entry's file begins.
_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '(?P<program>[^'/]+)':")


@contextlib.contextmanager
def compilation_cache(run: RunConfig) -> Iterator[None]:
    """Within it compiled programs are kept in `<cache>/compiled/<machine>`, or taken from there.

    Without effect where `run.compilation_cache` is off, where JAX has been given a folder already
    (JAX_COMPILATION_CACHE_DIR), in a job of several processes, each of which would have to find the same
    there at the same time, and with a line on stderr where the folder cannot be written.
    """
    if not run.compilation_cache or run.distributed or getattr(jax.config, _SETTING):
        yield
        return
    folder = cache_root(run.cache_dir) / "compiled" / machine()
    if not _is_writable(folder):
        yield
        return
    # An entry that cannot be read or written is told, by JAX, and compiled; no reason to end a run.
    warnings.filterwarnings("default", message=".*persistent compilation cache", category=UserWarning)
    # What takes less than a second to compile is not kept, by JAX's own default.
    _set_folder(str(folder))
    try:
        with _unreadable_removed(folder):
            yield
    finally:
        _set_folder(None)


def _set_folder(folder: str | None) -> None:
    jax.config.update(_SETTING, folder)
    # JAX looks at its setting only once, when the first program is compiled.
    jax_cache.reset_cache()


@contextlib.contextmanager
def _unreadable_removed(folder: pathlib.Path) -> Iterator[None]:
    """Within it an entry that JAX cannot read is told once: it is removed, and JAX writes it anew.

    JAX itself leaves an entry that is there, and would say the same at every start.
    """
    show = warnings.showwarning

    def remove_and_show(message: Warning | str, *others: Any, **named: Any) -> None:
        if found := _UNREADABLE.match(str(message)):
            _remove_entries(folder, found["program"])
        show(message, *others, **named)

    warnings.showwarning = remove_and_show
    try:
        yield
    finally:
        warnings.showwarning = show


def _remove_entries(folder: pathlib.Path, program: str) -> None:
    """Of all programs of this name: JAX does not say which of them it could not read."""
    entry = re.compile(re.escape(program) + "-[0-9a-f]{64}-cache")
    # What cannot be listed or removed is told again at the next start.
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if entry.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)


def machine() -> str:
    """A name for all that compiled programs depend on and JAX's own key does not have: the CPU above all.

    Programs for one with other instructions end in SIGILL, or with warnings, in a home that machines share.
    """
    parts = (platform.machine(), _cpu_features(), jax.__version__, jaxlib.version.__version__)
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def _cpu_features() -> str:
    """Of the first core, sorted; the model's name where the system has no list of them."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return " ".join(sorted(value.split()))
    return platform.processor()


def _is_writable(folder: pathlib.Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        if is_main():
            where = f"{folder} cannot be written ({error.strerror})"
            print(f"note: {where}: what is compiled is not kept for the next start", file=sys.stderr)
        return False
