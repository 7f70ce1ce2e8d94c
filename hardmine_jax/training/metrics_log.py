"""`metrics.jsonl`, one JSON object a log point, and the same scalars for TensorBoard.

A line is `{"step": int, "seconds": of training so far, over all resumed runs, name: number or list}`.
"""

import contextlib
import json
import math
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from hardmine_jax.errors import UserError

# A flush waits for the disk.
_FLUSH_SECONDS = 10.0


class MetricsLog:
    """Appends to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard`.

    While they cannot be written, as on a full disk, training goes on: the lines of metrics.jsonl wait until
    they can, TensorBoard's curves get a gap. A line on stderr says so.

    Args:
      workdir: the run's folder, made if missing.
      after: step that training goes on from: later lines, which an interrupted run left, are dropped, and
        so is a line that was cut off.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, after: int = 0):
        folder = pathlib.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        lines = [line for line in read_metrics(self._path) if line["step"] <= after]
        # Written beside and renamed: killed here, the old file is still whole.
        new = self._path.with_suffix(".jsonl.new")
        new.write_text("".join(json.dumps(line) + "\n" for line in lines))
        new.replace(self._path)
        # Without a buffer of Python's, of which nobody knows what has reached the file.
        self._file, self._waiting = self._path.open("ab", buffering=0), b""
        self._warned: set[pathlib.Path] = set()
        self._started = time.perf_counter() - (lines[-1]["seconds"] if lines else 0.0)
        self._board = _Board(folder / "tensorboard", after=after)

    def write(self, step: int, values: dict) -> None:
        line = {"step": step, "seconds": round(time.perf_counter() - self._started, 3)}
        line |= {name: _plain(np.asarray(value).tolist()) for name, value in values.items()}
        self._waiting += f"{json.dumps(line)}\n".encode()
        with self._warn_of_errors(self._path, "its lines wait until it can"):
            self._write_waiting()
        scalars = {name: value for name, value in values.items() if np.ndim(value) == 0}
        with self._warn_of_errors(self._board.folder, "TensorBoard's curves will have a gap"):
            self._board.write(step, scalars)

    def keep(self) -> None:
        """Returns when what was written is on the disk, or in the bucket: after it the machine may die."""
        with self._warn_of_errors(self._path, "its lines wait until it can"):
            self._write_waiting()
            os.fsync(self._file.fileno())

    def _write_waiting(self) -> None:
        while self._waiting:
            # On a disk that fills up it may be a part of the line.
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    @contextlib.contextmanager
    def _warn_of_errors(self, path: pathlib.Path, so: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if path not in self._warned:
                what = f"{path} could not be written ({error.strerror})"
                print(f"warning: {what}: {so}", file=sys.stderr, flush=True)
            self._warned.add(path)
        else:
            self._warned.discard(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep()
        with self._warn_of_errors(self._path, "its last lines are lost"):
            self._file.close()
        with self._warn_of_errors(self._board.folder, "TensorBoard's curves end early"):
            self._board.close()


class _Board:
    """TensorBoard's event files. Not by SummaryWriter: where its thread dies of an error, the next ten calls
    fill its queue, and the one after waits for ever."""

    def __init__(self, folder: pathlib.Path, *, after: int):
        self.folder, self._after, self._count = folder, after, 0
        self._path: pathlib.Path | None = None
        self._writer: RecordWriter | None = None
        self._flushed = -math.inf

    def write(self, step: int, values: dict) -> None:
        events = [Event(step=step, summary=summary.scalar(name, float(x))) for name, x in values.items()]
        try:
            writer = self._open() if self._writer is None else self._writer
            _add(writer, events)
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._flushed = time.monotonic()
                writer.flush()
        except OSError:
            # What follows half an event would not be read: the next time a file of its own.
            self._abandon()
            raise

    def _open(self) -> RecordWriter:
        self.folder.mkdir(exist_ok=True)
        self._count += 1
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{self._count}"
        self._path = self.folder / name
        self._writer = writer = RecordWriter(os.fspath(self._path))
        # TensorBoard then hides what the run before wrote beyond `after`.
        start = Event(step=self._after + 1, session_log=SessionLog(status=SessionLog.START))
        _add(writer, [Event(file_version="brain.Event:2"), start])
        return writer

    def _abandon(self) -> None:
        writer, self._writer = self._writer, None
        with contextlib.suppress(OSError):
            if writer is not None:
                writer.close()
        with contextlib.suppress(OSError):
            if self._path is not None and not self._path.stat().st_size:
                self._path.unlink()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _add(writer: RecordWriter, events: list[Event]) -> None:
    for event in events:
        event.wall_time = time.time()
        writer.write(event.SerializeToString())


def _plain(value: Any) -> Any:
    # NaN is no JSON, and a browser refuses the whole line.
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Lines of a `metrics.jsonl`, without one that was cut off; none when there is no file."""
    file = pathlib.Path(path)
    lines = []
    for text in file.read_bytes().splitlines() if file.exists() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # Cut off, no UTF-8, nested deeper than Python's stack ...
            break
        if not _is_line(line):
            raise UserError(f"{file} is no metrics.jsonl of a training run: move it out of the way")
        lines.append(line)
    return lines


def _is_line(line: object) -> bool:
    """A step, seconds, and beside them nothing but numbers, lists of numbers, and None."""
    if not isinstance(line, dict) or type(line.get("step")) is not int or not 0 <= line["step"] < 2**53:
        return False
    values = [one for value in line.values() for one in (value if isinstance(value, list) else [value])]
    return _is_number(line.get("seconds")) and all(one is None or _is_number(one) for one in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 2.0**1000


def mean_speed(lines: list[dict]) -> float | None:
    """Training images a second over the whole run, resumed or not; a log line speaks for its steps."""
    steps = np.diff([0] + [line["step"] for line in lines])
    speeds = [line.get("images_per_second") for line in lines]
    timed = [(step, speed) for step, speed in zip(steps, speeds, strict=True)
             if isinstance(speed, int | float) and speed > 0 and step > 0]  # fmt: skip
    if not timed:
        return None
    return float(sum(step for step, _ in timed) / sum(step / speed for step, speed in timed))
