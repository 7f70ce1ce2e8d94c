"""Prepared people: a tensorflow-datasets builder in array_record (no TensorFlow needed) with one example an
image, read as one record a person.

A record is numpy: "image" bytes as they stood in the file, "keypoints" float32 [K, 2] in pixels of that
image, "visibility" int32 [K] (0 not labelled or outside, 1 occluded, 2 visible), "box" float32 [4] xyxy,
"area" float32 square pixels, "image_id", "annotation_id", "index" (position in the source) int, "name" str.
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

from hardmine_jax.data import prepared
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.images import in_threads, open_image
from hardmine_jax.data.problems import DataError, Skipped, gather
from hardmine_jax.data.records import Records
from hardmine_jax.pose import Skeleton

_SUMMARY = "summary.json"


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
Skip = Callable[[str, str], None]


@dataclasses.dataclass(frozen=True)
class PoseDataset:
    """A prepared dataset: two sources of records, what they have in common, and what was left out."""

    name: str
    skeleton: Skeleton
    train: Records
    validation: Records
    skipped: Skipped
    folder: pathlib.Path


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
    read: Callable[[Skip], tuple[Skeleton, Splits]],
    expected: str,
    cache_dir: str | os.PathLike | None = None,
) -> PoseDataset:
    """The dataset from the cache, or made now and put there.

    Args:
      name: of the dataset, and of its folder in the cache.
      made_from: JSON-able; everything the records follow from (paths, hashes of files, options, the
        `code_hash` of the file that `read` is in). The code that all datasets share is added here.
      read: called only when the data is not in the cache, with `skip(reason, name)` for what it leaves out;
        gives the skeleton and for "train" and "validation" the pictures in order. Their people need a box and
        an area; `usable` fills both in, and takes out what cannot be trained on.
      expected: what should have been where, for the error when there is nobody to train on.
      cache_dir: see `cache.cache_root`.

    Raises:
      DataError: when nobody usable is in the training split, or the cache cannot be written.
    """

    def build(temporary: pathlib.Path, advance: prepared.Advance) -> None:
        problems: list[tuple[str, str]] = []
        skeleton, splits = read(lambda reason, record: problems.append((reason, record)))
        _write(temporary, skeleton, splits, problems, advance)
        if not len(PersonSource(temporary, "train")):
            raise DataError(f"{name}: nobody to train on ({gather(problems).report()}): expected {expected}")

    folder = prepared.prepare_folder(
        name, made_from={**made_from, "records": code_hash(__file__)}, build=build, cache_dir=cache_dir
    )
    return _load(folder, name)


def _write(
    folder: pathlib.Path,
    skeleton: Skeleton,
    splits: Splits,
    problems: list[tuple[str, str]],
    advance: prepared.Advance,
) -> None:
    """Fills `folder`; `problems` grows while the pictures are read."""
    people: dict[str, list[tuple[int, int]]] = {split: [] for split in prepared.SPLITS}
    examples = {split: _examples(splits.get(split, ()), people[split], advance) for split in people}
    prepared.write_examples(folder, _features(skeleton.num_keypoints), examples)
    for split, index in people.items():
        np.save(folder / f"{split}_people.npy", np.array(index, np.int32).reshape(-1, 2), allow_pickle=False)
    summary = {"skeleton": dataclasses.asdict(skeleton), "skipped": gather(problems).reasons}
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
        skipped = Skipped({reason: tuple(names) for reason, names in summary["skipped"].items()})
        train, validation = PersonSource(folder, "train"), PersonSource(folder, "validation")
        return PoseDataset(name, Skeleton(**summary["skeleton"]), train, validation, skipped, folder)
    except (OSError, ValueError, KeyError) as error:
        raise prepared.damaged(folder, error) from error


def usable(pictures: Iterable[Picture], skip: Callable[[str, str], None]) -> Iterator[Picture]:
    """Reads and decodes every image and passes on, in order, what can be trained on, images as bytes.

    Calls `skip(reason, name)` for each image that is absent, unreadable or not of the picture's `size`, and
    each person without a labelled keypoint inside the image or without a box of some area. Keypoints outside
    the image become visibility 0.
    """
    for picture, problems in in_threads(_check, pictures):
        for reason, name in problems:
            skip(reason, name)
        if picture.people:
            yield picture


def _check(picture: Picture) -> tuple[Picture, list[tuple[str, str]]]:
    opened = open_image(picture.image, picture.size)
    if isinstance(opened, str):
        return picture._replace(people=()), [(opened, picture.name)]
    encoded, size = opened
    people, problems = [], []
    for given in picture.people:
        person = _complete(given, *size)
        problem = _problem(person, boxed=given.box is not None)
        if problem:
            single = len(picture.people) == 1
            problems.append((problem, picture.name if single else f"{picture.name}#{person.annotation_id}"))
        else:
            people.append(person)
    return picture._replace(image=encoded, people=tuple(people)), problems


def _complete(person: Person, height: int, width: int) -> Person:
    """The person with keypoints outside the image unlabelled, and with box and area filled in."""
    x, y = np.moveaxis(np.asarray(person.keypoints, np.float64), -1, 0)
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)  # False for NaN too.
    labelled = inside & (np.asarray(person.visibility) > 0)
    keypoints = np.where(labelled[:, None], person.keypoints, 0.0)
    box = tight_box(keypoints, labelled) if person.box is None else np.asarray(person.box, np.float64)
    visibility = np.where(labelled, person.visibility, 0)
    # Numbers beyond float32 become infinite, and `_problem` tells.
    with np.errstate(over="ignore", invalid="ignore"):
        area = person.area
        if area is None or not 0 < area < np.inf:
            area = (box[2] - box[0]) * (box[3] - box[1])
        box, area = np.asarray(box, np.float32), float(np.float32(area))
    keypoints, visibility = np.asarray(keypoints, np.float32), np.asarray(visibility, np.int32)
    return Person(keypoints, visibility, box, area, person.annotation_id)


def tight_box(keypoints: np.ndarray, where: np.ndarray) -> np.ndarray:
    """xyxy [4] around the keypoints [K, 2] that take part; zeros where none does.

    >>> tight_box(np.array([[1.0, 2.0], [5.0, 9.0], [99.0, 99.0]]), np.array([True, True, False]))
    array([1., 2., 5., 9.])
    """
    if not where.any():
        return np.zeros(4)
    return np.concatenate([keypoints[where].min(0), keypoints[where].max(0)])


def _problem(person: Person, *, boxed: bool) -> str | None:
    if not person.visibility.any():
        return "no labelled joint inside the image"
    if person.box is None or person.area is None or not np.isfinite([*person.box, person.area]).all():
        return "box or area that is no finite number"
    if (person.box[2:] <= person.box[:2]).any():
        return "box of no area" if boxed else "joints span no area and there is no bbox"
    return None
