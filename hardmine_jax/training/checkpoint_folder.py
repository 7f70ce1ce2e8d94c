"""The folder of a run's checkpoints, and how a new run starts without those of the last one."""

import errno
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
# gcsfuse counts what is in the folder, and says that too many files are open.
_NO_RENAMING = (errno.EMFILE, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV)
_STEP = re.compile(r"0|[1-9][0-9]*")


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message is one line and says what to do."""


def is_step(path: pathlib.Path) -> bool:
    """Whether a checkpoint may lie there, by the name; a link does, too."""
    return _STEP.fullmatch(path.name) is not None and (path.is_dir() or path.is_symlink())


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

    Call it before `Checkpoints(workdir)`. The checkpoints that were set aside the time before are deleted;
    what is none stays where it is.

    Returns:
      Where they are now; None when there were none.
    """
    directory = pathlib.Path(workdir).resolve() / FOLDER
    if not directory.is_dir() or not (ours := _ours(directory)):
        return None
    previous = directory.with_name(f"{FOLDER}.previous")
    for path in _ours(previous) if previous.is_dir() else ():
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
    if len(ours) == len(list(directory.iterdir())) and not (previous.is_dir() and any(previous.iterdir())):
        # At once: killed here, the run is in one piece.
        return move(directory, previous)
    previous.mkdir(exist_ok=True)
    for path in ours:
        move(path, previous / path.name)
    return previous


def _ours(directory: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in directory.iterdir() if is_step(path) or _UNFINISHED.fullmatch(path.name)]


def set_damaged_aside(path: pathlib.Path, directory: pathlib.Path, name: str) -> pathlib.Path:
    """Moves what is damaged to `<directory>.damaged/name`, and says where it is now."""
    target = directory.with_name(f"{directory.name}.damaged") / name
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    return move(path, target)


def move(path: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Renames a folder; copies and removes it where that is refused, as in a mounted bucket."""
    try:
        return path.rename(target)
    except OSError as error:
        if error.errno not in _NO_RENAMING:
            raise
    shutil.copytree(path, target, dirs_exist_ok=True)
    shutil.rmtree(path)
    return target


def find_checkpoints(path: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """The folder of checkpoints that a workdir, that folder itself or one checkpoint means, and which one."""
    # A run's folder may be called by a number too: its seed, say.
    is_step = path.name.isdecimal() and not (path / FOLDER).is_dir()
    directory, step = (path.parent, int(path.name)) if is_step else (path, None)
    return (directory / FOLDER if (directory / FOLDER).is_dir() else directory), step
