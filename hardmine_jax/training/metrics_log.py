"""`metrics.jsonl`, one JSON object a log point, and the same scalars for TensorBoard.

A line is `{"step": int, "seconds": of training so far, over all resumed runs, name: number or list}`.
"""

import json
import math
import pathlib
import time

import numpy as np
import tensorboardX


class MetricsLog:
    """Appends to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard`.

    Args:
      workdir: the run's folder, made if missing.
      after: step that training goes on from: later lines, which an interrupted run left, are dropped, and
        so is a line that was cut off.
    """

    def __init__(self, workdir, *, after: int = 0):
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        lines = [line for line in read_metrics(path) if line["step"] <= after]
        # Written beside and renamed: killed here, the old file is still whole.
        new = path.with_suffix(".jsonl.new")
        new.write_text("".join(json.dumps(line) + "\n" for line in lines))
        new.replace(path)
        self._file = path.open("a")
        self._started = time.perf_counter() - (lines[-1]["seconds"] if lines else 0.0)
        # A fresh log in each start; purge_step hides what the run before wrote beyond it.
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=after + 1)

    def write(self, step: int, values: dict) -> None:
        line = {"step": step, "seconds": round(time.perf_counter() - self._started, 3)}
        line |= {name: _plain(np.asarray(value).tolist()) for name, value in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            if np.ndim(value) == 0:
                self._board.add_scalar(name, float(value), step)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        self._board.close()


def _plain(value):
    # NaN is no JSON, and a browser refuses the whole line.
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path) -> list[dict]:
    """Lines of a `metrics.jsonl`, without one that was cut off; none when there is no file."""
    path = pathlib.Path(path)
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # Cut off, no UTF-8, nested deeper than Python's stack ...
            break
        if not _is_line(line):
            raise ValueError(f"{path} is no metrics.jsonl of a training run: move it out of the way")
        lines.append(line)
    return lines


def _is_line(line) -> bool:
    """A step, seconds, and beside them nothing but numbers, lists of numbers, and None."""
    if not isinstance(line, dict) or type(line.get("step")) is not int or not 0 <= line["step"] < 2**53:
        return False
    values = [one for value in line.values() for one in (value if isinstance(value, list) else [value])]
    return _is_number(line.get("seconds")) and all(one is None or _is_number(one) for one in values)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and abs(value) < 2.0**1000
