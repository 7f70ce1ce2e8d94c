"""The command for a GPU or TPU, tried at small sizes on what is here."""

import json
import sys

import jax
import numpy as np
import pytest

from experiments.benchmarks import accelerator as benchmark

# The modules that the script itself imported.
steps, parts, timing = (sys.modules[name] for name in ("accelerator_steps", "accelerator_parts", "timing"))


def _run(tmp_path, *flags: str) -> dict:
    path = tmp_path / "accelerator.json"
    # The head adds its biases as everyone does.
    with jax.numpy_rank_promotion("allow"):
        benchmark.main(
            benchmark.parser().parse_args(["--small", "--rounds", "1", "--json", str(path), *flags])
        )
    return json.loads(path.read_text())


def test_rows_say_what_ran_and_where(tmp_path, capsys):
    found = _run(tmp_path, "--only", "heads")
    assert {row["question"] for row in found["rows"]} == {"mine, 20 regions, k=3"}
    assert found["rows"][0]["times_ours"] == 1 and all(row["ms"] > 0 for row in found["rows"])
    assert found["not_finished"] == [] and "jax" in found["versions"] and "jax" in found["host"]
    assert "mine, 20 regions" in capsys.readouterr().out


def test_what_there_was_no_time_for_is_named(tmp_path, capsys):
    found = _run(tmp_path, "--minutes", "0")
    assert found["rows"] == [] and found["not_finished"] == list(benchmark.PARTS)
    assert "pose: not all of it" in capsys.readouterr().out


def test_use_of_the_chip_is_operations_over_time_and_peak(monkeypatch):
    monkeypatch.setattr(parts, "peak_flops", lambda kind, dtype: 4e12 if dtype == "bfloat16" else None)
    monkeypatch.setattr(timing, "milliseconds", lambda ways, rounds: dict.fromkeys(ways, 20.0))
    way = timing.Way(lambda: np.zeros(()))
    step = steps.Step(timing.Question("a step", {"ours": way, "theirs": way}), 8, 2e10, way)
    ours, theirs = parts.stepped(step, "bfloat16", 1)
    assert ours["images_per_second"] == theirs["images_per_second"] == 400
    assert (ours["tflops"], ours["mfu"], ours["mining_share"]) == (1.0, 0.25, 1.0) and "mfu" not in theirs
    assert parts.stepped(step, "float32", 1)[0]["mfu"] is None


def test_ways_are_held_to_as_many_digits_as_their_dtype_gives():
    def question(loss):
        ways = {"ours": timing.Way(lambda: np.ones(())), "x": timing.Way(lambda: loss)}
        return timing.Question("a step", ways)

    timing.check(question(np.float32(1.05)), rtol=0.1)
    for loss, rtol in ((1.05, 0.01), (1.001, 1e-4), (np.nan, 0.1)):
        with pytest.raises(ValueError, match=r"a step: x disagrees \("):
            timing.check(question(np.float32(loss)), rtol=rtol)


@pytest.mark.slow
def test_everything(tmp_path):
    found = _run(tmp_path, "--minutes", "30")
    assert found["not_finished"] == []
    asked = {row["question"].split(",")[0] for row in found["rows"]}
    assert {"training step of laptop", "top_k", "nms", "roi_align", "training step", "mine"} <= {
        title.split(" losses")[0] if title.startswith("top_k") else title for title in asked
    } | {title.partition(" 40")[0] for title in asked}
    shares = [row["mining_share"] for row in found["rows"] if "mining_share" in row]
    assert len(shares) == 4 and all(0 < share < 1 for share in shares)
