import json

import numpy as np

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


def test_a_fresh_run_starts_with_an_empty_file(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(5, {"loss": 1.0})
    with MetricsLog(tmp_path, after=0):
        assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_no_file(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
