"""Ways to choose when labels are wrong: the split, the runs on made-up classes, and the digits themselves."""

import dataclasses
import json

import chex
import numpy as np
import pytest

from experiments import reference_loss as experiment
from hardmine_jax.errors import UserError

# The modules that the script itself imported.
digits, ways = experiment.digits, experiment.ways
CONFIG = experiment.Config(wrong=(0.0, 0.4), seeds=2, steps=60, candidates=64, kept=16, evaluate_every=20)


def _made_up() -> tuple[np.ndarray, np.ndarray]:
    """Ten clouds, as many examples as scikit-learn has digits."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 1797).astype(np.int32)
    return (rng.random((10, 64))[labels] + 0.3 * rng.normal(size=(1797, 64))).astype(np.float32), labels


def test_labels_are_spoilt_in_what_is_learned_from_alone():
    images, labels = _made_up()
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    problem = digits.split(images, labels, seed=3, wrong=0.3)
    seen = set()
    for part, number in ((problem.training, 1000), (problem.holdout, 300), (problem.test, 497)):
        chex.assert_shape(part, [(number, 64), (number,), (number,)])
        right = np.array([known[image.tobytes()] for image in part.images])
        np.testing.assert_array_equal(part.labels != right, part.wrong)
        seen |= {image.tobytes() for image in part.images}
    assert len(seen) == 1797 and not problem.test.wrong.any()
    assert 0.25 < problem.training.wrong.mean() < 0.35 and problem.holdout.wrong.any()
    again = digits.split(images, labels, seed=3, wrong=0.3)
    chex.assert_trees_all_equal(problem, again)


def test_runs_learn_and_the_hardest_are_the_wrong_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(digits, "load", _made_up)
    experiment.main(dataclasses.replace(CONFIG, workdir=tmp_path))
    lines = json.loads((tmp_path / "reference_loss.json").read_text())
    assert (tmp_path / "reference_loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(lines) == 2 * 2 * 5 and all(line["steps"] == [20, 40, 60] for line in lines)
    found = {(line["wrong"], line["variant"], line["seed"]): line for line in lines}
    for (wrong, method, seed), line in found.items():
        if wrong == 0:
            assert line["wrong_kept"] == 0 and line["curve"][-1] > 0.7, method
        assert line["kept_a_step"] == 16 or (method == "prune" and 10 < line["kept_a_step"] < 24)
        uniform = found[wrong, "uniform", seed]
        if wrong and method in ("ohem", "rank", "prune"):
            assert line["wrong_kept"] > uniform["wrong_kept"] + 0.005
        if wrong and method == "rho":
            assert line["wrong_kept"] < uniform["wrong_kept"]
    assert "40% of the labels wrong" in capsys.readouterr().out


@pytest.mark.parametrize("more", [{"steps": 10}, {"candidates": 8}, {"candidates": 2000}, {"kept": 0}])
def test_what_cannot_be_is_refused(more):
    with pytest.raises(UserError, match="must reach --evaluate-every 20"):
        experiment.main(dataclasses.replace(CONFIG, **more))


def test_steps_to_a_goal():
    lines = [{"seed": seed, "steps": [5, 10, 15], "curve": [0.1, 0.5, 0.4 + seed / 10]} for seed in range(3)]
    assert experiment.steps_to(lines, {0: 0.5, 1: 0.1, 2: 0.55}) == "10 (3/3)"
    assert experiment.steps_to(lines, dict.fromkeys(range(3), 0.9)) == "(0/3)"


def test_the_digits_are_there():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    images, labels = digits.load()
    chex.assert_shape([images, labels], [(1797, 64), (1797,)])
    assert images.min() == 0 and images.max() == 1 and sorted(set(labels.tolist())) == list(range(10))
