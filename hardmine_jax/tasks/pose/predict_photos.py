"""Skeletons on your own pictures, from a checkpoint that `hardmine pose train` wrote.

    hardmine pose predict photo.jpg other.jpg --checkpoint WORKDIR --output poses

Writes `<name>_pose.png` for each image, and `keypoints.json`: COCO keypoint results, one entry a person,
keypoints as (x, y, score) in pixels of the image, the centre of its first pixel at 0. Without `--boxes` an
image shows one person who fills it, and is turned upright as its EXIF says. With `--boxes` (a list of COCO
detections, or a COCO file with "images" and "annotations") there is one person a box, in pixels as they are
stored; a box finds its image by `file_name`, or by an `image_id` that is the file's name, as text or number.
Seconds on a laptop CPU.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import cv2
import jax
import numpy as np
import tyro

from hardmine_jax.data.coco_json import whole_id
from hardmine_jax.data.pose.augment import evaluate_crop
from hardmine_jax.data.problems import printable
from hardmine_jax.pose import Skeleton
from hardmine_jax.pose.affine import apply_affine
from hardmine_jax.tasks.exit_codes import run_to_exit_code
from hardmine_jax.tasks.flags import check_numbers
from hardmine_jax.tasks.photos import InputError, photo_id, picture_names, read_photo, write_png
from hardmine_jax.tasks.pose import pictures
from hardmine_jax.tasks.pose.config import TrainedRun, load_run

_BATCH = 16


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Predicts keypoints on image files.

    Attributes:
      images: image files.
      checkpoint: the workdir of a training run, or one checkpoint in it.
      boxes: COCO JSON with a box a person, [x, y, width, height] in pixels; every box in it is taken.
      output: folder for the pictures and keypoints.json.
      min_score: keypoints with a lower score (times the box's) are not drawn; the JSON has them all.
    """

    images: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    checkpoint: pathlib.Path
    boxes: pathlib.Path | None = None
    output: pathlib.Path = pathlib.Path("poses")
    min_score: float = 0.1


class Box(NamedTuple):
    """Where a person is: xyxy in pixels, and how sure the detector was."""

    corners: tuple[float, float, float, float]
    score: float = 1.0


class Photo(NamedTuple):
    """An image file and the people to look for in it; around a box that was given there is to be room."""

    path: pathlib.Path
    encoded: bytes
    image: np.ndarray  # u8 [H, W, 3] RGB
    image_id: int | str
    boxes: tuple[Box, ...]
    is_boxed: bool


Boxes = dict[str, tuple[int | str, list[Box]]]


def read_photos(paths: Sequence[pathlib.Path], boxes: Boxes | None) -> list[Photo]:
    """The images with their boxes; without boxes, one that is the whole image.

    Args:
      boxes: what `read_boxes` gives.

    Raises:
      InputError: a file that is missing or no whole image, or no box for any of the images.
    """
    photos = []
    for position, path in enumerate(paths, start=1):
        encoded, image = _read_image(path, upright=boxes is None)
        image_id: int | str = photo_id(path, position)
        if boxes is None:
            height, width = image.shape[:2]
            whole = Box((-0.5, -0.5, width - 0.5, height - 0.5))
            photos.append(Photo(path, encoded, image, image_id, (whole,), False))
        else:
            keys = (path.name, path.stem, *([str(image_id)] if path.stem.isdecimal() else []))
            image_id, found = next((boxes[key] for key in keys if key in boxes), (image_id, []))
            photos.append(Photo(path, encoded, image, image_id, tuple(found), True))
    if not any(photo.boxes for photo in photos):
        raise InputError(
            f"no box belongs to {paths[0].name} or any other image: each box needs a file_name, "
            "or an image_id that is the file's name, as text or number"
        )
    return photos


def read_boxes(path: pathlib.Path) -> Boxes:
    """Boxes of a COCO JSON by file name, or by image id as text: `{name or id: (image id, boxes)}`.

    Raises:
      InputError: no such file, no JSON of that kind, an id that is none, or a box without area.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["annotations"] if isinstance(content, dict) else content
        images = content["images"] if isinstance(content, dict) else []
        names = {str(_image_id(image["id"])): pathlib.PurePath(image["file_name"]).name for image in images}
        boxes: Boxes = {}
        for entry in entries:
            image_id = _image_id(entry.get("image_id", 0))
            name = entry.get("file_name", names.get(str(image_id)))
            key = str(image_id) if name is None else pathlib.PurePath(name).name
            boxes.setdefault(key, (image_id, []))[1].append(_box(entry))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path} is neither a list of COCO detections nor a COCO file with images and annotations"
        ) from error
    return boxes


def predict_photos(run: TrainedRun, photos: Sequence[Photo]) -> list[np.ndarray]:
    """Keypoints and scores of everybody, an array [people, K, 3] of (x, y, score) for each photo."""
    size, skeleton, padding = run.config.image_size, run.skeleton, run.config.augment.padding
    crops = [
        evaluate_crop(
            _record(photo, box, skeleton),
            size=size,
            skeleton=skeleton,
            # The whole image has its room already.
            padding=padding if photo.is_boxed else 1.0,
        )
        for photo in photos
        for box in photo.boxes
    ]
    predict, batch, found = jax.jit(run.predict), min(_BATCH, len(crops)), []
    for start in range(0, len(crops), batch):
        part = crops[start : start + batch]
        # Filled up to one size, so that the network compiles once.
        filled = part + [part[-1]] * (batch - len(part))
        outputs = jax.device_get(predict(run.variables, np.stack([crop["image"] for crop in filled])))
        for crop, points, scores in zip(part, outputs["keypoints"], outputs["scores"], strict=False):
            original = apply_affine(np.asarray(crop["inverse"], np.float64), np.asarray(points, np.float64))
            found.append(np.column_stack([original, scores]))
    ends = np.cumsum([len(photo.boxes) for photo in photos])[:-1]
    return np.split(np.reshape(found, (len(found), skeleton.num_keypoints, 3)), ends)


def coco_results(photo: Photo, people: np.ndarray) -> list[dict]:
    """COCO keypoint results of [people, K, 3]; a person's score is the keypoints' mean times the box's."""
    results = []
    for box, keypoints in zip(photo.boxes, people, strict=True):
        x1, y1, x2, y2 = box.corners
        results.append(
            {
                "image_id": photo.image_id,
                "file_name": photo.path.name,
                "category_id": 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "keypoints": np.round(keypoints, 3).ravel().tolist(),
                "score": round(float(keypoints[:, 2].mean()) * box.score, 4),
            }
        )
    return results


def draw_people(photo: Photo, people: np.ndarray, skeleton: Skeleton, *, min_score: float) -> np.ndarray:
    """The photo with everybody's skeleton, lines as thick as suits the person's size."""
    image = photo.image
    for box, keypoints in zip(photo.boxes, people, strict=True):
        x1, y1, x2, y2 = box.corners
        where = keypoints[:, 2] * box.score >= min_score
        thickness = max(1, round(max(x2 - x1, y2 - y1) / 110))
        image = pictures.draw_skeleton(image, keypoints[:, :2], where, skeleton, thickness=thickness)
    return image


def run(config: PredictConfig) -> None:
    """Reads everything first, so that what is missing is said before anything is compiled."""
    check_numbers(config)
    if not config.images:
        raise InputError("no image: name at least one file")
    trained = load_run(config.checkpoint)
    boxes = None if config.boxes is None else read_boxes(config.boxes)
    photos = read_photos(config.images, boxes)
    people = predict_photos(trained, photos)
    config.output.mkdir(parents=True, exist_ok=True)
    results, names = [], picture_names(config.images)
    for photo, name, found in zip(photos, names, people, strict=True):
        drawn = draw_people(photo, found, trained.skeleton, min_score=config.min_score)
        picture = config.output / f"{name}_pose.png"
        write_png(picture, drawn)
        results += coco_results(photo, found)
        print(f"{printable(str(photo.path))}: {len(found)} people, {picture}")
    (config.output / "keypoints.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {config.output / 'keypoints.json'}")


def parse(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> PredictConfig:
    """The command line."""
    return tyro.cli(PredictConfig, prog=prog, args=arguments, description=__doc__)


def main(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """0, or 2 after one line about what is wrong."""
    config = parse(arguments, prog=prog)
    return run_to_exit_code(lambda: run(config))


def _read_image(path: pathlib.Path, *, upright: bool) -> tuple[bytes, np.ndarray]:
    encoded, image = read_photo(path)
    turned = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    if not upright or turned is None or np.array_equal(turned, image[..., ::-1]):
        return encoded, image
    # Crops are made from the bytes, and without regard to EXIF, as in training.
    return cv2.imencode(".png", turned)[1].tobytes(), cv2.cvtColor(turned, cv2.COLOR_BGR2RGB)


def _image_id(given: object) -> int | str:
    image_id = whole_id(given)
    if image_id is None:
        raise InputError(f"image_id {given} is neither a whole number nor text")
    return image_id


def _box(entry: dict) -> Box:
    x, y, width, height = (float(value) for value in entry["bbox"])
    corners = (x, y, x + width, y + height)
    if not (all(map(math.isfinite, corners)) and width > 0 and height > 0):
        raise InputError(f"bbox {entry['bbox']} has no area: [x, y, width, height] in pixels")
    return Box(corners, float(entry.get("score", 1.0)))


def _record(photo: Photo, box: Box, skeleton: Skeleton) -> dict:
    """A record of `data/pose/records.py` with nothing labelled."""
    return {
        "image": photo.encoded,
        "name": str(photo.path),
        "box": np.array(box.corners),
        "keypoints": np.zeros((skeleton.num_keypoints, 2), np.float32),
        "visibility": np.zeros(skeleton.num_keypoints, np.int32),
        "index": 0,
    }
