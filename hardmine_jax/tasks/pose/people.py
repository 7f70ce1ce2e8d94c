"""Everybody of a split, without the pictures."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from hardmine_jax.data.problems import UnreadableImage
from hardmine_jax.data.records import Records
from hardmine_jax.tasks.rows import evenly_spaced


@dataclasses.dataclass(frozen=True)
class People:
    """Everybody of a split, without the pictures: what predictions are compared with, original pixels.

    Attributes:
      rows: int [N], positions in the source.
      keypoints: float [N, K, 2].
      visibility: int [N, K]; 0 not labelled, 1 occluded, 2 visible.
      box: float [N, 4], the dataset's own, xyxy.
      area: float [N]; image_id, annotation_id: int [N]; names: N strings.
    """

    rows: np.ndarray
    keypoints: np.ndarray
    visibility: np.ndarray
    box: np.ndarray
    area: np.ndarray
    image_id: np.ndarray
    annotation_id: np.ndarray
    names: tuple[str, ...]

    @property
    def labelled(self) -> np.ndarray:
        return self.visibility > 0

    @property
    def boxes(self) -> np.ndarray:
        """Tight boxes around the labelled keypoints, xyxy [N, 4]; the dataset's where that is a point."""
        points, where = self.keypoints, self.labelled[..., None]
        low = np.where(where, points, np.inf).min(1)
        high = np.where(where, points, -np.inf).max(1)
        tight = np.concatenate([low, high], axis=-1)
        return np.where((high > low).any(-1, keepdims=True), tight, self.box)


def read_people(source: Records, rows: Iterable[int], *, skip_unreadable: bool = False) -> People:
    """The labels of some records of a source."""
    names = ("index", "keypoints", "visibility", "box", "area", "image_id", "annotation_id", "name")
    people = []
    # One record at a time: its picture is dropped before the next is read.
    for row in rows:
        try:
            record = source[int(row)]
        except UnreadableImage:
            if not skip_unreadable:
                raise
            continue
        people.append([record[name] for name in names])
    *columns, labels = zip(*people, strict=True)
    index, keypoints, visibility, box, area, image_id, annotation_id = map(np.stack, columns)
    return People(index, keypoints, visibility, box, area, image_id, annotation_id, labels)


def mean_pose(people: People) -> np.ndarray:
    """[K, 2]: where each keypoint lies on average in the box around a person, as a share of its sides."""
    boxes, where = people.boxes[:, None], people.labelled
    shares = (people.keypoints - boxes[..., :2]) / np.maximum(boxes[..., 2:] - boxes[..., :2], 1e-6)
    counts = np.maximum(where.sum(0), 1)[:, None]
    return np.where(where[..., None], shares, 0.0).sum(0) / counts


def place_pose(pose: np.ndarray, people: People) -> np.ndarray:
    """The same pose [K, 2] in everybody's box: [N, K, 2]."""
    boxes = people.boxes[:, None]
    return boxes[..., :2] + pose * (boxes[..., 2:] - boxes[..., :2])


def mean_pose_of(source: Records, *, num_people: int = 5000) -> np.ndarray:
    """[K, 2]: the average pose in the box, in shares of its sides, of at most so many people."""
    rows = evenly_spaced(len(source), num_people)
    return mean_pose(read_people(source, rows, skip_unreadable=True))
