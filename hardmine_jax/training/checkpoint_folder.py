"""The folder of a run's checkpoints, and how a new run starts without those of the last one."""

import os
import pathlib
import shutil
from typing import TypeAlias

FOLDER = "checkpoints"
AnyPath: TypeAlias = str | os.PathLike[str]


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
