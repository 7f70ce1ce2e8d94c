"""A job of `launch/local.py` that is watched from outside, and the faults that befall it.

Every fault is a function `(job, draw) -> what was done`, which returns when the job runs again, or will by
itself; `draw` is a `random.Random`.
"""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

from hardmine_jax import training

ROOT = pathlib.Path(__file__).parents[2]
FAULTY = pathlib.Path(__file__).with_name("faulty.py")
# Whatever happens, after so many seconds something has to have come of it.
LIMIT = 240.0
PATIENCE = 15.0


class Job:
    """Attributes: workdir, faults (faulty.py's folder), disk (conftest.py's SmallDisk), lines of output."""

    def __init__(self, experiment: str, flags: dict, disk, faults: pathlib.Path, processes: int = 2):
        self.workdir, self.disk, self.faults = disk.path / "run", disk, faults
        faults.mkdir(parents=True)
        flags = flags | {"--workdir": self.workdir, "--patience": PATIENCE}
        flat = [str(part) for name, value in flags.items() for part in (name, *_as_tuple(value))]
        launcher_flags = ["--processes", processes, "--retries", 50, "--timeout", LIMIT]
        script = ["--", FAULTY, experiment, faults]
        command = [sys.executable, ROOT / "launch" / "local.py", *launcher_flags, *script, *flat]
        self._command, self.processes = [str(part) for part in command], processes
        self.lines = []

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        self.launcher = subprocess.Popen(
            self._command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._reader = threading.Thread(target=self._read, args=(self.launcher.stdout,), daemon=True)
        self._reader.start()

    def _read(self, output) -> None:
        with output:
            for line in output:
                self.lines.append(line.rstrip())

    def end(self) -> int:
        """Waits for the launcher's end; its exit code."""
        code = self.launcher.wait(LIMIT)
        self._reader.join()
        return code

    def workers(self) -> list[int]:
        """Numbers of the launcher's processes, in their order."""
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                command = (path / "cmdline").read_text().split("\0")
            except (OSError, ValueError):
                continue
            if parent == self.launcher.pid and "--process-id" in command:
                found.append((int(command[command.index("--process-id") + 1]), int(path.name)))
        return [pid for _, pid in sorted(found)]

    def step(self) -> int:
        """The last step that was logged."""
        lines = training.read_metrics(self.workdir / "metrics.jsonl")
        return max((line["step"] for line in lines), default=0)

    def wait_for(self, condition, what: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            tail = "\n".join(self.lines[-40:])
            assert time.monotonic() < deadline, f"no {what} after {LIMIT} s:\n{tail}"
            time.sleep(0.02)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: self.launcher.poll() is not None or self.step() >= step, f"step {step}")
        assert self.launcher.poll() is None, "ended too early:\n" + "\n".join(self.lines[-40:])

    def wait_for_line(self, pattern: str, since: int) -> re.Match:
        """The first match in a line of output from number `since` on."""
        found = []

        def look():
            found.extend(match for line in self.lines[since:] if (match := re.search(pattern, line)))
            return found

        self.wait_for(look, f"output like {pattern!r}")
        return found[0]

    def signal(self, number: int, *pids: int) -> None:
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def kill_all(self) -> None:
        workers = self.workers()
        # By Popen, which knows whether it is still the launcher that has that number.
        self.launcher.kill()
        self.signal(signal.SIGKILL, *workers)
        self.end()


def _as_tuple(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def kill_one(job: Job, draw: random.Random) -> str:
    since, number = len(job.lines), draw.randrange(job.processes)
    job.signal(signal.SIGKILL, job.workers()[number])
    # Another one, told at once by its own connection, may be seen to end before.
    job.wait_for_line("launch: process . (was killed by|ended with)", since)
    job.wait_for_line("launch: starting again from the last checkpoint", since)
    return f"SIGKILL to process {number}"


def kill_all(job: Job, draw: random.Random) -> str:
    job.kill_all()
    job.start()
    return "SIGKILL to all, launcher too"


def stop_one(job: Job, draw: random.Random) -> str:
    number = draw.randrange(job.processes)
    _stop(job, job.workers()[number])
    return f"SIGTERM to process {number}"


def stop_launcher(job: Job, draw: random.Random) -> str:
    _stop(job, job.launcher.pid)
    return "SIGTERM to the launcher"


def _stop(job: Job, pid: int) -> None:
    """All save and end, from one SIGTERM; then the same command again."""
    since = len(job.lines)
    job.signal(signal.SIGTERM, pid)
    assert job.end() == 0, "\n".join(job.lines[-40:])
    assert any("stopped at step" in line for line in job.lines[since:]), "\n".join(job.lines[since - 5 :])
    job.start()


def truncate(job: Job, draw: random.Random) -> str:
    job.kill_all()
    whole = [path for path in (job.workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    latest = max(whole, key=lambda path: int(path.name))
    files = sorted(path for path in latest.rglob("*") if path.is_file() and path.stat().st_size)
    # By bytes, as a disk would lose them: most are the weights'.
    (path,) = draw.choices(files, [path.stat().st_size for path in files])
    size = path.stat().st_size
    at = draw.randrange(size)
    os.truncate(path, at)
    since = len(job.lines)
    job.start()
    job.wait_for_line(rf"checkpoint .*/checkpoints/{latest.name} is damaged", since)
    return f"SIGKILL to all, checkpoint {latest.name} cut at byte {at} of {size}"


def fill_disk(job: Job, draw: random.Random) -> str:
    since = len(job.lines)
    job.disk.fill()
    job.wait_for_line(r"warning: .*could not be written \(no space left on device\)", since)
    time.sleep(draw.uniform(0.0, 1.0))
    job.disk.free()
    return "disk full for a while"


def fill_disk_and_stop(job: Job, draw: random.Random) -> str:
    since = len(job.lines)
    job.disk.fill()
    job.signal(signal.SIGTERM, job.launcher.pid)
    assert job.end() == 2, "\n".join(job.lines[-40:])
    job.wait_for_line(r"error: .*could not be written \(no space left on device\)", since)
    job.disk.free()
    job.start()
    return "disk full, SIGTERM to the launcher"


def _happen(job: Job, draw: random.Random, name: str, pattern: str) -> int:
    """Lets a fault of faulty.py happen to some process; its number, when it was said and all start again."""
    since, number = len(job.lines), draw.randrange(job.processes)
    (job.faults / f"{name}{number}").touch()
    job.wait_for_line(pattern.format(number=number), since)
    job.wait_for_line("launch: starting again from the last checkpoint", since)
    return number


def nan_once(job: Job, draw: random.Random) -> str:
    return f"NaN in the weights of process {_happen(job, draw, 'nan', r'step [0-9]+: .* is nan')}"


def stick(job: Job, draw: random.Random) -> str:
    pattern = r"process {number} hangs: [0-9]+ s in reading a batch"
    return f"process {_happen(job, draw, 'stuck', pattern)} hangs in Python"


def freeze(job: Job, draw: random.Random) -> str:
    since, number = len(job.lines), draw.randrange(job.processes)
    job.signal(signal.SIGSTOP, job.workers()[number])
    job.wait_for_line("launch: starting again from the last checkpoint", since)
    return f"SIGSTOP to process {number}"


FAULTS = (
    kill_one, kill_all, stop_one, stop_launcher, truncate, fill_disk, fill_disk_and_stop, nan_once, stick,
    freeze,
)  # fmt: skip
