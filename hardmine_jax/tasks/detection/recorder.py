"""Writes down what is mined on a few images, early and late."""

import pathlib
import sys
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from hardmine_jax.data.detection.proposals import SourceProposals
from hardmine_jax.data.images import decode_image
from hardmine_jax.data.records import Records
from hardmine_jax.job.exchange import all_rows, is_main
from hardmine_jax.tasks.detection import pictures
from hardmine_jax.tasks.detection.evaluation import Batching
from hardmine_jax.tasks.rows import evenly_spaced
from hardmine_jax.tasks.run import warn_of_errors


class MinedRecorder:
    """Writes down which RoIs of a few training images are mined, as training goes on: `mined/<step>.npz`.

    Args:
      workdir: the run's folder.
      source, proposals: of the training split.
      choose: (state, batch) -> what `loss.make_choice` gives.
      batching: of the split, one batch of which is watched.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        source: Records,
        proposals: SourceProposals,
        choose: Callable[[Any, dict[str, np.ndarray]], dict[str, np.ndarray]],
        *,
        batching: Batching,
    ):
        self._folder, self._source, self._choose = workdir / "mined", source, choose
        rows = evenly_spaced(len(source), batching.shard.batch_size * batching.shard.shard_count)
        self._batch = next(iter(batching.batches(source, proposals, rows)))
        self._known = all_rows({name: self._batch[name] for name in ("index", "where", "scale")})
        self._rows = rows

    def record(self, state: Any, step: int) -> None:
        chosen: dict[str, Any] = self._choose(state, self._batch)
        if not is_main():
            return
        path = self._folder / f"{step}.npz"
        new = path.with_suffix(".new")
        with warn_of_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(new, "wb") as stream:
                np.savez_compressed(stream, **chosen)
            # Killed here, there is no half of it for the report to stumble over.
            new.replace(path)

    def pictures(self) -> list[pictures.MinedExample]:
        """For each watched image what was mined first and last; empty where fewer than two were recorded."""
        steps = sorted(int(path.stem) for path in self._folder.glob("*.npz") if path.stem.isdecimal())
        if len(steps) < 2:
            return []
        early, late = (_read(self._folder / f"{step}.npz") for step in (steps[0], steps[-1]))
        if early is None or late is None or early["keep"].shape != late["keep"].shape:
            return []
        examples = []
        for place in np.flatnonzero(self._known["where"]):
            record = self._source[int(self._rows[self._known["index"][place]])]
            scale = float(self._known["scale"][place])
            first, last = (
                pictures.MinedRois(step, chosen["boxes"][place][keep] / scale, chosen["labels"][place][keep])
                for step, chosen in ((steps[0], early), (steps[-1], late))
                for keep in (chosen["keep"][place],)
            )
            image = decode_image(record["image"])
            if image is not None:
                examples.append(pictures.MinedExample(image, first, last, str(record["name"])))
        return examples


def _read(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """What was recorded; None, with a line on stderr, where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as chosen:
            return {name: chosen[name] for name in ("keep", "boxes", "labels")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        print(f"warning: {path} cannot be read ({error}): the report goes without it", file=sys.stderr)
        return None
