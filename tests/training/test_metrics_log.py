import json
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from hardmine_jax.errors import UserError
from hardmine_jax.training import MetricsLog, read_metrics


def test_scalars_and_arrays(tmp_path):
    with MetricsLog(tmp_path / "new") as log:
        log.write(1, {"loss": np.float32(0.5), "counts": np.arange(3)})
    (line,) = read_metrics(tmp_path / "new" / "metrics.jsonl")
    assert line == {"step": 1, "seconds": line["seconds"], "loss": 0.5, "counts": [0, 1, 2]}


def test_resume_drops_later_lines_and_a_cut_one_and_goes_on_with_the_clock(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = [{"step": step, "seconds": 100.0 * step, "loss": 1.0} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept) + '{"step": 4, "sec')
    with MetricsLog(tmp_path, after=2) as log:
        assert read_metrics(path) == kept[:2]
        log.write(3, {"loss": 2.0})
    lines = read_metrics(path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[2]["loss"] == 2.0 and lines[2]["seconds"] >= 200.0


LINES = [
    {"step": step, "seconds": float(step), "loss": 1.5, "rate": [0.5, 1.0], "x": None if step % 4 else 2.0}
    for step in range(1, 12)
]
DAMAGES = {
    "no UTF-8": lambda text: b"\xff" + text[1:],
    "a step that leaps": lambda text: text.replace(b'"step": 6', b'"step": 6666'),
    "a step that falls back": lambda text: text.replace(b'"step": 6', b'"step": 2'),
    "a comma for a point": lambda text: text.replace(b"0.5", b"0,5"),
    "no number": lambda text: text.replace(b"1.5", b"NaN"),
    "a word": lambda text: text.replace(b"1.5", b'"1"'),
    "another object": lambda text: b'{"a": 1}',
    "deep": lambda text: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_costs_itself_and_is_told(tmp_path, damage, capsys):
    path, texts = tmp_path / "metrics.jsonl", [json.dumps(line).encode() for line in LINES]
    texts[5] = DAMAGES[damage](texts[5])
    path.write_bytes(b"\n".join(texts) + b"\n")
    assert read_metrics(path) == LINES[:5] + LINES[6:]
    assert capsys.readouterr().err == f"note: {path}: 1 of 11 lines are damaged and left out\n"
    with MetricsLog(tmp_path, after=9):
        assert read_metrics(path) == LINES[:5] + LINES[6:9]


def test_zeros_that_a_power_cut_leaves_cost_no_line(tmp_path, capsys):
    path, texts = tmp_path / "metrics.jsonl", [json.dumps(line).encode() for line in LINES]
    path.write_bytes(b"\n".join(texts[:5]) + b"\n" + bytes(4096) + b"\n".join(texts[5:]) + b"\n" + bytes(100))
    assert read_metrics(path) == LINES and not capsys.readouterr().err


def test_a_file_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(UserError, match="is no metrics.jsonl of a training run"):
        MetricsLog(tmp_path)
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n'


def test_a_fresh_run_starts_with_an_empty_file(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(5, {"loss": 1.0})
    with MetricsLog(tmp_path, after=0):
        assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_no_file(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def events(folder):
    """All events of TensorBoard's files, in the order in which these were begun; None for what is cut off."""
    found = []
    for path in sorted(folder.glob("events*"), key=lambda path: path.name.rpartition(".")[2]):
        content = path.read_bytes()
        while content:
            if len(content) < 12 or len(content) < 16 + struct.unpack("<Q", content[:8])[0]:
                found.append(None)
                break
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def scalars(folder):
    return [(event.step, value.tag, value.simple_value)
            for event in events(folder) if event for value in event.summary.value]  # fmt: skip


def test_curves_for_tensorboard(tmp_path):
    with MetricsLog(tmp_path, after=4) as log:
        log.write(5, {"loss": 0.5, "counts": np.arange(3)})
        log.write(6, {"loss": np.float32(0.25)})
    assert scalars(tmp_path / "tensorboard") == [(5, "loss", 0.5), (6, "loss", 0.25)]
    version, start, *_ = events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    # Hides what an interrupted run wrote from step 5 on.
    assert (start.step, start.session_log.status) == (5, start.session_log.START)


def test_full_disk_delays_the_lines_and_leaves_a_gap_in_the_curves(small_disk, capsys, monkeypatch):
    monkeypatch.setattr("hardmine_jax.training.metrics_log._FLUSH_SECONDS", 0.0)
    disk = small_disk(1)
    with MetricsLog(disk.path) as log:
        log.write(1, {"loss": 1.0})
        disk.fill()
        # More than the rest of the files' last blocks.
        for step in range(2, 60):
            log.write(step, {"many": np.arange(100)} | {f"loss {i}": 1.0 for i in range(10)})
        full = read_metrics(disk.path / "metrics.jsonl")
        assert 1 <= len(full) < 59
        disk.free()
        log.write(60, {"loss": 0.5})
    lines = read_metrics(disk.path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[30]["many"] == list(range(100)) and lines[-1]["loss"] == 0.5
    found = scalars(disk.path / "tensorboard")
    assert found[0] == (1, "loss", 1.0) and found[-1] == (60, "loss", 0.5)
    lines = capsys.readouterr().err.splitlines()
    (said,) = [line for line in lines if "metrics.jsonl" in line]
    assert "could not be written (No space left on device): its lines wait until it can" in said
    (said,) = [line for line in lines if "metrics.jsonl" not in line]
    assert "tensorboard could not be written" in said and "a gap" in said


def test_every_outage_is_warned_of_once(tmp_path, monkeypatch, capsys):
    with MetricsLog(tmp_path) as log, (tmp_path / "metrics.jsonl").open("rb", buffering=0) as read_only:
        whole = log._file
        for step in range(1, 9):
            # Steps 3, 4, 7 and 8 meet a file that cannot be written.
            log._file = whole if step % 4 in (1, 2) else read_only
            log.write(step, {"loss": 1.0})
        log._file = whole
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 9))
    assert capsys.readouterr().err.count("its lines wait until it can") == 2


def test_kept_lines_are_on_the_disk(tmp_path, monkeypatch):
    synced = []
    with MetricsLog(tmp_path) as log:
        path = tmp_path / "metrics.jsonl"
        monkeypatch.setattr("os.fsync", lambda number: synced.append(path.read_text()))
        log.write(1, {"loss": 1.0})
        log.keep()
        assert [json.loads(line)["step"] for line in synced[-1].splitlines()] == [1]
