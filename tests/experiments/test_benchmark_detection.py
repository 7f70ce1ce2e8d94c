"""The parts of the benchmark's command at tiny sizes: the ways agree, the tables say what was measured."""

import dataclasses
import importlib.util
import io
import sys

import numpy as np
import pytest
from rich.console import Console

from experiments.benchmarks import detection as benchmark

# The module that the script itself imported.
timing = sys.modules["timing"]

STEP = benchmark.detection_step.Step(
    batch_size=2,
    image_size=(48, 64),
    num_proposals=30,
    num_objects=5,
    k=4,
    kinds=("ohem", "masked"),
    hidden=(16,),
    rounds=(1,),
)
TINY = benchmark.Config(num_boxes=60, features=(11, 13, 4), rounds=1, box_rounds=1, step=STEP)
OURS = {"regions": "roi_align", "boxes": "match", "step": "ohem, two passes"}


def _text(question) -> str:
    console = Console(width=200, file=io.StringIO())
    times = timing.milliseconds(question.ways, rounds=1)
    assert all(time > 0 for time in times.values())
    console.print(timing.table(question, times))
    return console.file.getvalue()


_STEP = pytest.param("step", 1, marks=pytest.mark.slow)


@pytest.mark.parametrize("part, count", [("regions", 4), ("boxes", 2), _STEP])
def test_ways_agree_and_fill_a_table(part, count):
    """Each part checks its ways before it hands them out."""
    found = list(benchmark.PARTS[part](TINY))
    assert len(found) == count and all(rounds == 1 for _, rounds in found)
    for question, _ in found:
        # A table narrower than its title breaks it.
        text = " ".join(_text(question).split())
        assert question.title in text and all(way in text for way in question.ways)
        memory = timing.cost(next(iter(question.ways.values())))[1]
        assert memory is not None and memory >= 0
    assert OURS[part] in found[-1][0].ways
    if importlib.util.find_spec("torch"):
        assert all(any("torch" in way.lower() for way in question.ways) for question, _ in found)
    if part == "step":
        memory = {name: timing.cost(way)[1] for name, way in found[0][0].ways.items()}
        assert memory["ohem, two passes"] < memory["masked, one pass"]


def test_boxes_of_a_step_lie_inside_the_images():
    drawn = benchmark.detection_step.draw(STEP)
    for name in ("boxes", "proposals"):
        boxes = drawn[name]
        assert (boxes >= 0).all() and (boxes <= np.tile([64, 48], 2)).all()
        assert (boxes[..., 2:] - boxes[..., :2] > 1).all()


def test_a_step_needs_rounds_for_each_head():
    config = dataclasses.replace(TINY, step=dataclasses.replace(STEP, rounds=(1, 2)))
    with pytest.raises(ValueError, match=r"--step.hidden \(16,\) and --step.rounds \(1, 2\)"):
        next(benchmark.step(config))


def test_the_command_prints_only_what_was_asked_for(capsys):
    benchmark.main(dataclasses.replace(TINY, only=("boxes",)))
    printed = capsys.readouterr().out
    assert "nms, 60 boxes" in printed and "match, 60 boxes x 20 objects" in printed
    assert "roi_pool" not in printed
