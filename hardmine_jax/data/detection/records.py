"""Prepared images with objects in them, kept as `prepared.py` describes, read as one record an image.

A record is numpy: "image" bytes as they stood in the file, "boxes" float32 [M, 4] xyxy in pixels of that
image, "labels" int32 [M] (1 to C; 0 what is left alone, see `regions.py`: an object of which that is all one
knows), "difficult" bool [M], "crowd" bool [M] (a difficult one that stands for many, or is left alone: what
lies in it teaches nothing), "image_id" int64, "name" str, "index" int (position in the source). M may be 0: a
picture of nothing but background.

Boxes are half open: the left edge of the first pixel is 0.0, the right edge of the last one is the width.
"""

import dataclasses
import functools
import json
import operator
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from hardmine_jax.data import images, prepared
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.detection.regions import Usable, is_whole, usable_box
from hardmine_jax.data.problems import DataError, Report, Skipped

_SUMMARY = "summary.json"
_FEATURES = {
    "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
    "labels": tfds.features.Tensor(shape=(None,), dtype=np.int32),
    "difficult": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
    "crowd": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
}
_TWICE = "image file listed twice"
_IN_BOTH = "image in the training and in the validation list"
UNPLACED = "image left out of training (the place of an object in it is unknown)"
ELSEWHERE = "image left out of training (all its boxes lie outside of it)"


class ObjectPicture(NamedTuple):
    """One image, as encoded bytes or the path of a file, with its objects as the dataset's file gives them.

    boxes [M, 4] xyxy half open, labels [M] (0: an object of an unknown class, to be left alone), difficult
    [M], names [M] (of the objects, for reports). `size` is the (H, W) that the boxes refer to, None where
    nobody says. `crowd` [M], None: no object is. `relative`: boxes are parts of the picture's width and
    height, 0 to 1.
    """

    name: str
    image_id: int
    image: bytes | pathlib.Path
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    names: tuple[str, ...]
    size: tuple[int, int] | None = None
    crowd: np.ndarray | None = None
    relative: bool = False


Splits = Mapping[str, Iterable[ObjectPicture]]


class Listed(NamedTuple):
    """What a dataset's file lists: its classes, the pictures of each split in order, and the classes' ids in
    the file, for predictions that are compared with it; 1, 2 ... where it has none."""

    classes: tuple[str, ...]
    splits: Splits
    category_ids: tuple[int | str, ...] = ()


@dataclasses.dataclass(frozen=True)
class DetectionDataset:
    """A prepared dataset: two sources of records, its classes without the background, what was left out.

    Class `classes[i]` has label i + 1, and in the dataset's file the id `category_ids[i]`.
    """

    name: str
    classes: tuple[str, ...]
    train: "DetectionSource"
    validation: "DetectionSource"
    skipped: Skipped
    folder: pathlib.Path
    category_ids: tuple[int | str, ...] = ()


class DetectionSource:
    """Random access to the records of a split; what grain calls a RandomAccessDataSource.

    Opens its files at the first record, so it pickles small and each worker process gets its own readers.

    Attributes:
      objects_per_image: int32 [length], so that `max_boxes` can be chosen without reading everything; what is
        left alone counts too.
      targets_per_image: int32 [length], those that are to be found: neither difficult nor left alone.
    """

    def __init__(self, folder: pathlib.Path, split: str):
        self._examples = prepared.ExampleReader(folder, split)
        self.objects_per_image, self.targets_per_image = np.load(
            folder / f"{split}_objects.npy", allow_pickle=False
        )

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
            "crowd": np.bool_(example["crowd"]),
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
    read: Callable[["Report"], Listed],
    expected: str,
    orientation: images.Orientation = "auto",
    cache_dir: str | os.PathLike | None = None,
) -> DetectionDataset:
    """The dataset from the cache, or made now and put there.

    What is left out and why, none of which ends the run: an image that is absent, unreadable, cut off or not
    of its listed size; a box that is no finite number, of no area, or wholly outside the image. What is left
    out for its box is never background: training leaves its place alone (`regions.py`), and an image in which
    nothing is left to learn from is left out of the training split. Kept, but noted: a box that reaches out
    of the image (clipped to it), inverted (its corners are swapped), smaller than a pixel, or given as parts
    of the picture; an image with no object (all of it is background), a file that is several images, a class
    with no object in the training split (nothing can learn it).

    Args:
      name: of the dataset, and of its folder in the cache.
      made_from: JSON-able; everything the records follow from, see `prepared.prepare_folder`.
      read: called only when the data is not in the cache, with a Report for what it leaves out or finds odd;
        gives the classes and for "train" and "validation" the pictures in order.
      expected: what should have been where, for the error when there is nothing to train on.
      orientation: how boxes count the pixels of a photograph that its EXIF turns, see `images.open_image`.
      cache_dir: see `cache.cache_root`.

    Raises:
      DataError: when the training split shows no object, or the cache cannot be written.
    """

    def build(temporary: pathlib.Path, advance: prepared.Advance) -> None:
        report = Report([], [])
        classes, splits, category_ids = read(report)
        seen = _write(temporary, splits, report, advance, orientation)
        if not seen:
            found = report.gathered().report()
            raise DataError(f"{name}: no object to train on ({found}): expected {expected}")
        for label, title in enumerate(classes, 1):
            if label not in seen:
                report.note("class never seen in training", title)
        skipped = dataclasses.asdict(report.gathered())
        ids = category_ids or tuple(range(1, len(classes) + 1))
        summary = {"classes": classes, "category_ids": ids, "skipped": skipped}
        (temporary / _SUMMARY).write_text(json.dumps(summary))

    folder = prepared.prepare_folder(
        name,
        made_from={**made_from, "orientation": orientation, "records": code_hash(__file__)},
        build=build,
        cache_dir=cache_dir,
    )
    return _load(folder, name)


def _write(
    folder: pathlib.Path,
    splits: Splits,
    report: Report,
    advance: prepared.Advance,
    orientation: images.Orientation,
) -> set[int]:
    """Fills `folder` but for the summary; gives the labels seen in training."""
    counts: dict[str, list[tuple[int, int]]] = {split: [] for split in prepared.SPLITS}
    seen: dict[str, set[int]] = {split: set() for split in prepared.SPLITS}
    files: dict[pathlib.Path, str] = {}
    examples = {
        split: _examples(
            _note_shared(splits.get(split, ()), split, files, report),
            functools.partial(_check, training=split == "train", orientation=orientation),
            counts[split],
            seen[split],
            report,
            advance,
        )
        for split in counts
    }
    prepared.write_examples(folder, _FEATURES, examples)
    for split, objects in counts.items():
        columns = np.array(objects, np.int32).reshape(-1, 2).T
        np.save(folder / f"{split}_objects.npy", columns, allow_pickle=False)
    return seen["train"]


def _note_shared(
    pictures: Iterable[ObjectPicture], split: str, files: dict[pathlib.Path, str], report: Report
) -> Iterator[ObjectPicture]:
    """The pictures; notes those whose file was there before, in the split that `files` says."""
    for picture in pictures:
        if isinstance(picture.image, pathlib.Path):
            before = files.get(picture.image)
            if before is not None:
                report.note(_TWICE if before == split else _IN_BOTH, picture.name)
            files.setdefault(picture.image, split)
        yield picture


def _examples(
    given: Iterable[ObjectPicture],
    check: Callable[[ObjectPicture], tuple[ObjectPicture | None, Report]],
    counts: list[tuple[int, int]],
    seen: set[int],
    report: Report,
    advance: prepared.Advance,
) -> Iterator[dict]:
    for picture, found in images.in_threads(check, given):
        report.skipped.extend(found.skipped)
        report.noted.extend(found.noted)
        if picture is None:
            continue
        advance()
        targets = (picture.labels > 0) & ~picture.difficult
        counts.append((len(picture.labels), int(targets.sum())))
        seen.update(picture.labels[picture.labels > 0].tolist())
        yield {
            "name": picture.name,
            "image_id": picture.image_id,
            "image": picture.image,
            "boxes": picture.boxes,
            "labels": picture.labels,
            "difficult": picture.difficult,
            "crowd": picture.crowd,
        }


def _check(
    picture: ObjectPicture, *, training: bool, orientation: images.Orientation
) -> tuple[ObjectPicture | None, Report]:
    """The picture with its image's bytes and the boxes that can be used, or None; and what was found."""
    report = Report([], [])
    extent = None if picture.relative else _extent(picture.boxes)
    opened = images.open_image(picture.image, picture.size, orientation=orientation, extent=extent)
    if isinstance(opened, str):
        report.skip(opened, picture.name)
        return None, report
    encoded, size, odd = opened
    if odd is not None:
        report.note(odd, picture.name)
    found = _usable_boxes(picture, size, report)
    left_out = _why_left_out(picture, found, size) if training else None
    if left_out:
        report.skip(left_out, picture.name)
        return None, report
    there = [place for place, one in enumerate(found) if one.box is not None]
    if not there:
        report.note("image with no object (all background)", picture.name)
    # Of a region that is left alone the class does not matter, and is not to be looked for.
    alone = np.array([not found[place].is_object for place in there], bool)
    labels = np.where(alone, 0, np.asarray(picture.labels, np.int32)[there])
    crowd = np.zeros(len(picture.labels), bool) if picture.crowd is None else np.asarray(picture.crowd, bool)
    usable = picture._replace(
        image=encoded,
        boxes=np.array([found[place].box for place in there], np.float32).reshape(-1, 4),
        labels=labels.astype(np.int32),
        difficult=np.asarray(picture.difficult, bool)[there] | (labels == 0),
        crowd=crowd[there] | (labels == 0),
    )
    return usable, report


def _extent(boxes: np.ndarray) -> tuple[float, float] | None:
    """(x, y) that the boxes reach; None where no number says."""
    corners = np.asarray(boxes, np.float64).reshape(-1, 2)
    corners = corners[np.isfinite(corners).all(-1)]
    return tuple(corners.max(0)) if len(corners) else None


def _usable_boxes(picture: ObjectPicture, size: tuple[int, int], report: Report) -> list[Usable]:
    """What becomes of each object of the picture; what is wrong or odd goes into the report."""
    given = np.asarray(picture.boxes, np.float64).reshape(-1, 4)
    if picture.relative and len(given):
        given = given * np.tile(np.array(size[::-1], np.float64), 2)
        report.note("boxes in 0..1, taken for parts of the picture's width and height", picture.name)
    found = [usable_box(box, size) for box in given]
    for one, title in zip(found, picture.names, strict=True):
        if one.problem:
            report.skip(one.problem, f"{picture.name}#{title}")
        elif one.note:
            report.note(one.note, f"{picture.name}#{title}")
    return found


def _why_left_out(picture: ObjectPicture, found: Sequence[Usable], size: tuple[int, int]) -> str | None:
    """Why there is nothing to learn from in a picture whose objects have boxes that cannot be used."""
    if found and all(one.box is None for one in found):
        return ELSEWHERE
    pairs = zip(found, picture.labels, picture.difficult, strict=True)
    if any(one.is_object and label and not difficult for one, label, difficult in pairs):
        return None
    regions = (one.box for one in found if one.box is not None and not one.is_object)
    return UNPLACED if any(is_whole(box, size) for box in regions) else None


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
        classes, ids = tuple(summary["classes"]), tuple(summary["category_ids"])
        return DetectionDataset(name, classes, train, validation, skipped, folder, ids)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise prepared.damaged(folder, error) from error
