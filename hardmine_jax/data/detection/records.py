"""Prepared images with objects in them, kept as `prepared.py` describes, read as one record an image.

A record is numpy: "image" bytes as they stood in the file, "boxes" float32 [M, 4] xyxy in pixels of that
image, "labels" int32 [M] (1 to C, 0 is the background and labels nothing), "difficult" bool [M], "image_id"
int64, "name" str, "index" int (position in the source). M may be 0: a picture of nothing but background.

Boxes are half open: the left edge of the first pixel is 0.0, the right edge of the last one is the width.
"""

import dataclasses
import json
import operator
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from hardmine_jax.data import images, prepared
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.problems import DataError, Skipped, gather

_SUMMARY = "summary.json"
_FEATURES = {
    "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
    "labels": tfds.features.Tensor(shape=(None,), dtype=np.int32),
    "difficult": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
}


class ObjectPicture(NamedTuple):
    """One image, as encoded bytes or the path of a file, with its objects as the dataset's file gives them.

    boxes [M, 4] xyxy half open, labels [M], difficult [M], names [M] (of the objects, for reports). `size` is
    the (H, W) that the boxes refer to, None where nobody says.
    """

    name: str
    image_id: int
    image: bytes | pathlib.Path
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    names: tuple[str, ...]
    size: tuple[int, int] | None = None


class Report(NamedTuple):
    """(reason, name) of what was left out, and of what was kept though odd, in reading order."""

    skipped: list[tuple[str, str]]
    noted: list[tuple[str, str]]

    def skip(self, reason: str, name: str) -> None:
        self.skipped.append((reason, name))

    def note(self, reason: str, name: str) -> None:
        self.noted.append((reason, name))


# What `read` of a dataset's file gives: its classes, and the pictures of each split in order.
Splits = Mapping[str, Iterable[ObjectPicture]]


@dataclasses.dataclass(frozen=True)
class DetectionDataset:
    """A prepared dataset: two sources of records, its classes without the background, what was left out.

    Class `classes[i]` has label i + 1.
    """

    name: str
    classes: tuple[str, ...]
    train: "DetectionSource"
    validation: "DetectionSource"
    skipped: Skipped
    folder: pathlib.Path


class DetectionSource:
    """Random access to the records of a split; what grain calls a RandomAccessDataSource.

    Opens its files at the first record, so it pickles small and each worker process gets its own readers.

    Attributes:
      objects_per_image: int32 [length], so that `max_boxes` can be chosen without reading everything.
    """

    def __init__(self, folder: pathlib.Path, split: str):
        self._examples = prepared.ExampleReader(folder, split)
        self.objects_per_image = np.load(folder / f"{split}_objects.npy", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.objects_per_image)

    def __getitem__(self, index: int) -> dict:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self!r}")
        index %= len(self)
        example = self._examples[index]
        return {
            "image": example["image"],
            "boxes": np.float32(example["boxes"]).reshape(-1, 4),
            "labels": np.int32(example["labels"]),
            "difficult": np.bool_(example["difficult"]),
            "image_id": np.int64(example["image_id"]),
            "name": example["name"].decode(),
            "index": index,
        }

    def __repr__(self) -> str:
        return f"DetectionSource({self._examples!r}, {len(self)} images)"


def prepare(
    name: str,
    *,
    made_from: dict,
    read: Callable[["Report"], tuple[tuple[str, ...], Splits]],
    expected: str,
    cache_dir: str | os.PathLike | None = None,
) -> DetectionDataset:
    """The dataset from the cache, or made now and put there.

    What is left out and why, none of which ends the run: an image that is absent, unreadable, cut off or not
    of its listed size; a box that is no finite number, inverted, of no area, or wholly outside the image.
    Kept, but noted: a box that reaches out of the image (clipped to it), an image with no object (all of it
    is background), a class with no object in the training split (nothing can learn it).

    Args:
      name: of the dataset, and of its folder in the cache.
      made_from: JSON-able; everything the records follow from, see `prepared.prepare_folder`.
      read: called only when the data is not in the cache, with a Report for what it leaves out or finds odd;
        gives the classes and for "train" and "validation" the pictures in order.
      expected: what should have been where, for the error when there is nothing to train on.
      cache_dir: see `cache.cache_root`.

    Raises:
      DataError: when the training split shows no object, or the cache cannot be written.
    """

    def build(temporary: pathlib.Path, advance: prepared.Advance) -> None:
        report = Report([], [])
        classes, splits = read(report)
        seen = _write(temporary, splits, report, advance)
        if not seen:
            found = gather(report.skipped, report.noted).report()
            raise DataError(f"{name}: no object to train on ({found}): expected {expected}")
        for label, title in enumerate(classes, 1):
            if label not in seen:
                report.note("class never seen in training", title)
        skipped = dataclasses.asdict(gather(report.skipped, report.noted))
        (temporary / _SUMMARY).write_text(json.dumps({"classes": classes, "skipped": skipped}))

    folder = prepared.prepare_folder(
        name, made_from={**made_from, "records": code_hash(__file__)}, build=build, cache_dir=cache_dir
    )
    return _load(folder, name)


def _write(folder: pathlib.Path, splits: Splits, report: Report, advance: prepared.Advance) -> set[int]:
    """Fills `folder` but for the summary; gives the labels seen in training."""
    counts: dict[str, list[int]] = {split: [] for split in prepared.SPLITS}
    seen: dict[str, set[int]] = {split: set() for split in prepared.SPLITS}
    examples = {
        split: _examples(splits.get(split, ()), counts[split], seen[split], report, advance)
        for split in counts
    }
    prepared.write_examples(folder, _FEATURES, examples)
    for split, objects in counts.items():
        np.save(folder / f"{split}_objects.npy", np.array(objects, np.int32), allow_pickle=False)
    return seen["train"]


def _examples(
    given: Iterable[ObjectPicture],
    counts: list[int],
    seen: set[int],
    report: Report,
    advance: prepared.Advance,
) -> Iterator[dict]:
    for picture, found in images.in_threads(_check, given):
        report.skipped.extend(found.skipped)
        report.noted.extend(found.noted)
        if picture is None:
            continue
        advance()
        counts.append(len(picture.labels))
        seen.update(picture.labels.tolist())
        yield {
            "name": picture.name,
            "image_id": picture.image_id,
            "image": picture.image,
            "boxes": picture.boxes,
            "labels": picture.labels,
            "difficult": picture.difficult,
        }


def _check(picture: ObjectPicture) -> tuple[ObjectPicture | None, Report]:
    """The picture with its image's bytes and the boxes that can be used, or None; and what was found."""
    report = Report([], [])
    opened = images.open_image(picture.image, picture.size)
    if isinstance(opened, str):
        report.skip(opened, picture.name)
        return None, report
    encoded, size, odd = opened
    if odd is not None:
        report.note(odd, picture.name)
    given = np.asarray(picture.boxes, np.float64).reshape(-1, 4)
    clipped = _clip(given, size)
    keep: list[bool] = []
    for place, title in enumerate(picture.names):
        problem = box_problem(given[place], clipped[place])
        if problem:
            report.skip(problem, f"{picture.name}#{title}")
        elif (given[place] != clipped[place]).any():
            report.note("box reaches out of the image (clipped)", f"{picture.name}#{title}")
        keep.append(not problem)
    kept = np.array(keep, bool)
    if not kept.any():
        report.note("image with no object (all background)", picture.name)
    usable = picture._replace(
        image=encoded,
        boxes=np.asarray(clipped[kept], np.float32),
        labels=np.asarray(picture.labels, np.int32)[kept],
        difficult=np.asarray(picture.difficult, bool)[kept],
    )
    return usable, report


def _clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float64))


def box_problem(given: np.ndarray, clipped: np.ndarray) -> str | None:
    """Why a box [4] cannot be used, None if it can; `clipped` is the same clipped to its image."""
    if not np.isfinite(given).all():
        return "box that is no finite number"
    if (given[2:] < given[:2]).any():
        return "box inverted"
    if (given[2:] == given[:2]).any():
        return "box of no area"
    if not (np.float32(clipped[2:]) > np.float32(clipped[:2])).all():
        return "box outside the image"
    return None


def _load(folder: pathlib.Path, name: str) -> DetectionDataset:
    try:
        summary = json.loads((folder / _SUMMARY).read_text())
        skipped = Skipped(
            **{
                kind: {reason: tuple(names) for reason, names in found.items()}
                for kind, found in summary["skipped"].items()
            }
        )
        train, validation = DetectionSource(folder, "train"), DetectionSource(folder, "validation")
        return DetectionDataset(name, tuple(summary["classes"]), train, validation, skipped, folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise prepared.damaged(folder, error) from error
