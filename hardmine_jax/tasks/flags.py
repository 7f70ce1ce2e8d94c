"""Flags of the command line: what others follow from, what they may be, and what is told of them."""

import argparse
import dataclasses
import math
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import tyro

from hardmine_jax.data.problems import Skipped
from hardmine_jax.errors import UserError
from hardmine_jax.tasks.config_json import FLAT, Dataclass, plain

_Config = TypeVar("_Config", bound=Dataclass)

# No step, size, second, rate or count means anything beyond it.
_MOST = 10**9
# What memory or processes are made for at once; seeds are 32 bits.
_MOST_OF: Mapping[str, int] = MappingProxyType(
    {"image_size": 2**14, "short_sides": 2**14, "num_workers": 2**10, "max_boxes": 2**20, "seed": 2**32 - 1}
)
# Beside what the configs check of themselves, or for --distributed.
_LEAST_OF: Mapping[str, int] = MappingProxyType(
    {"patience": 0, "num_processes": 1, "process_id": 0, "max_boxes": 1, "sigmas": 0, "min_size": 0}
)


def parse_flags(
    kind: type[_Config],
    arguments: Sequence[str] | None = None,
    *,
    description: str | None = None,
) -> _Config:
    """The command line of a script, its numbers checked; ends the process with 2 where it is none.

    Args:
      kind: of the config, whose docstring is the help; arguments: of the process by default.
      description: what the help begins with.
    """
    config = tyro.cli(kind, args=arguments, description=description)
    try:
        check_numbers(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    return config


def check_numbers(config: Dataclass) -> None:
    """Raises UserError for a number that nobody can mean: NaN, infinite, or beyond all bounds.

    What a number has to be for its own sake the config checks itself.
    """
    for name, number in _numbers(config):
        most, least = _MOST_OF.get(_last(name), _MOST), _LEAST_OF.get(_last(name), -_MOST)
        if not math.isfinite(number):
            raise UserError(f"{flag(name)} {number}: give a finite number")
        if number > most:
            raise UserError(f"{flag(name)} {number} must be at most {most}")
        if number < least:
            raise UserError(f"{flag(name)} {number} must be at least {least}")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a config and what is inside it, with the names of their flags."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            # The fields of its `run` stand beside its own.
            inner = name if not name and field.name == FLAT else f"{name}.{field.name}".lstrip(".")
            yield from _numbers(getattr(value, field.name), inner)
    elif isinstance(value, tuple):
        for one in value:
            yield from _numbers(one, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def first_flags(
    arguments: Sequence[str] | None, choices: Mapping[str, Sequence[str]], *, prog: str | None = None
) -> dict[str, Any]:
    """The flags that the defaults of the others follow from; of each the first choice where it is not given.

    >>> first_flags(["--steps", "3", "--preset", "big"], {"preset": ("small", "big"), "dataset": ("lspet",)})
    {'preset': 'big', 'dataset': 'lspet'}
    """
    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    for name, allowed in choices.items():
        parser.add_argument(flag(name), choices=allowed, default=allowed[0])
    return vars(parser.parse_known_args(arguments)[0])


def check_counts(config: object, least: Mapping[str, int]) -> None:
    """Raises UserError for a flag below its least value."""
    for name, low in least.items():
        if getattr(config, name) < low:
            raise UserError(f"{flag(name)} {getattr(config, name)} must be at least {low}")


def check_data_flags(config: object, used: Mapping[str, tuple[str, ...]], kind: str, advice: str) -> None:
    """Raises UserError for a flag that is given and means nothing to the dataset.

    Args:
      used: for each kind of dataset the flags that it reads.
      kind: which one it is; `advice`: what to do instead.
    """
    for name in sorted({name for names in used.values() for name in names} - {*used[kind]}):
        if getattr(config, name) is not None:
            raise UserError(f"{flag(name)} means nothing to --dataset {kind}: {advice}, or drop it")


def check_needed_flags(config: object, needed: Mapping[str, str], kind: str) -> None:
    """Raises UserError where a flag is missing that the dataset cannot be read without.

    Args:
      needed: those flags, and what each is.
      kind: which dataset it is.
    """
    missing = [name for name in needed if getattr(config, name) is None]
    if missing:
        wanted = " and ".join(f"{flag(name)} {what}" for name, what in needed.items())
        which = f": {' and '.join(map(flag, missing))} missing" if len(needed) > 1 else ""
        raise UserError(f"{kind} needs {wanted}{which}")


def warn_skipped(skipped: Skipped) -> None:
    """One line on stderr, where anything was left out or is odd."""
    if skipped:
        print(skipped.report(), file=sys.stderr)


def warn_of(notes: Iterable[str]) -> None:
    """Each on a line of stderr."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def flag(name: str) -> str:
    """
    >>> flag("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


# Flags that may change between two starts of one run without changing what it is.
FREE = (
    "resume", "eval_only", "parallel", "num_workers", "workdir", "cache_dir", "log_every", "distributed",
    "coordinator", "num_processes", "process_id", "patience", "compilation_cache", "download",
    "profile_steps", "remat",
)  # fmt: skip


def warn_of_changes(workdir: pathlib.Path, old: Dataclass, new: Dataclass) -> None:
    """One line on stderr where a run goes on with another config than it had."""
    before, now = plain(old), plain(new)
    changed = [f"{name}={before[name]!r}" for name in now if name not in FREE and before[name] != now[name]]
    if changed:
        print(f"note: {workdir} was trained with {', '.join(changed)} until here", file=sys.stderr)
