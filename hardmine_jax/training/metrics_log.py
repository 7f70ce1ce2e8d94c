"""`metrics.jsonl`, one JSON object a log point, and the same scalars for TensorBoard.

A line is `{"step": int, "seconds": of training so far, over all resumed runs, name: number or list}`.
"""

import bisect
import collections
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
    """Lines of a `metrics.jsonl`, without one that was cut off at the end; none when there is no file.

    Damaged lines are left out, and their number is told on stderr.

    Raises:
      UserError: it is a file of something else.
    """
    file = pathlib.Path(path)
    content = file.read_bytes() if file.exists() else b""
    # What follows the last end of a line was being written.
    *texts, last = (text.strip(b"\0 \r") for text in content.split(b"\n"))
    texts = [text for text in [*texts, last if _is_line(_parse(last)) else b""] if text]
    parsed = [_parse(text) for text in texts]
    lines = [line for line in parsed if _is_line(line)]
    if not lines and any(line is not None for line in parsed):
        raise UserError(f"{file} is no metrics.jsonl of a training run: move it out of the way")
    lines = _in_order(_of_one_shape(lines))
    if len(lines) < len(texts):
        left_out = f"{len(texts) - len(lines)} of {len(texts)} lines are damaged and left out"
        print(f"note: {file}: {left_out}", file=sys.stderr)
    return lines


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # No UTF-8, nested deeper than Python's stack ...
        return None


def _of_one_shape(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that have more or fewer numbers under a name than most: a digit has become a comma."""
    sizes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for line in lines:
        for name, value in line.items():
            if value is not None:
                sizes[name][_size(value)] += 1
    usual = {name: counts.most_common(1)[0][0] for name, counts in sizes.items()}
    return [
        line for line in lines if all(_size(value) in (usual.get(name), None) for name, value in line.items())
    ]


def _size(value: Any) -> int | None:
    """How many numbers; -1 of a single one, None of one that was not finite."""
    return len(value) if isinstance(value, list) else None if value is None else -1


def _in_order(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The longest part in which the steps increase: of the rest the steps are damaged."""
    lasts: list[int] = []  # Of each length, the smallest last step,
    at: list[int] = []  # and its line.
    before: list[int] = []
    for number, line in enumerate(lines):
        place = bisect.bisect_left(lasts, line["step"])
        before.append(at[place - 1] if place else -1)
        lasts[place : place + 1], at[place : place + 1] = [line["step"]], [number]
    kept, number = [], at[-1] if at else -1
    while number >= 0:
        kept.append(lines[number])
        number = before[number]
    return kept[::-1]


def _is_line(line: object) -> bool:
    """A step, seconds, and beside them nothing but numbers, lists of numbers, and None."""
    if not isinstance(line, dict) or type(line.get("step")) is not int or not 0 <= line["step"] < 2**53:
        return False
    values = [one for value in line.values() for one in (value if isinstance(value, list) else [value])]
    return _is_number(line.get("seconds")) and all(one is None or _is_number(one) for one in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 2.0**1000


# What a log line may say of the speed. All but the first only where the chip's peak is known.
_SPEEDS = ("images_per_second", "tflops_per_device", "mfu")


def mean_speeds(lines: list[dict]) -> dict[str, float | None]:
    """The speeds over the whole run, resumed or not.

    Returns:
      `images_per_second`, None where none was logged; where they were, `tflops_per_device` and `mfu`.
    """
    means = {name: _mean_speed(lines, name) for name in _SPEEDS}
    return {name: mean for name, mean in means.items() if mean is not None or name == _SPEEDS[0]}


def _mean_speed(lines: list[dict], name: str) -> float | None:
    # A log line speaks for its steps; work over time, so that the mean is the harmonic one.
    steps = np.diff([0] + [line["step"] for line in lines])
    speeds = [line.get(name) for line in lines]
    timed = [(step, speed) for step, speed in zip(steps, speeds, strict=True)
             if isinstance(speed, int | float) and speed > 0 and step > 0]  # fmt: skip
    if not timed:
        return None
    return float(sum(step for step, _ in timed) / sum(step / speed for step, speed in timed))
