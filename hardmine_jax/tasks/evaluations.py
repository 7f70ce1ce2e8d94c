"""What scoring a trained run has in common in both tasks: which data, devices and folder."""

import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

import jax

from hardmine_jax import training
from hardmine_jax.data import files
from hardmine_jax.data.coco_json import File, id_number, whole_id
from hardmine_jax.data.problems import DataError
from hardmine_jax.data.records import Records
from hardmine_jax.errors import UserError
from hardmine_jax.tasks.config_json import Dataclass, find_workdir
from hardmine_jax.tasks.flags import flag
from hardmine_jax.tasks.names import Matched
from hardmine_jax.tasks.rows import Joined
from hardmine_jax.tasks.run_config import RunConfig, Shard

Split = Literal["validation", "train", "all"]
_Config = TypeVar("_Config", bound=Dataclass)
# Flags that change where an evaluation lies or how fast it is, not what it gives.
_SILENT = ("output", "batch_size", "cache_dir", "download")


def scored_data(given: Any, trained: _Config, names: Sequence[str]) -> tuple[_Config, bool]:
    """The run's config with the data that is to be scored, and whether flags named any.

    Without a flag it is the run's own. A new --dataset or --annotations is taken as it is given; other flags
    alone change the run's: its data has moved, say.

    Args:
      given: has flags of the same names as some of `names`, None where not given.
      names: fields of the run's config that say on what it was trained; `dataset` is among them.
    """
    found = {name: value for name in names if (value := getattr(given, name, None)) is not None}
    if "dataset" in found or "annotations" in found:
        found = {**dict.fromkeys(names), "dataset": "coco", **found}
    return dataclasses.replace(trained, **found), bool(found)


def warn_of_own(trained_on: pathlib.Path | None, scored: pathlib.Path | None) -> None:
    """A line on stderr where all of a file or folder is scored that the run was trained on a part of."""
    own, given = (path and path.expanduser().resolve() for path in (trained_on, scored))
    if given is not None and own == given:
        print(
            f"note: the run was trained on images of {given}, all of which are scored now: drop the flags of "
            "the dataset to score those that it has not seen",
            file=sys.stderr,
        )


def source_of(dataset: Any, split: Split) -> Records:
    """The records of a split.

    Raises:
      DataError: it has none.
    """
    source = {
        "train": dataset.train,
        "validation": dataset.validation,
        "all": Joined(dataset.train, dataset.validation),
    }[split]
    if not len(source):
        raise DataError(f"{dataset.name} has nothing to score in its split {split}: choose another")
    return source


def make_parallel(run: RunConfig) -> training.Parallel:
    """All devices, for evaluation alone."""

    def no_step(axis_name: str | None) -> training.Step:
        return lambda state, batch: (state, {})

    return training.parallelise(no_step, kind=run.parallel)


def whole_batches(batch_size: int | None, run: RunConfig) -> Shard:
    """Batches of the size given, or of the run's, that all devices share.

    Raises:
      UserError: a size below 1.
    """
    wanted = run.batch_size if batch_size is None else batch_size
    if wanted < 1:
        raise UserError(f"{flag('batch_size')} {wanted} must be at least 1")
    devices = jax.device_count()
    return Shard(-(-wanted // devices) * devices, 0, 1)


def checkpoint_name(run: pathlib.Path, workdir: pathlib.Path, *, step: int, which: str) -> str:
    """`which`, or the number of the one checkpoint that was asked for."""
    run, workdir = run.resolve(), workdir.resolve()
    return str(step) if run != workdir and run.name == str(step) else which


def settings_of(config: Any) -> dict[str, Any]:
    """What makes two evaluations the same command, JSON-able; paths are absolute."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    resolved = {
        name: value.expanduser().resolve() if isinstance(value, pathlib.Path) else value
        for name, value in fields.items()
        if name not in _SILENT
    }
    return json.loads(json.dumps(resolved, default=str))


def place_evaluation(given: Any, data: str, *, step: int, script: str) -> tuple[pathlib.Path, dict[str, Any]]:
    """The folder of an evaluation, see `choose_folder`, and the settings of its command.

    Args:
      given: the flags, with `run`, `which` and `output`; data: what is scored, as a part of a folder's name.
      step: of the checkpoint; script: that trained the run, for the error.
    """
    workdir, settings = find_workdir(given.run, script=script), settings_of(given)
    checkpoint = checkpoint_name(given.run, workdir, step=step, which=given.which)
    return choose_folder(given.output, workdir, f"{data}_{checkpoint}", settings), settings


def evaluation_entry(
    settings: dict[str, Any], data: str, split: Split, names: Sequence[str], matched: Matched
) -> dict[str, Any]:
    """What result.json says under "evaluation": what was scored, and by which command."""
    return {
        "settings": settings, "data": data, "split": split, "names": list(names),
        "left_out": list(matched.left_out), "left_out_of_the_data": list(matched.left_out_theirs),
    }  # fmt: skip


def choose_folder(
    output: pathlib.Path | None, workdir: pathlib.Path, name: str, settings: dict[str, Any]
) -> pathlib.Path:
    """Where the evaluation goes: over what the same command wrote, and over nothing else.

    Args:
      output: the folder asked for; None for workdir/evaluations/name, or with _2, _3 ... after it where
        another command's results are there.
      settings: of the command, as `result.json` keeps them.

    Raises:
      DataError: `output` holds anything else.
    """
    if output is None:
        folder = workdir / "evaluations" / name
        numbered = (folder.with_name(f"{name}_{number}") for number in itertools.count(2))
        return next(one for one in itertools.chain([folder], numbered) if _is_free(one, settings))
    if not _is_free(output, settings):
        raise DataError(f"{output} is not empty, and not of the same evaluation: choose another folder")
    return output


def _is_free(folder: pathlib.Path, settings: dict[str, Any]) -> bool:
    if not folder.exists():
        return True
    try:
        if not any(folder.iterdir()):
            return True
        before = json.loads(files.read_bytes(folder / "result.json"))["evaluation"]["settings"]
        # What is not given is the same whether the version that wrote it knew the flag or not.
        one, other = ({name: x for name, x in each.items() if x is not None} for each in (before, settings))
        return one == other
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def written_image_ids(files: Iterable[File]) -> dict[int | None, Any]:
    """Image ids as COCO files have them by those of the records."""
    images = [image for file in files for image in file.content["images"] if isinstance(image, dict)]
    return {id_number(image.get("id")): whole_id(image.get("id")) for image in images}


def write_results(folder: pathlib.Path, name: str, results: Sequence[dict]) -> pathlib.Path:
    """COCO results as JSON, an entry a line."""
    path = folder / name
    lines = ",\n".join(json.dumps(result) for result in results)
    path.write_text(f"[\n{lines}\n]\n" if results else "[]\n")
    return path
