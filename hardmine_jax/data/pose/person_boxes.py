"""A detector's boxes of people, as records that are cropped and evaluated as the labelled people are.

    [{"image_id": 139, "category_id": 1, "bbox": [x, y, width, height], "score": 0.98}, ...]

COCO's results format, in which detections for val2017 are published; x and y are pixels of the image as the
annotation file counts them. A record is one of `data/pose/records.py` with nothing labelled, and "box_score"
float32. `data/pose/augment.evaluate_crop` takes it as it is, widens the box to the crop's aspect and pads by
1.25.
"""

import dataclasses
import json
import math
import operator
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from hardmine_jax.data import coco_json, listing
from hardmine_jax.data.coco_json import Category, id_number
from hardmine_jax.data.images import Orientation, oriented, read_file
from hardmine_jax.data.problems import DataError, Skipped, UnreadableImage, gather, printable
from hardmine_jax.data.records import Records


class Images(Protocol):
    """Pictures by the id that records have, and their file names."""

    ids: Collection[int]
    names: Mapping[int, str]

    def read(self, image_id: int) -> tuple[str, bytes]:
        """Name and encoded bytes of one; raises UnreadableImage."""


class SourceImages:
    """The pictures of a source of records: those that show somebody labelled. Reads it once for the ids."""

    def __init__(self, source: Records):
        self._source = source
        self._rows: dict[int, int] = {}
        names: dict[int, str] = {}
        for row in range(len(source)):
            record = source[row]
            image_id = int(record["image_id"])
            self._rows.setdefault(image_id, row)
            names.setdefault(image_id, record["name"])
        self.names: Mapping[int, str] = names
        self.ids: Collection[int] = self._rows.keys()

    def read(self, image_id: int) -> tuple[str, bytes]:
        record = self._source[self._rows[image_id]]
        return record["name"], record["image"]


class CocoImages:
    """All pictures that a COCO file lists, with people or without: on the latter, too, a detector may err.

    `orientation` as for `coco.load`, so that pixels are those of the people's records.
    """

    def __init__(self, file: coco_json.File, orientation: Orientation = "auto"):
        self._folder, self._orientation = file.folder, orientation
        self._images: dict[int, tuple[pathlib.Path, tuple[int, int] | None]] = {}
        for image_id, image in coco_json.listed_images(file).images.items():
            path = listing.inside(file.folder, image.get("file_name"))
            if path is not None:
                self._images[listing.id_number(image_id)] = path, coco_json.listed_size(image)
        self.names: Mapping[int, str] = {
            number: path.relative_to(self._folder).as_posix() for number, (path, _) in self._images.items()
        }
        self.ids: Collection[int] = self._images.keys()

    def read(self, image_id: int) -> tuple[str, bytes]:
        path, size = self._images[image_id]
        try:
            encoded = oriented(read_file(path), size, self._orientation)
        except OSError as error:
            raise UnreadableImage(f"{path}: {error.strerror or error}") from error
        return path.relative_to(self._folder).as_posix(), encoded


@dataclasses.dataclass(frozen=True)
class PersonBoxes:
    """The boxes of a detector: a source of records by position.

    Attributes:
      image_ids: int64 [N].
      boxes: float32 [N, 4] xyxy, in pixels of the original image.
      scores: float32 [N], the detector's.
      images: where the pictures are.
      num_keypoints: K of the records.
      skipped: what was left out, and why.
    """

    image_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    images: Images
    num_keypoints: int
    skipped: Skipped

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> dict:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"box {index} of {len(self)}")
        index %= len(self)
        name, image = self.images.read(int(self.image_ids[index]))
        box = self.boxes[index]
        return {
            "image": image,
            "keypoints": np.zeros((self.num_keypoints, 2), np.float32),
            "visibility": np.zeros(self.num_keypoints, np.int32),
            "box": box,
            "box_score": self.scores[index],
            "area": np.prod(box[2:] - box[:2]),
            "image_id": self.image_ids[index],
            "annotation_id": np.int64(index),
            "name": name,
            "index": index,
        }


def load(
    path: str | os.PathLike,
    images: Images,
    *,
    num_keypoints: int,
    category_id: int | str = 1,
    categories: Sequence[Category] = (),
    other_ids: Collection[int | str] = (),
    given: str | None = None,
    min_score: float = -math.inf,
) -> PersonBoxes:
    """Reads a detector's JSON; what cannot be used is counted and left out.

    Taken are boxes of the category's name, where the detector writes names (`category`), else of its id.
    Where there are none and all boxes are of one category, which is no other of the data's (some detectors
    count from 0, some have but one class), those are, and that is noted. Boxes of no category always are.

    Args:
      path: the JSON file.
      images: where the pictures are, and which there are.
      num_keypoints: K of the skeleton.
      category_id: of people; categories: in place of it, with names; other_ids: of the data's others.
      given: id or name by which the detector knows people, in place of all that.
      min_score: boxes with a lower score are left out; the published evaluation takes all.

    Raises:
      DataError: no such file, no JSON of that shape, or no box left.
    """
    file = pathlib.Path(path).expanduser()
    entries = _entries(file)
    categories = categories or (Category(category_id, ""),)
    taken, note = _taken(entries, categories, {str(other) for other in other_ids}, given)
    found, problems, noted = [], [], []
    find_image = _make_find(images)
    for position, entry in enumerate(entries):
        box = _box(entry, taken=taken, find_image=find_image, min_score=min_score)
        if isinstance(box, str):
            problems.append((box, f"box {position}"))
        else:
            found.append(box)
            noted += [(note, f"box {position}")] if note else []
    skipped = gather(problems, noted)
    if not found:
        raise DataError(
            f"no box of {file} can be used ({skipped.report()}): expected {_shape(categories[0].id)}"
        )
    image_ids, corners, scores = zip(*found, strict=True)
    arrays = np.asarray(image_ids, np.int64), np.asarray(corners, np.float32), np.asarray(scores, np.float32)
    return PersonBoxes(*arrays, images, num_keypoints, skipped)


def _entries(path: pathlib.Path) -> list:
    shape = _shape(1)
    if not path.is_file():
        raise DataError(f"no file {path}: give a detector's results as JSON, {shape}")
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON ({error}): expected {shape}") from error
    if not isinstance(entries, list):
        raise DataError(f"{path} is JSON but no list of detections: expected {shape}")
    return entries


def _shape(category_id: int | str) -> str:
    number = json.dumps(category_id)
    return (
        f'[{{"image_id": 139, "category_id": {number}, "bbox": [x, y, width, height], "score": 0.98}}, ...]'
    )


class Key(NamedTuple):
    """The category of an entry: its id as text, its name without capitals; None where it has none."""

    id: str | None
    name: str | None

    def is_called(self, given: str) -> bool:
        """Whether that is its id or its name."""
        return given == self.id or given.casefold() == self.name


def category_key(entry: object) -> Key | None:
    """The category that an entry names; None where it names none.

    >>> category_key({"category_id": 2.0, "category": "Mouse"}), category_key({"bbox": [1, 2, 3, 4]})
    (Key(id='2', name='mouse'), None)
    """
    if not isinstance(entry, dict) or not entry.keys() & {"category_id", "category", "category_name"}:
        return None
    number = coco_json.whole_id(entry.get("category_id"))
    name = entry.get("category", entry.get("category_name"))
    return Key(
        None if number is None else str(number), name.casefold() if isinstance(name, str) and name else None
    )


def _taken(
    entries: Sequence[object], categories: Sequence[Category], others: Collection[str], given: str | None
) -> tuple[set[Key], str]:
    """The categories that are taken, and what is odd about that, if anything is."""
    keys = {key for entry in entries if (key := category_key(entry)) is not None}
    if given is not None:
        return {key for key in keys if key.is_called(given)}, ""
    names, numbers = {one.name.casefold() for one in categories}, {str(one.id) for one in categories}
    found = {key for key in keys if key.name in names} or {key for key in keys if key.id in numbers}
    ids = {key.id for key in keys if key.id is not None}
    if found or len(ids) != 1 or ids & set(others):
        return found, ""
    wanted = ", ".join(f"{printable(one.name)} (id {one.id})".strip() for one in categories)
    return {
        key for key in keys if key.id in ids
    }, f"of category {ids.pop()}, the only one, taken for {wanted}"


def read_box(entry: Mapping, *, score: float | None = None) -> tuple[list[float], float] | str:
    """(xyxy, score) of a detection, or the reason why there is none.

    Args:
      score: of one that has none; without it, it must have one.
    """
    if entry.get("bbox") is None:
        return "no bbox"
    if "score" not in entry and score is None:
        return "no score"
    try:
        sides = [_number(side) for side in _four(entry["bbox"])]
    except (ValueError, TypeError, OverflowError):
        return "bbox that is not 4 numbers"
    try:
        sure = _number(entry.get("score", score))
    except (ValueError, TypeError, OverflowError):
        return "score that is no number"
    corners = [*sides[:2], sides[0] + sides[2], sides[1] + sides[3]]
    # In float32, as records have it: a box far out may lose its sides there, or be too large for it.
    with np.errstate(over="ignore", invalid="ignore"):
        single = np.asarray(corners, np.float32)
        extent = single[2:] - single[:2]
        finite = np.isfinite([*single, np.prod(extent), np.float32(sure)]).all()
    if not finite:
        return "bbox or score that is no finite number"
    return (corners, sure) if (extent > 0).all() else "box of no area"


def _four(sides: object) -> Sequence:
    if not isinstance(sides, list | tuple) or len(sides) != 4:
        raise ValueError(f"{sides!r:.40} is not 4 numbers")
    return sides


def _number(given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise TypeError(f"{given!r:.40} is no number")
    return float(given)


def _make_find(images: Images) -> Callable[[dict], int | str]:
    """`entry -> the id of its image`, or the reason why there is none."""
    paths = {number: _parts(name) for number, name in images.names.items()}
    by_last: dict[str, list[int]] = {}
    for number, parts in paths.items():
        for last in {parts[-1], _stem(parts[-1])} if parts else ():
            by_last.setdefault(last, []).append(number)

    def find_image(entry: dict) -> int | str:
        image_id, name = id_number(entry.get("image_id")), entry.get("file_name")
        parts = _parts(name) if isinstance(name, str) else []
        if not parts:
            return "image not in the dataset" if image_id is None or image_id not in images.ids else image_id
        # By another ending where there is none of its own: a detector may have seen converted files.
        for last in (parts[-1], _stem(parts[-1])):
            alike = [number for number in by_last.get(last, ()) if _same_folders(paths[number], parts)]
            if image_id in alike or len(alike) == 1:
                return image_id if image_id is not None and image_id in alike else alike[0]
            if alike:
                return "file_name of several images"
        return "file_name of no image"

    return find_image


def _parts(name: str) -> list[str]:
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def _stem(name: str) -> str:
    return pathlib.PurePosixPath(name).stem


def _same_folders(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the folders of one path are the end of the other's."""
    return all(a == b for a, b in zip(one[-2::-1], other[-2::-1], strict=False))


def _box(
    entry: object, *, taken: Collection[Key], find_image: Callable[[dict], int | str], min_score: float
) -> tuple[int, list[float], float] | str:
    """(image id, xyxy, score), or the reason why there is none."""
    if not isinstance(entry, dict):
        return "no object of names and values"
    if "image_id" not in entry and "file_name" not in entry:
        return "no image_id"
    key = category_key(entry)
    if key is not None and key not in taken:
        return "another category"
    image_id = find_image(entry)
    if isinstance(image_id, str):
        return image_id
    box = read_box(entry)
    if isinstance(box, str):
        return box
    corners, score = box
    return (image_id, corners, score) if score >= min_score else f"score below {min_score:g}"
