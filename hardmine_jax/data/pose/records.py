"""Prepared people: a tensorflow-datasets builder in array_record (no TensorFlow needed) with one example an
image, read as one record a person.

A record is numpy: "image" bytes as they stood in the file (without EXIF orientation where labels count the
pixels as stored), "keypoints" float32 [K, 2] in pixels of that
image, "visibility" int32 [K] (0 not labelled or outside, 1 occluded, 2 visible), "box" float32 [4] xyxy,
"area" float32 square pixels, "image_id", "annotation_id", "index" (position in the source) int, "name" str.
"""

import dataclasses
import functools
import json
import math
import operator
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from hardmine_jax.data import prepared
from hardmine_jax.data.coco_json import Category
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.images import Orientation, in_threads, open_image
from hardmine_jax.data.problems import DataError, Report, Skipped
from hardmine_jax.data.records import Records
from hardmine_jax.errors import UserError
from hardmine_jax.pose import Skeleton

_SUMMARY = "summary.json"
# Room around a person's box in a crop, as in `augment.AugmentConfig`.
_PADDING = 1.25
# Of a box made around joints because there is none of any area, on each side: a share of its longer side.
_MARGIN = 0.1


class Person(NamedTuple):
    """One labelled person: keypoints [K, 2], visibility [K], box [4] xyxy, area in square pixels.

    `box` None means the tight box around the labelled keypoints, `area` None the area of the box.
    """

    keypoints: np.ndarray
    visibility: np.ndarray
    box: np.ndarray | None = None
    area: float | None = None
    annotation_id: int = 0


class Picture(NamedTuple):
    """One image, as encoded bytes or the path of a file, with its people.

    `size` is the (H, W) that the people's pixels refer to, None where nobody says; see `usable`.
    """

    name: str
    image_id: int
    image: bytes | pathlib.Path
    people: tuple[Person, ...]
    size: tuple[int, int] | None = None


# What `read` of a dataset's file gives: its skeleton, and the pictures of each split in order.
Splits = Mapping[str, Iterable[Picture]]


@dataclasses.dataclass(frozen=True)
class PoseDataset:
    """A prepared dataset: two sources of records, what they have in common, and what was left out.

    `categories` are those of its COCO file that are trained on; none where there is no such file.
    """

    name: str
    skeleton: Skeleton
    train: Records
    validation: Records
    skipped: Skipped
    folder: pathlib.Path
    categories: tuple[Category, ...] = ()


class PersonSource:
    """Random access to the records of a split; what grain calls a RandomAccessDataSource.

    Opens its files at the first record, so it pickles small and each worker process gets its own readers.
    """

    def __init__(self, folder: pathlib.Path, split: str):
        self._examples = prepared.ExampleReader(folder, split)
        # [P, 2]: which example of the split, which person in it.
        self._people = np.load(folder / f"{split}_people.npy", allow_pickle=False)

    def __len__(self) -> int:
        return len(self._people)

    @property
    def num_images(self) -> int:
        """How many images the records are on."""
        return len(np.unique(self._people[:, 0]))

    def __getitem__(self, index: int) -> dict:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self!r}")
        index %= len(self)
        example_index, person = (int(value) for value in self._people[index])
        example = self._examples[example_index]
        return {
            "image": example["image"],
            "keypoints": example["keypoints"][person],
            "visibility": example["visibility"][person],
            "box": example["box"][person],
            "area": example["area"][person],
            "image_id": np.int64(example["image_id"]),
            "annotation_id": example["annotation_id"][person],
            "name": example["name"].decode(),
            "index": index,
        }

    def __repr__(self) -> str:
        return f"PersonSource({self._examples!r}, {len(self)} people)"


def _features(num_keypoints: int) -> dict:
    features = tfds.features
    return {
        "keypoints": features.Tensor(shape=(None, num_keypoints, 2), dtype=np.float32),
        "visibility": features.Tensor(shape=(None, num_keypoints), dtype=np.int32),
        "box": features.Tensor(shape=(None, 4), dtype=np.float32),
        "area": features.Tensor(shape=(None,), dtype=np.float32),
        "annotation_id": features.Tensor(shape=(None,), dtype=np.int64),
    }


def _columns(people: tuple[Person, ...]) -> dict[str, np.ndarray]:
    return {
        "keypoints": np.stack([np.float32(person.keypoints) for person in people]),
        "visibility": np.stack([np.int32(person.visibility) for person in people]),
        "box": np.stack([np.float32(person.box) for person in people]),
        "area": np.stack([np.float32(person.area) for person in people]),
        "annotation_id": np.stack([np.int64(person.annotation_id) for person in people]),
    }


def prepare(
    name: str,
    *,
    made_from: dict,
    read: Callable[[Report], tuple[Skeleton, Splits]],
    expected: str,
    cache_dir: str | os.PathLike | None = None,
) -> PoseDataset:
    """The dataset from the cache, or made now and put there.

    Args:
      name: of the dataset, and of its folder in the cache.
      made_from: JSON-able; everything the records follow from (paths, hashes of files, options, the
        `code_hash` of the file that `read` is in). The code that all datasets share is added here.
      read: called only when the data is not in the cache, with a Report for what it leaves out or finds odd;
        gives the skeleton and for "train" and "validation" the pictures in order. Their people need a box and
        an area; `usable` fills both in, and takes out what cannot be trained on.
      expected: what should have been where, for the error when there is nobody to train on.
      cache_dir: see `cache.cache_root`.

    Raises:
      DataError: when nobody usable is in the training split, or the cache cannot be written.
    """

    def build(temporary: pathlib.Path, advance: prepared.Advance) -> None:
        report = Report([], [])
        skeleton, splits = read(report)
        _write(temporary, skeleton, splits, report, advance)
        if not len(PersonSource(temporary, "train")):
            found = report.gathered().report()
            raise DataError(f"{name}: nobody to train on ({found}): expected {expected}")

    folder = prepared.prepare_folder(
        name, made_from={**made_from, "records": code_hash(__file__)}, build=build, cache_dir=cache_dir
    )
    return _load(folder, name)


def _write(
    folder: pathlib.Path,
    skeleton: Skeleton,
    splits: Splits,
    report: Report,
    advance: prepared.Advance,
) -> None:
    """Fills `folder`; `report` grows while the pictures are read."""
    people: dict[str, list[tuple[int, int]]] = {split: [] for split in prepared.SPLITS}
    examples = {split: _examples(splits.get(split, ()), people[split], advance) for split in people}
    prepared.write_examples(folder, _features(skeleton.num_keypoints), examples)
    for split, index in people.items():
        np.save(folder / f"{split}_people.npy", np.array(index, np.int32).reshape(-1, 2), allow_pickle=False)
    skipped = dataclasses.asdict(report.gathered())
    summary = {"skeleton": dataclasses.asdict(skeleton), "skipped": skipped}
    (folder / _SUMMARY).write_text(json.dumps(summary))


def _examples(
    pictures: Iterable[Picture], index: list[tuple[int, int]], advance: prepared.Advance
) -> Iterator[dict]:
    for example, picture in enumerate(pictures):
        advance()
        index.extend((example, person) for person in range(len(picture.people)))
        image = {"name": picture.name, "image_id": picture.image_id, "image": picture.image}
        yield {**image, **_columns(picture.people)}


def _load(folder: pathlib.Path, name: str) -> PoseDataset:
    try:
        summary = json.loads((folder / _SUMMARY).read_text())
        skipped = Skipped(
            **{
                kind: {reason: tuple(names) for reason, names in found.items()}
                for kind, found in summary["skipped"].items()
            }
        )
        train, validation = PersonSource(folder, "train"), PersonSource(folder, "validation")
        return PoseDataset(name, Skeleton(**summary["skeleton"]), train, validation, skipped, folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise prepared.damaged(folder, error) from error


def usable(
    pictures: Iterable[Picture],
    report: Report,
    *,
    orientation: Orientation = "auto",
    point_side: float | None = None,
) -> Iterator[Picture]:
    """Reads and decodes every image and passes on, in order, what can be trained on, images as bytes.

    Left out: each image that is absent, unreadable or not of the picture's `size`, and each person without a
    labelled keypoint inside the image, or whose box is no finite number or, padded, holds none of them.
    Keypoints outside the image become visibility 0. A box of no area, or a tight one that has none, is made
    anew around the keypoints, with a margin, and noted if it was given. Noted are also labels between 0 and
    1, and photographs that EXIF turns and whose labels fit both ways.

    Args:
      orientation: see `images.open_image`.
      point_side: pixels, of the square made around a single point; a quarter of the image's shorter side by
        default.
    """
    check = functools.partial(_check, orientation=orientation, point_side=point_side)
    for picture, found in in_threads(check, _there(pictures, report)):
        report.skipped.extend(found.skipped)
        report.noted.extend(found.noted)
        if picture.people:
            yield picture


def _there(pictures: Iterable[Picture], report: Report) -> Iterator[Picture]:
    """Those whose file is there: of a million that are absent none has to wait for a thread."""
    for picture in pictures:
        try:
            if not isinstance(picture.image, bytes):
                os.stat(picture.image)
        except FileNotFoundError:
            report.skip("image absent", picture.name)
            continue
        except (OSError, ValueError):
            pass  # `open_image` tells.
        yield picture


def check_point_side(point_side: float | None) -> None:
    """Raises UserError for a side that is none."""
    if point_side is not None and not 0 < point_side < math.inf:
        raise UserError(f"a box around one point of {point_side} pixels: its side must be above 0 and finite")


def _check(picture: Picture, *, orientation: Orientation, point_side: float | None) -> tuple[Picture, Report]:
    report = Report([], [])
    extent = _extent(picture.people) if picture.size is None else None
    opened = open_image(picture.image, picture.size, orientation=orientation, extent=extent)
    if isinstance(opened, str):
        report.skip(opened, picture.name)
        return picture._replace(people=()), report
    if opened.note is not None:
        report.note(opened.note, picture.name)
    people = []
    for given in picture.people:
        single = len(picture.people) == 1
        name = picture.name if single else f"{picture.name}#{given.annotation_id}"
        person, remade = _complete(given, *opened.size, point_side)
        problem = _problem(person, boxed=given.box is not None and not remade)
        if problem:
            report.skip(problem, name)
            continue
        people.append(person)
        if remade and given.box is not None:
            report.note("box of no area (made around the joints)", name)
        if _in_shares(person, boxed=given.box is not None, sides=opened.size):
            report.note("labels between 0 and 1 (shares of the image instead of pixels?)", name)
    return picture._replace(image=opened.encoded, people=tuple(people)), report


def _extent(people: Iterable[Person]) -> tuple[float, float] | None:
    """The largest x and y of labelled keypoints and boxes."""
    points = [person.keypoints[np.asarray(person.visibility) > 0] for person in people]
    boxes = [np.asarray(person.box, np.float64)[None, 2:] for person in people if person.box is not None]
    corners = np.concatenate([np.zeros((0, 2)), *points, *boxes])
    corners = corners[np.isfinite(corners).all(-1)]
    return (float(corners[:, 0].max()), float(corners[:, 1].max())) if len(corners) else None


def _complete(person: Person, height: int, width: int, point_side: float | None) -> tuple[Person, bool]:
    """The person with keypoints outside the image unlabelled, and with box and area filled in.

    Also whether the box was made because there was none of any area.
    """
    x, y = np.moveaxis(np.asarray(person.keypoints, np.float64), -1, 0)
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)  # False for NaN too.
    labelled = inside & (np.asarray(person.visibility) > 0)
    keypoints = np.where(labelled[:, None], person.keypoints, 0.0)
    box = tight_box(keypoints, labelled) if person.box is None else np.asarray(person.box, np.float64)
    visibility = np.where(labelled, person.visibility, 0)
    # Numbers beyond float32 become infinite, and `_problem` tells.
    with np.errstate(over="ignore", invalid="ignore"):
        remade = (
            labelled.any()
            and np.isfinite(box).all()
            and not (np.float32(box[2:]) > np.float32(box[:2])).all()
        )
        if remade:
            side = min(height, width) / 4 if point_side is None else point_side
            box = roomy_box(keypoints, labelled, point_side=side)
        area = person.area
        if area is None or not 0 < area < np.inf:
            area = (box[2] - box[0]) * (box[3] - box[1])
        box, area = np.asarray(box, np.float32), float(np.float32(area))
    keypoints, visibility = np.asarray(keypoints, np.float32), np.asarray(visibility, np.int32)
    return Person(keypoints, visibility, box, area, person.annotation_id), bool(remade)


def roomy_box(keypoints: np.ndarray, where: np.ndarray, *, point_side: float) -> np.ndarray:
    """xyxy [4] around the keypoints [K, 2] that take part, with a margin of a tenth of the longer side.

    Keypoints that lie within one pixel get a square of `point_side`.

    >>> roomy_box(np.array([[10.0, 5.0], [30.0, 5.0]]), np.array([True, True]), point_side=8)
    array([ 8.,  3., 32.,  7.])
    """
    box = tight_box(keypoints, where)
    longer = (box[2:] - box[:2]).max()
    if longer < 1:
        middle = (box[2:] + box[:2]) / 2
        return np.concatenate([middle - point_side / 2, middle + point_side / 2])
    return box + _MARGIN * longer * np.array([-1, -1, 1, 1])


def tight_box(keypoints: np.ndarray, where: np.ndarray) -> np.ndarray:
    """xyxy [4] around the keypoints [K, 2] that take part; zeros where none does.

    >>> tight_box(np.array([[1.0, 2.0], [5.0, 9.0], [99.0, 99.0]]), np.array([True, True, False]))
    array([1., 2., 5., 9.])
    """
    if not where.any():
        return np.zeros(4)
    return np.concatenate([keypoints[where].min(0), keypoints[where].max(0)])


def _problem(person: Person, *, boxed: bool) -> str | None:
    labelled = person.visibility > 0
    if not labelled.any():
        return "no labelled joint inside the image"
    if person.box is None or person.area is None or not np.isfinite([*person.box, person.area]).all():
        return "box or area that is no finite number"
    if not boxed:
        return None
    centre, sides = (person.box[2:] + person.box[:2]) / 2, person.box[2:] - person.box[:2]
    # One pixel more: boxes count from the edge of a pixel or from its centre.
    away = np.abs(person.keypoints[labelled] - centre) > _PADDING * sides / 2 + 1
    if not away.any(-1).all():
        return None
    in_shares = person.box.max() <= 1.5 or person.keypoints[labelled].max() <= 1
    cause = (
        "shares of the image instead of pixels"
        if in_shares
        else "of the picture in another size, or of another"
    )
    return f"box that holds no labelled joint ({cause}?)"


def _in_shares(person: Person, *, boxed: bool, sides: tuple[int, int]) -> bool:
    """Whether all that is known of where a person is lies in the first pixel."""
    points = person.keypoints[person.visibility > 0]
    if max(sides) <= 8 or points.min() < 0 or points.max() > 1:
        return False
    return len(points) > 1 or (boxed and person.box is not None and person.box.max() <= 1.5)
