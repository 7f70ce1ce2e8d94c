"""Which checkpoints are complete, where a folder cannot be renamed at once: in a mounted bucket.

On a disk orbax writes a checkpoint under another name and renames it when it is whole. A bucket mounted by
gcsfuse copies a folder file by file instead, or refuses (unless it has a hierarchical namespace): there orbax
writes under the final name, and last of all its marker, as it does by itself in `gs://`.
"""

import contextlib
import json
import pathlib
import re
import shutil

from hardmine_jax.training.checkpoint_folder import is_step, set_damaged_aside

_MARKER = "commit_success.txt"
_METADATA = "_CHECKPOINT_METADATA"
_MOUNTS = pathlib.Path("/proc/self/mounts")


def renames_at_once(directory: pathlib.Path) -> bool:
    """Whether a folder there is renamed in one piece; not of what FUSE mounts, buckets above all.

    Where nobody lists what is mounted, as on macOS, it is.
    """
    try:
        mounts = [line.split() for line in _MOUNTS.read_text(errors="surrogateescape").splitlines()]
    except OSError:
        return True
    place, best, kind = directory.resolve(), pathlib.Path("/"), ""
    for _, where, name, *_ in mounts:
        # A space is written as \040.
        folder = pathlib.Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), where))
        # The last one, where one lies over another.
        if place.is_relative_to(folder) and folder.is_relative_to(best):
            best, kind = folder, name
    return not (kind == "fuse" or kind.startswith("fuse."))


def is_complete(path: pathlib.Path) -> bool:
    """Whether a checkpoint that was written under its own name is whole: orbax has left its marker.

    Or the time alone, as an older version may have on a disk, from where it was copied.

    Raises:
      OSError: nobody could read it just now.
    """
    return (path / _MARKER).exists() or bool(_times(path).get("commit_timestamp_nsecs"))


def _times(path: pathlib.Path) -> dict:
    """What orbax noted when it began and when it ended; empty where that is not there or not to be read."""
    try:
        noted = json.loads((path / _METADATA).read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def complete_steps(directory: pathlib.Path) -> list[int]:
    """Of all checkpoints in a folder of them, in no order."""
    steps = [path for path in directory.iterdir() if is_step(path)]
    if not renames_at_once(directory):
        steps = [path for path in steps if is_complete(path)]
    return [int(path.name) for path in steps]


def remove_incomplete(directory: pathlib.Path) -> None:
    """In a mounted bucket, removes what a killed or failed writing has left under a checkpoint's name.

    Those that were copied there whole get the marker, without which orbax does not see them.
    """
    if not directory.is_dir() or renames_at_once(directory):
        return
    for path in directory.iterdir():
        if not is_step(path) or path.is_symlink():
            continue
        if is_complete(path):
            if not (path / _MARKER).exists():
                with contextlib.suppress(OSError):
                    (path / _MARKER).write_text("")
        elif _times(path).get("commit_timestamp_nsecs", False) is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            # Of a version that nobody knows, or damaged. It may be somebody's only one.
            set_damaged_aside(path, directory, path.name)
