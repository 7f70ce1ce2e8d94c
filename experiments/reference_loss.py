"""When labels are wrong, the hardest examples are the wrong ones: ways to choose, on handwritten digits.

    python experiments/reference_loss.py                           # one minute on 2 CPU cores
    python experiments/reference_loss.py --wrong 0.2 --seeds 30 --steps 2000

A part of the labels says one of the nine other digits. Each step looks at `--candidates` examples and learns
from `--kept` of them: drawn evenly (uniform), the hardest (OHEM, 1604.03540), those whose loss exceeds a
reference model's the most (RHO-LOSS, 2206.07137), drawn by rank (selective backprop, 1910.00762), or all but
a part of the easy ones, from fewer candidates (InfoBatch, 2303.04947). The reference is the same network,
trained on 300 other examples whose labels are as wrong. scikit-learn's digits: 1,000 examples to learn from,
497 to test on with the right labels; a seed splits, spoils, initialises and draws, all methods alike.

Prints a table a share of wrong labels: accuracy over the last fifth of the steps, the share of wrong labels
among what was learned from, how many examples a step that was, and the steps to uniform's final accuracy,
over the seeds that reach it. `reference_loss.png` and `.json` go to `--workdir`. Settings were tried on other
seeds.
"""

import dataclasses
import functools
import json
import pathlib
import statistics
import sys
import time

import numpy as np
import reference_loss_digits as digits
import reference_loss_ways as ways
import rich
from matplotlib import rc_context
from matplotlib.figure import Figure

from hardmine_jax.errors import UserError
from hardmine_jax.tasks import charts, seeds
from hardmine_jax.tasks.exit_codes import run_to_exit_code
from hardmine_jax.tasks.flags import parse_flags

COLOURS = (charts.INK, charts.ORANGE, charts.BLUE, charts.GREEN, charts.FAINT)
SCORES = {"accuracy": "test accuracy", "wrong_kept": "wrong among kept"}


@dataclasses.dataclass(frozen=True)
class Config:
    """How much of what.

    Attributes:
      wrong: shares of labels that are spoilt, each its own table.
      methods: what is compared.
      seeds: from first_seed on.
      first_seed: of the splits.
      steps: of Adam.
      candidates: examples that a step looks at.
      kept: those that it learns from.
      evaluate_every: steps.
      workdir: where figure and numbers go.
    """

    wrong: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4)
    methods: tuple[ways.Method, ...] = ways.METHODS
    seeds: int = 10
    first_seed: int = 0
    steps: int = 600
    candidates: int = 128
    kept: int = 32
    evaluate_every: int = 25
    workdir: pathlib.Path = pathlib.Path("reference_loss")


def steps_to(found: list[dict], goals: dict[int, float]) -> str:
    """Median over the seeds that reach their goal, and how many these are."""
    reached = []
    for line in found:
        at = [
            step
            for step, value in zip(line["steps"], line["curve"], strict=True)
            if value >= goals[line["seed"]]
        ]
        reached += at[:1]
    return (
        f"{statistics.median(reached):.0f} ({len(reached)}/{len(found)})" if reached else f"(0/{len(found)})"
    )


def report(config: Config, found: list[dict]) -> None:
    """A table for each share."""
    reference = config.methods[0]
    for wrong in config.wrong:
        part = [line for line in found if line["wrong"] == wrong]
        goals = {line["seed"]: line["accuracy"] for line in part if line["variant"] == reference}
        more = {
            "kept a step": lambda own: f"{statistics.mean(line['kept_a_step'] for line in own):.1f}",
            f"steps to {reference}'s": functools.partial(steps_to, goals=goals),
        }
        title = f"{wrong:.0%} of the labels wrong"
        rich.print(seeds.table(part, config.methods, SCORES, reference=reference, title=title, more=more))


def draw(lines: list[dict]) -> Figure:
    """Accuracy over steps, a panel a share of wrong labels: means over seeds, two standard errors."""
    shares = list(dict.fromkeys(line["wrong"] for line in lines))
    with rc_context(charts.STYLE):
        figure = Figure(figsize=(3.6 * len(shares) + 1, 4), layout="constrained")
        for axes, wrong in zip(figure.subplots(1, len(shares), squeeze=False)[0], shares, strict=True):
            for method, colour in zip(ways.METHODS, COLOURS, strict=True):
                curves = [line for line in lines if (line["wrong"], line["variant"]) == (wrong, method)]
                if not curves:
                    continue
                values, steps = np.array([line["curve"] for line in curves]), curves[0]["steps"]
                mean, spread = values.mean(0), values.std(0) / np.sqrt(max(1, len(values) - 1))
                axes.fill_between(steps, mean - 2 * spread, mean + 2 * spread, color=colour, alpha=0.2, lw=0)
                axes.plot(steps, mean, color=colour, label=method)
            axes.set(title=f"{wrong:.0%} wrong labels", xlabel="step", ylim=(None, 1))
        figure.axes[0].set_ylabel("test accuracy")
        figure.axes[0].legend()
        return figure


def main(config: Config) -> None:
    """Everything, and how long it took."""
    if (
        not config.evaluate_every <= config.steps
        or not 0 < config.kept <= config.candidates <= digits.TRAINING
    ):
        raise UserError(
            f"--steps {config.steps} must reach --evaluate-every {config.evaluate_every}, and --kept "
            f"{config.kept} lie in 1 .. --candidates {config.candidates}, of {digits.TRAINING} at most"
        )
    start = time.monotonic()
    found = ways.lines(config, *digits.load())
    report(config, found)
    config.workdir.mkdir(parents=True, exist_ok=True)
    (config.workdir / "reference_loss.json").write_text(json.dumps(found) + "\n")
    (config.workdir / "reference_loss.png").write_bytes(charts.png(draw(found)))
    print(f"{time.monotonic() - start:.0f} s; {config.workdir / 'reference_loss.png'}")


if __name__ == "__main__":
    given = parse_flags(Config, description=__doc__)
    sys.exit(run_to_exit_code(lambda: main(given)))
