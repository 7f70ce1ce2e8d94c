"""config.json: a run's config as JSON and back, and where it lies."""

import dataclasses
import json
import os
import pathlib
import types
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar

from hardmine_jax.data import files
from hardmine_jax.data.problems import DataError
from hardmine_jax.job import exchange


class Dataclass(Protocol):
    """An instance of any."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


_Config = TypeVar("_Config", bound=Dataclass)
_Kind = TypeVar("_Kind")
_Names = TypeVar("_Names")


def read_config(
    workdir: pathlib.Path,
    kinds: Mapping[str, type | None],
    *,
    script: str,
    absent: Mapping[str, Any] = MappingProxyType({}),
) -> list[Any]:
    """The parts of a run's config.json.

    Args:
      kinds: for each part the dataclass it becomes; None leaves it as it is, lists as tuples.
      script: whose config.json it should be, for the error.
      absent: what the parts are, as JSON has them, that older versions did not write.

    Raises:
      DataError: no config.json there, or not one of this script.
    """
    path = pathlib.Path(workdir) / "config.json"
    # What is no plain file, a pipe say, would be waited for.
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no file: give the --workdir of a {script} run")
    try:
        content = {**absent, **json.loads(files.read_bytes(path))}
        return [_tuples(content[name]) if kind is None else from_plain(kind, content[name])
                for name, kind in kinds.items()]  # fmt: skip
    except FileNotFoundError as error:
        raise DataError(f"no {path}: give the --workdir of a {script} run") from error
    # OverflowError: a number that is infinite; RecursionError: nested deeper than Python's stack.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path} is no config.json of {script} ({error}): give the --workdir of a run"
        ) from error


def write_json(path: pathlib.Path, content: Any) -> None:
    """Process 0's content as a file."""
    if not exchange.is_main():
        return
    # Renamed into place: a reader, or a run killed here, never meets half a file.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.new")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


# The field of a config whose own fields stand beside the others, on the command line and in config.json.
FLAT = "run"


def plain(value: Dataclass) -> dict[str, Any]:
    """A dataclass as what JSON gives back; the fields of its `run` beside its own."""
    content = json.loads(json.dumps(dataclasses.asdict(value), default=str))
    return {**content.pop(FLAT, {}), **content}


def from_plain(kind: type[_Kind], content: Mapping[str, Any]) -> _Kind:
    """The inverse of `plain`: paths, tuples and nested dataclasses by the fields' types."""
    hints = typing.get_type_hints(kind)
    content = dict(content)
    if FLAT in hints:
        # What an older version did not write is what the task's runs have by default.
        default: Any = getattr(kind, FLAT)
        names = {field.name for field in dataclasses.fields(default)}
        content[FLAT] = plain(default) | {name: content.pop(name) for name in names & content.keys()}
    values = {name: _from_plain(hints.get(name), value) for name, value in content.items()}
    for name, value in values.items():
        if name in hints and not _is_a(hints[name], value):
            raise ValueError(f"{name} is {value!r:.100}, not {hints[name]}")
    return kind(**values)


def change(config: _Config, **fields: Any) -> _Config:
    """The config with other values in some fields, its own or those of its `run`."""
    own = {field.name for field in dataclasses.fields(config)}
    run = {name: value for name, value in fields.items() if name not in own}
    kept = {name: value for name, value in fields.items() if name in own}
    flat = dataclasses.replace(kept.pop(FLAT, getattr(config, FLAT)), **run)
    return dataclasses.replace(config, **kept, **{FLAT: flat})


def _is_a(hint: Any, value: Any) -> bool:
    """Whether a value is of a type as the fields of configs have them."""
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return value in choices
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_is_a(choice, value) for choice in choices)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = choices[:1] * len(value) if choices[-1] is ... else choices
        return len(kinds) == len(value) and all(map(_is_a, kinds, value))
    if hint in (int, float):
        return isinstance(value, hint | int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _from_plain(hint: Any, value: Any) -> Any:
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if pathlib.Path in choices and value is not None:
        if "\0" in value or not os.fsencode(value):
            raise ValueError(f"{value!r:.100} is no path")
        return pathlib.Path(value)
    nested = next(
        (kind for kind in choices if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None
    )
    return from_plain(nested, value) if nested and value is not None else _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def find_workdir(checkpoint: pathlib.Path, *, script: str) -> pathlib.Path:
    """The folder with config.json at or above a checkpoint.

    Raises:
      DataError: there is none.
    """
    path = checkpoint.resolve()
    for folder in (path, *path.parents[:2]):
        if (folder / "config.json").is_file():
            return folder
    raise DataError(
        f"no checkpoint at {checkpoint}: give the --workdir of a {script} run, or a checkpoint in it"
    )


def names_of_donor(
    path: pathlib.Path, load: Callable[[pathlib.Path], tuple[object, _Names]], *, script: str
) -> _Names | None:
    """What the outputs of the run at a path are called; None where that is no run of this task.

    Args:
      load: of a workdir, the task's `load_config`; script: as in `find_workdir`.
    """
    try:
        return load(find_workdir(path, script=script))[1]
    except DataError:
        return None
