"""Skeletons on your own pictures, from a checkpoint that `pose_ohkm.py` trained.

    python experiments/predict_pose.py photo.jpg other.jpg --checkpoint workdir --output poses

Writes `<name>_pose.png` for each image, and `keypoints.json`: COCO keypoint results, one entry a person, keypoints
as (x, y, score) in pixels of the image, the centre of its first pixel at 0. Without `--boxes` an image shows one
person who fills it. With `--boxes` (a list of COCO detections, or a COCO file with "images" and "annotations") there
is one person a box; boxes find their image by `file_name`, or by an `image_id` that is the file's name as a number.
Seconds on a laptop CPU.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import cv2
import numpy as np
import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """Predicts keypoints on image files.

    Attributes:
      images: image files.
      checkpoint: the workdir of a training run, or one checkpoint in it.
      boxes: COCO JSON with a box a person, [x, y, width, height] in pixels; None = the whole image.
      output: folder for pictures and keypoints.json.
      min_score: keypoints with a lower score are not drawn; the JSON has them all.
    """

    images: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    checkpoint: pathlib.Path
    boxes: pathlib.Path | None = None
    output: pathlib.Path = pathlib.Path("poses")
    min_score: float = 0.1


class InputError(ValueError):
    """Something the caller gave cannot be used; one line."""


class Photo(NamedTuple):
    """An image as the network reads it, and the people to look for in it."""

    path: pathlib.Path
    encoded: bytes
    image: np.ndarray  # u8 [H, W, 3] RGB
    image_id: int
    boxes: tuple[tuple[float, float, float, float], ...]  # xyxy pixels
    box_scores: tuple[float, ...]
