"""Numbers that nobody can mean are refused in one line, by every flag of every command."""

import dataclasses
import importlib
import pathlib
import sys
import typing

import pytest

from hardmine_jax.errors import UserError
from hardmine_jax.tasks import compare, flags
from hardmine_jax.tasks.detection import config as detection_config
from hardmine_jax.tasks.detection import evaluate as detection_evaluate
from hardmine_jax.tasks.detection import predict_photos as detection_predict
from hardmine_jax.tasks.detection import train as detection_train
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose import evaluate as pose_evaluate
from hardmine_jax.tasks.pose import export
from hardmine_jax.tasks.pose import predict_photos as pose_predict
from hardmine_jax.tasks.pose import train as pose_train

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
# Of each command its `main`, its config, and what has to be given.
COMMANDS = {
    "pose train": (pose_train.main, pose_config.Config, ()),
    "pose predict": (pose_predict.main, pose_predict.PredictConfig, ("a.jpg", "--checkpoint", "run")),
    "pose evaluate": (pose_evaluate.main, pose_evaluate.EvaluateConfig, ("run",)),
    "pose export": (export.main, export.ExportConfig, ("run",)),
    "detection train": (detection_train.main, detection_config.Config, ()),
    "detection predict": (
        detection_predict.main,
        detection_predict.PredictConfig,
        ("a.jpg", "--checkpoint", "run"),
    ),
    "detection evaluate": (detection_evaluate.main, detection_evaluate.EvaluateConfig, ("run",)),
    "compare": (compare.main, compare.CompareConfig, ("run",)),
}


def _numbers(kind, prefix=""):
    """(flag, int or float, how many of them) of every flag that takes numbers."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _numbers(hint, prefix if name == "run" else f"{prefix}{name}.")
            continue
        kinds = [hint, *typing.get_args(hint)]
        kinds += [inner for one in kinds for inner in typing.get_args(one)]
        found = next((one for one in (int, float) if one in kinds), None)
        if found is not None and bool not in kinds:
            pair = next((typing.get_args(one) for one in kinds if typing.get_args(one)[:1] == (found,)), ())
            yield flags.flag(prefix + name), found, 2 if pair == (found, found) else 1


TABLE = [
    (command, name, kind, count)
    for command, (_, config, _) in COMMANDS.items()
    for name, kind, count in _numbers(config)
]


def test_the_table_has_every_kind_of_flag():
    names = {(command, name) for command, name, _, _ in TABLE}
    assert {
        ("pose train", "--sigmas"),
        ("pose train", "--optimizer.learning-rate"),
        ("pose train", "--k"),
        ("pose train", "--image-size"),
        ("detection train", "--search.min-size"),
        ("detection train", "--augment.short-sides"),
        ("detection train", "--max-boxes"),
        ("pose predict", "--min-score"),
        ("pose evaluate", "--batch-size"),
    } <= names
    assert len(names) > 80


@pytest.mark.parametrize("command, name, kind, count", TABLE, ids=lambda value: str(value))
def test_senseless_numbers_are_refused_by_every_flag(command, name, kind, count, capsys):
    main, _, needed = COMMANDS[command]
    values = ("nan", "inf", "-inf", "1e20", "-1e20") if kind is float else (str(10**20), str(-(10**20)))
    for value in values:
        try:
            code = main([*needed, name, *[value] * count])
        except SystemExit as ended:
            # tyro's own frame, of what a config checks itself, has the name of the field and may break lines.
            assert "Value error" in (said := "".join(capsys.readouterr())) and "Traceback" not in said
            code = ended.code
        else:
            said = capsys.readouterr().err
            assert said.startswith(f"error: {name} ") and said.count("\n") == 1
        assert code == 2


def test_the_numbers_that_people_give_pass():
    given = ["--optimizer.learning-rate", "1e-6", "--seed", str(2**32 - 1), "--sigmas", "0.1", "0.025"]
    flags.check_numbers(pose_train.parse(given))
    given = ["--augment.short-sides", "600", "--search.min-size", "0", "--max-boxes", "100"]
    flags.check_numbers(detection_train.parse(given))
    with pytest.raises(UserError, match="--k nan: give a finite number"):
        flags.check_numbers(dataclasses.replace(pose_config.Config(), k=float("nan")))


@pytest.mark.parametrize("script", ["pose_step", "networks", "detection", "mining", "input_pipeline"])
def test_benchmarks_refuse_them_too(script, monkeypatch, capsys):
    module = importlib.import_module(script)
    name, kind, count = next(_numbers(module.Config))
    monkeypatch.setattr(sys, "argv", [script, name, *[str(10**20) if kind is int else "nan"] * count])
    with pytest.raises(SystemExit) as ended:
        flags.parse_flags(module.Config)
    assert ended.value.code == 2 and name in "".join(capsys.readouterr())


def test_no_command_line_is_read_past_the_check():
    package = pathlib.Path(flags.__file__).parents[1]
    for path in [*package.rglob("*.py"), *EXPERIMENTS.rglob("*.py")]:
        text = path.read_text()
        assert "tyro.cli(" not in text or "check_numbers(" in text or "run_training(" in text, path
