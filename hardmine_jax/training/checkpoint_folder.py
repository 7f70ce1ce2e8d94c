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
