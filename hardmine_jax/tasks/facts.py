"""What a report says of a run beside its scores: which data, how much of it, when, how long, by what."""

import datetime
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax

import hardmine_jax
from hardmine_jax.tasks.page import exists

Fact = tuple[str, str]


def run_facts(
    *, files: Sequence[str], categories: Sequence[str], counts: Sequence[Fact], seconds: float | None = None
) -> list[Fact]:
    """(what, text) for a table.

    Args:
      files: what `data_files` gives; categories: names of what was looked for; counts: of the splits.
      seconds: of training; None where there was none.
    """
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    versions = (
        ("hardmine_jax", hardmine_jax.__version__),
        ("jax", jax.__version__),
        ("Python", platform.python_version()),
    )
    facts = [
        ("data", ", ".join(files)),
        ("category" if len(categories) == 1 else "categories", ", ".join(categories)),
        *counts,
        ("training took", duration(seconds) if exists(seconds) else ""),
        ("written", datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")),
        ("devices", f"{len(devices)} x {', '.join(kinds)}"),
        ("software", ", ".join(f"{name} {version}" for name, version in versions)),
    ]
    return [fact for fact in facts if fact[1]]


def data_files(config: Any) -> list[str]:
    """The last parts of what a config's data was read from; its dataset's name where that is nothing."""
    names = ("annotations", "validation_annotations", "data_dir")
    paths = [path for name in names if (path := getattr(config, name, None)) is not None]
    return [pathlib.PurePath(path).name or str(path) for path in paths] or [str(config.dataset)]


def count(number: int, what: str) -> str:
    """
    >>> count(1, "image"), count(1200, "object")
    ('1 image', '1,200 objects')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """
    >>> duration(12.3), duration(245), duration(7322)
    ('12.3 s', '4 min 5 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
