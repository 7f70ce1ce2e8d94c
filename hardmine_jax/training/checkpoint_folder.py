"""The folder of a run's checkpoints, and how a new run starts without those of the last one."""

import os
import pathlib
import re
import shutil
from typing import TypeAlias

from hardmine_jax.errors import UserError

FOLDER = "checkpoints"
AnyPath: TypeAlias = str | os.PathLike[str]
# As orbax calls what it has not finished, and no more than that: the folder may hold what is not ours.
_UNFINISHED = re.compile(r"[0-9]+\.orbax-checkpoint-tmp(-[0-9]+)?")
_STEP = re.compile(r"0|[1-9][0-9]*")


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message is one line and says what to do."""


def is_step(path: pathlib.Path) -> bool:
    """Whether a checkpoint may lie there, by the name."""
    return _STEP.fullmatch(path.name) is not None


def remove_unfinished(directory: pathlib.Path) -> None:
    """Removes what a writing that was killed or failed has left, and nothing else."""
    for path in directory.glob("*.*"):
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def check_name(path: pathlib.Path) -> None:
    """Raises CheckpointError where the storage of checkpoints cannot be told of a folder."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"{ascii(os.fspath(path))}: checkpoints need a folder with a name in UTF-8: rename it"
        ) from None


def set_aside(workdir: AnyPath) -> pathlib.Path | None:
    """Moves a run's checkpoints to `<workdir>/checkpoints.previous`, so that a new run starts without them.

    Call it before `Checkpoints(workdir)`. What was set aside the time before is deleted.

    Returns:
      Where they are now; None when there were none.
    """
    directory = pathlib.Path(workdir).resolve() / FOLDER
    if not directory.is_dir() or not any(directory.iterdir()):
        return None
    previous = directory.with_name(f"{FOLDER}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    return directory.rename(previous)


def set_damaged_aside(path: pathlib.Path, directory: pathlib.Path, name: str) -> pathlib.Path:
    """Moves what is damaged to `<directory>.damaged/name`, and says where it is now."""
    target = directory.with_name(f"{directory.name}.damaged") / name
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    return path.rename(target)


def find_checkpoints(path: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """The folder of checkpoints that a workdir, that folder itself or one checkpoint means, and which one."""
    # A run's folder may be called by a number too: its seed, say.
    is_step = path.name.isdecimal() and not (path / FOLDER).is_dir()
    directory, step = (path.parent, int(path.name)) if is_step else (path, None)
    return (directory / FOLDER if (directory / FOLDER).is_dir() else directory), step
