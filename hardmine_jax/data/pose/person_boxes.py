"""A detector's boxes of people, as records that are cropped and evaluated as the labelled people are.

    [{"image_id": 139, "category_id": 1, "bbox": [x, y, width, height], "score": 0.98}, ...]

COCO's results format, in which detections for val2017 are published; x and y are pixels of the image as the
annotation file counts them. A record is one of `data/pose/records.py` with nothing labelled, and "box_score"
float32. `data/pose/augment.evaluate_crop` takes it as it is, widens the box to the crop's aspect and pads by
1.25.
"""

import dataclasses
import json
import operator
import os
import pathlib
from collections.abc import Collection
from typing import Protocol

import numpy as np

from hardmine_jax.data import coco_json, listing
from hardmine_jax.data.coco_json import id_number
from hardmine_jax.data.images import Orientation, oriented, read_file
from hardmine_jax.data.problems import DataError, Skipped, UnreadableImage, gather
from hardmine_jax.data.records import Records

_SHAPE = '[{"image_id": 139, "category_id": 1, "bbox": [x, y, width, height], "score": 0.98}, ...]'


class Images(Protocol):
    """Pictures by the id that records have."""

    ids: Collection[int]

    def read(self, image_id: int) -> tuple[str, bytes]:
        """Name and encoded bytes of one; raises UnreadableImage."""


class SourceImages:
    """The pictures of a source of records: those that show somebody labelled. Reads it once for the ids."""

    def __init__(self, source: Records):
        self._source = source
        self._rows = {int(source[row]["image_id"]): row for row in reversed(range(len(source)))}
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
    min_score: float = 0.0,
) -> PersonBoxes:
    """Reads a detector's boxes.

    Left out and counted in `skipped`: a box of another category, on a picture that `images` does not have,
    without area, with a number that is none or not finite, or with a score below `min_score`.

    Args:
      path: the JSON file.
      images: `CocoImages`, or `SourceImages` of a split.
      num_keypoints: K of the skeleton.
      category_id: of people.
      min_score: boxes with a lower score are left out; the published evaluation takes all.

    Raises:
      DataError: no such file, no JSON of that shape, or no box left.
    """
    file = pathlib.Path(path).expanduser()
    found, problems = [], []
    for position, entry in enumerate(_entries(file)):
        box = _box(entry, category_id=category_id, images=images, min_score=min_score)
        if isinstance(box, str):
            problems.append((box, f"box {position}"))
        else:
            found.append(box)
    skipped = gather(problems)
    if not found:
        raise DataError(f"no box of {file} can be used ({skipped.report()}): expected {_SHAPE}")
    image_ids, corners, scores = zip(*found, strict=True)
    arrays = np.asarray(image_ids, np.int64), np.asarray(corners, np.float32), np.asarray(scores, np.float32)
    return PersonBoxes(*arrays, images, num_keypoints, skipped)


def _entries(path: pathlib.Path) -> list:
    if not path.is_file():
        raise DataError(f"no file {path}: give a detector's results as JSON, {_SHAPE}")
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON ({error}): expected {_SHAPE}") from error
    if not isinstance(entries, list):
        raise DataError(f"{path} is JSON but no list of detections: expected {_SHAPE}")
    return entries


def _box(
    entry: object, *, category_id: int | str, images: Images, min_score: float
) -> tuple[int, list[float], float] | str:
    """(image id, xyxy, score), or the reason why there is none."""
    if not isinstance(entry, dict) or not entry.keys() >= {"image_id", "bbox", "score"}:
        return "no image_id, bbox or score"
    if str(coco_json.whole_id(entry.get("category_id", category_id))) != str(category_id):
        return "another category"
    image_id = id_number(entry["image_id"])
    if image_id is None or image_id not in images.ids:
        return "image not in the dataset"
    try:
        x, y, width, height = (float(number) for number in entry["bbox"])
        score = float(entry["score"])
    except (ValueError, TypeError, OverflowError):
        return "bbox or score that is no number, or not 4 of them"
    corners = [x, y, x + width, y + height]
    # In float32, as records have it: a box far out may lose its sides there, or be too large for it.
    with np.errstate(over="ignore", invalid="ignore"):
        single = np.asarray(corners, np.float32)
        sides = single[2:] - single[:2]
        finite = np.isfinite([*single, np.prod(sides), np.float32(score)]).all()
    if not finite:
        return "bbox or score that is no finite number"
    if not (sides > 0).all():
        return "box of no area"
    return (image_id, corners, score) if score >= min_score else f"score below {min_score:g}"
