"""The seal of a checkpoint: it shows a flipped bit in the description, and a folder under another's number.

`seal/metadata` is `{"step", "score", "about", "crc"}`: the number it was saved under, the score it was saved
with or None, the CRC-32 of `about`, and that of the other three. Checkpoints of before have none.
"""

import contextlib
import json
import math
import os
import pathlib
import sys
import zlib
from typing import Any

import numpy as np

from hardmine_jax.training.checkpoint_folder import CheckpointError, is_step, set_damaged_aside

_KEYS = {"step", "score", "about", "crc"}


def make_seal(step: int, score: float | None, about: dict) -> dict[str, Any]:
    seal = {"step": step, "score": score, "about": _crc(about)}
    return {**seal, "crc": _crc(seal)}


def read_seal(path: pathlib.Path) -> dict[str, Any] | None:
    """A checkpoint's seal; None where it was saved before there were any.

    Raises:
      ValueError: it is damaged.
    """
    if not (path / "seal").exists():
        return None
    seal = json.loads((path / "seal" / "metadata").read_text())
    if not isinstance(seal, dict) or set(seal) != _KEYS:
        raise ValueError("the seal is not what was saved")
    if seal.pop("crc") != _crc(seal):
        raise ValueError("the seal is not what was saved")
    return seal


def check_about(about: Any, seal: dict[str, Any] | None) -> None:
    """Raises ValueError where the description is not the one that was sealed, or is none."""
    if not isinstance(about, dict) or set(about) != {"arrays", "iterator"}:
        raise ValueError("the description is not what was saved")
    if seal is not None and _crc(about) != seal["about"]:
        raise ValueError("the description is not what was saved")


def check_folder(directory: pathlib.Path) -> None:
    """Raises CheckpointError naming a link, or a folder that was renamed or copied, among the checkpoints."""
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if not is_step(path):
            continue
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link, and no checkpoint of this run: remove it")
        if not _bears_its_number(path):
            raise CheckpointError(
                f"{path} was not saved under that number, but renamed or copied: move it out of there"
            )


def _bears_its_number(path: pathlib.Path) -> bool:
    number, seal = int(path.name), _sound_seal(path)
    if seal is not None:
        return bool(seal["step"] == number)
    # Without a seal the state's own count of steps tells, of which `about` has the CRC-32.
    try:
        shape, dtype, crc = json.loads((path / "about" / "metadata").read_text())["arrays"]["step"]
        return bool((path / "seal").exists() or crc == zlib.crc32(np.array(number, dtype).tobytes()))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        # Damaged, which is told when it is read.
        return True


def read_scores(directory: pathlib.Path) -> dict[int, float]:
    """The scores of the checkpoints that have any, by step; a damaged one is none."""
    scores = {}
    for path in directory.iterdir():
        if is_step(path):
            seal, score = _sound_seal(path), None
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                score = _read_score(path / "metrics" / "metrics") if seal is None else seal["score"]
            if score is not None:
                scores[int(path.name)] = score
    return scores


def mend_scores(directory: pathlib.Path) -> None:
    """Writes scores that are damaged as they were sealed; for one of them orbax would open no checkpoint.

    Without a seal they are moved to `checkpoints.damaged`.
    """
    for path in sorted(directory.iterdir()):
        if not is_step(path):
            continue
        seal, problem = _sound_seal(path), None
        try:
            score = _read_score(path / "metrics" / "metrics")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            score, problem = None, f"{type(error).__name__}: {error}".splitlines()[0][:120]
        if seal is not None and seal["score"] is not None and seal["score"] != score:
            _write_score(path / "metrics", seal["score"])
            print(f"the score of checkpoint {path} is damaged: written again as sealed", file=sys.stderr)
        elif problem is not None:
            target = set_damaged_aside(path / "metrics", directory, f"score of {path.name}")
            print(
                f"the score of checkpoint {path} is damaged ({problem}): moved to {target}", file=sys.stderr
            )


def _sound_seal(path: pathlib.Path) -> dict[str, Any] | None:
    try:
        return read_seal(path)
    except (OSError, ValueError, RecursionError):
        # Told when the checkpoint is read.
        return None


def _read_score(file: pathlib.Path) -> float | None:
    try:
        score = json.loads(file.read_text())["score"]
    except FileNotFoundError:
        if file.parent.is_dir():
            raise ValueError("no file") from None
        return None
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"{score!r} is no score")
    return float(score)


def _write_score(folder: pathlib.Path, score: float) -> None:
    folder.mkdir(exist_ok=True)
    new = folder / "metrics.new"
    new.write_text(json.dumps({"score": score}))
    os.replace(new, folder / "metrics")


def _crc(content: Any) -> int:
    # As it comes back: JSON has no tuples, and no keys but strings.
    return zlib.crc32(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode())
