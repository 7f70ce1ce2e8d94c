"""Many runs of a training script, several at once: what is left to do, and a line of JSON for each."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """One run: what is tried, the seed, and the flags that decide what is learned."""

    variant: str
    seed: int
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.variant}_{self.seed}"


def read_lines(path: pathlib.Path) -> list[dict]:
    """What `append_line` wrote, a last line that a kill cut off left out; none where there is no file."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def append_line(path: pathlib.Path, line: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_off = path.exists() and not path.read_text().endswith("\n") and path.stat().st_size > 0
    with path.open("a") as file:
        file.write("\n" * cut_off + json.dumps(line) + "\n")


def surroundings(folder: pathlib.Path, commit: str | None = None) -> dict:
    """What every line says of where it comes from; the commit is that of `folder` where none is given."""
    # In a process of its own, so that this one takes no memory of the device.
    ask = "import jax; print(len(jax.devices()), jax.devices()[0].device_kind)"
    device = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    describe = ["git", "-C", folder, "describe", "--always", "--dirty"]
    known = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    packages = ("jax", "flax", "optax", "grain", "numpy")
    return {
        "commit": commit or known or None,
        "hardware": f"{device.stdout.strip()}, {os.cpu_count()} cores",
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def left(runs: Iterable[Run], lines: Sequence[dict]) -> list[Run]:
    """Those without a line of the same variant, seed and flags."""
    done = {(line["variant"], line["seed"], tuple(line["flags"])) for line in lines}
    return [run for run in runs if tuple(run) not in done]


def run_all(
    runs: Sequence[Run],
    start: Callable[[Run], subprocess.Popen],
    *,
    jobs: int = 1,
    seconds: float | None = None,
) -> Iterator[tuple[Run, int, float]]:
    """Starts the runs in order, `jobs` at once; yields (run, exit status, seconds) as they end.

    Args:
      seconds: when they are over none is started, and those that still run get SIGTERM and are yielded, too.
    """
    waiting, running, began = list(runs), {}, time.monotonic()
    try:
        while True:
            over = seconds is not None and time.monotonic() - began > seconds
            while waiting and len(running) < jobs and not over:
                run = waiting.pop(0)
                running[run] = start(run), time.monotonic()
            if not running:
                return
            if over:
                _stop(running)
            for run, (process, started) in list(running.items()):
                if process.poll() is not None:
                    del running[run]
                    yield run, process.returncode, time.monotonic() - started
            time.sleep(0.1)
    finally:
        _stop(running)


def _stop(running: dict[Run, tuple[subprocess.Popen, float]]) -> None:
    for process, _ in running.values():
        process.terminate()
    for process, _ in running.values():
        process.wait()
