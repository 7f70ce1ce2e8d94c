"""The parts of the benchmark's command at tiny sizes: the ways agree, the tables say what was measured."""

import io
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments.benchmarks import mining as benchmark

# The modules that the script itself imported.
boxes, devices, head, selectors = (
    benchmark.mining_boxes,
    benchmark.mining_devices,
    benchmark.mining_head,
    benchmark.mining_selectors,
)
timing = sys.modules["timing"]

QUESTIONS = {
    "top_k": lambda: selectors.top_k((3, 90), k=4),
    "top_k of one row": lambda: selectors.top_k((90,), k=4),
    "threshold by loss": lambda: selectors.threshold(100, min_kept=3),
    "threshold by number": lambda: selectors.threshold(100, min_kept=30),
    "hard_negatives": lambda: selectors.hard_negatives(4, 200),
    "harder_than_easiest": lambda: selectors.harder_than_easiest(4, 17),
    "random_k": lambda: selectors.random_k(2, 70, k=5),
    "heatmaps": lambda: selectors.heatmaps(2, 6, 4, 5, k=2),
    "boxes": lambda: boxes.suppression(boxes.draw(1, 60, num_objects=10), max_kept=8),
    "boxes of images": lambda: boxes.suppression(boxes.draw(3, 60, num_objects=10), max_kept=8),
}


def _text(table) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("name", QUESTIONS)
def test_ways_agree_and_fill_a_table(name):
    question = QUESTIONS[name]()
    timing.check(question)
    times = timing.milliseconds(question.ways, rounds=1)
    assert all(time > 0 for time in times.values())
    text = _text(timing.table(question, times))
    assert question.title in text and all(way in text for way in question.ways)
    memory = [timing.cost(way)[1] for way in question.ways.values()]
    assert memory[0] is not None and memory[0] >= 0


def test_ways_that_disagree_are_not_timed():
    ways = {"ours": timing.Way(lambda: np.array([True])), "wrong": timing.Way(lambda: np.array([False]))}
    with pytest.raises(ValueError, match="a title: wrong disagrees"):
        timing.check(timing.Question("a title", ways))


def test_pytorch_runs_where_jax_does(monkeypatch):
    assert timing.torch_device() == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert timing.torch_device() == "cuda"


def test_a_way_in_pytorch_answers_in_numpy():
    torch = pytest.importorskip("torch", reason="its tensors are meant here")
    tensor = torch.ones(3, requires_grad=True)
    way = timing.torch_way(lambda: (2 * tensor, 1.5), answer=lambda found: found)
    values, number = way.answer(way.run())
    assert isinstance(values, np.ndarray) and values.tolist() == [2, 2, 2] and number == 1.5


def test_products_on_a_gpu_are_in_full_precision_and_the_table_says_so(monkeypatch):
    timing.full_precision()
    assert jax.config.jax_default_matmul_precision is None and "precision" not in timing.host()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    try:
        timing.full_precision()
        assert jax.config.jax_default_matmul_precision == "highest"
        assert timing.host().endswith("products of float32: highest precision")
    finally:
        jax.config.update("jax_default_matmul_precision", None)


def test_losses_have_no_ties():
    losses = selectors.draw(3, 1000)
    assert all(len(np.unique(row)) == 1000 for row in losses)
    assert len(np.unique(selectors.draw(1_000_000))) > 990_000


def test_mine_has_a_row_for_each_way():
    config = head.Head(num_units=40, k=(4,), sizes=(12, 8, 8, 5), chunk=16, rounds=1)
    # The head adds its biases as everyone does.
    with jax.numpy_rank_promotion("allow"):
        (table,) = head.tables(config)
    text = _text(table)
    assert "40 units, k=4, head 12-8-8-5" in text
    assert all(name in text for name in (head.MASKED, "mine, chunk=16", "mine, reuse=True"))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices (tests/conftest.py simulates them)")
def test_bytes_of_the_devices():
    text = _text(devices.table(devices.Devices(num_units=100, k=16, rounds=1)))
    ours = next(line for line in text.splitlines() if line.startswith("│ global_top_k "))
    # 4 bytes x k x devices, of the 8 x k x devices there may be.
    assert " 512 " in ours and " 0.50 " in ours
    assert "3,200" in text


def test_the_command_simulates_devices_in_a_process_of_its_own():
    command = [sys.executable, benchmark.__file__, "--only", "devices", "--num-devices", "2"]
    small = ["--devices.num-units", "50", "--devices.k", "7", "--devices.rounds", "1"]
    run = subprocess.run([*command, *small], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "2 devices of 50 units, k=7" in run.stdout
