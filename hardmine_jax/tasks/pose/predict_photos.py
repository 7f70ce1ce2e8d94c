"""Skeletons on your own pictures, from a checkpoint that `hardmine pose train` wrote.

    hardmine pose predict photo.jpg other.jpg --checkpoint WORKDIR --output poses

Writes `<name>_pose.png` for each image, and `keypoints.json`: COCO keypoint results, one entry a person,
keypoints as (x, y, score) in pixels of the image, the centre of its first pixel at 0. Without `--boxes` an
image shows one person who fills it; where several seem to be there, a line says so. Images are turned upright
as their EXIF says, unless the run was trained otherwise. With `--boxes` there is one person a box, in pixels
of the image upright, or as it is stored where a COCO file lists that as its width and height:

    hardmine detection predict *.jpg --checkpoint DETECTOR --output found
    hardmine pose predict *.jpg --checkpoint WORKDIR --boxes found/detections.json --box-min-score 0.5

That is a list of COCO detections, of `hardmine detection predict` or of any detector, or a COCO file with
"images" and "annotations". A box finds its image by `file_name`, which with folders in it (a/001.jpg) is the
file whose path ends so, or by an `image_id` that is the file's name, as text or number. A box that cannot be
used is left out, counted and named. `category_id` in keypoints.json is the box's own (the run's where both
have one name), else that of the annotations that the run was trained on, 1 where it does not know. Seconds on
a laptop CPU.
"""

import dataclasses
import json
import math
import pathlib
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import numpy as np
import tyro

from hardmine_jax.data.coco_json import Category
from hardmine_jax.data.images import Orientation
from hardmine_jax.data.pose.augment import evaluate_crop
from hardmine_jax.data.problems import gather, printable
from hardmine_jax.pose import Skeleton
from hardmine_jax.pose.affine import apply_affine
from hardmine_jax.tasks.exit_codes import run_to_exit_code
from hardmine_jax.tasks.flags import check_numbers, flag, warn_of
from hardmine_jax.tasks.photos import (
    InputError,
    check_outputs,
    file_names,
    number_photos,
    once_each,
    picture_names,
    read_photo,
    write_png,
)
from hardmine_jax.tasks.pose import pictures
from hardmine_jax.tasks.pose.config import TrainedRun, load_run
from hardmine_jax.tasks.pose.photo_boxes import Box, Boxes, Filters, Skip, read_boxes, share_out
from hardmine_jax.tasks.pose.predict import show_several

_BATCH = 16


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Predicts keypoints on image files.

    Attributes:
      images: image files.
      checkpoint: the workdir of a training run, or one checkpoint in it.
      boxes: COCO JSON with a box a person, [x, y, width, height] in pixels; every box in it is taken.
      box_category: take only boxes of this category, by id or name.
      box_min_score: take only boxes with at least this score.
      output: folder for the pictures and keypoints.json.
      min_score: keypoints with a lower score (times the box's) are not drawn; the JSON has them all.
    """

    images: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    checkpoint: pathlib.Path
    boxes: pathlib.Path | None = None
    box_category: str | None = None
    box_min_score: float | None = None
    output: pathlib.Path = pathlib.Path("poses")
    min_score: float = 0.1


class Photo(NamedTuple):
    """An image file and the people to look for in it; around a box that was given there is to be room.

    `name` is the file's in the JSON.
    """

    path: pathlib.Path
    encoded: bytes
    image: np.ndarray  # u8 [H, W, 3] RGB
    image_id: int | str
    boxes: tuple[Box, ...]
    is_boxed: bool
    name: str = ""


def read_photos(
    paths: Sequence[pathlib.Path],
    boxes: Boxes | None,
    orientation: Orientation = "upright",
    *,
    skip: Skip = lambda reason, name: None,
) -> list[Photo]:
    """The images with their boxes; without boxes, one that is the whole image.

    Args:
      boxes: what `read_boxes` gives.
      orientation: how the pixels of photographs that EXIF turns are counted, by the boxes, too.
      skip: called with a reason and a name for each box that is left out.

    Raises:
      InputError: a file that is missing or no whole image, a box that may be of several, or no box for any of
        the images.
    """
    names = file_names(paths)
    if boxes is None:
        read = [read_photo(path, orientation) for path in paths]
        ids = number_photos(paths)
        wholes = [(_whole(image),) for _, image in read]
        return [
            Photo(path, encoded, image, image_id, whole, False, name)
            for path, (encoded, image), image_id, whole, name in zip(
                paths, read, ids, wholes, names, strict=True
            )
        ]
    photos = []
    for path, key, name in zip(paths, share_out(boxes, paths), names, strict=True):
        image_id, found = (None, []) if key is None else boxes[key]
        encoded, image = _read_photo(path, orientation, found)
        there = tuple(box for box in found if not _skips(box, image, name, skip))
        photos.append(Photo(path, encoded, image, "" if image_id is None else image_id, there, True, name))
    if not any(photo.boxes for photo in photos):
        raise InputError(
            f"no box belongs to {paths[0].name} or any other image: each box needs a file_name, "
            "or an image_id that is the file's name, as text or number"
        )
    return _with_own_ids(photos)


def _read_photo(
    path: pathlib.Path, orientation: Orientation, boxes: Sequence[Box]
) -> tuple[bytes, np.ndarray]:
    """The photo as its boxes count pixels, where their file says which size it has."""
    size = boxes[0].image_size if boxes else None
    return read_photo(path, orientation if size is None or orientation == "stored" else "auto", size)


def _whole(image: np.ndarray) -> Box:
    height, width = image.shape[:2]
    return Box((-0.5, -0.5, width - 0.5, height - 0.5))


def _skips(box: Box, image: np.ndarray, name: str, skip: Skip) -> bool:
    """Whether there can be nobody in the box; says why."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = box.corners
    if min(x1, y1) >= 0 and max(x2, y2) <= 1:
        skip("box in 0..1, where pixels are expected", name)
    elif x2 <= -0.5 or y2 <= -0.5 or x1 >= width - 0.5 or y1 >= height - 0.5:
        skip("box outside the image", name)
    else:
        return False
    return True


def _with_own_ids(photos: Sequence[Photo]) -> list[Photo]:
    """The photos with ids where the boxes give none, or one id to several photos."""
    # As text: 1 and "1" are the same id.
    given = [{str(box.image_id) for box in photo.boxes if box.image_id is not None} for photo in photos]
    times = Counter(one for ids in given for one in ids)
    shared = {one for one, count in times.items() if count > 1}
    if shared:
        listed = ", ".join(printable(one) for one in sorted(shared)[:5])
        print(
            f"note: the boxes give one image_id to several images ({listed}): these get others",
            file=sys.stderr,
        )
    anew = [place for place, ids in enumerate(given) if not ids or ids & shared]
    taken = {int(one) for one in times if one.isdecimal()}
    found = number_photos([photos[place].path for place in anew], taken=taken)
    numbers = dict(zip(anew, found, strict=True))
    return [
        photo._replace(
            image_id=numbers[place], boxes=tuple(box._replace(image_id=numbers[place]) for box in photo.boxes)
        )
        if place in numbers
        else photo
        for place, photo in enumerate(photos)
    ]


class Predicted(NamedTuple):
    """What is predicted on photos.

    Attributes:
      people: of each photo [people, K, 3], (x, y, score).
      several: places of photos without boxes that seem to show several people.
    """

    people: list[np.ndarray]
    several: list[int]


def predict_photos(run: TrainedRun, photos: Sequence[Photo]) -> list[np.ndarray]:
    """Keypoints and scores of everybody, an array [people, K, 3] of (x, y, score) for each photo."""
    return _predict(run, photos).people


def _predict(run: TrainedRun, photos: Sequence[Photo]) -> Predicted:
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
    predict, batch, found, several = jax.jit(run.predict), min(_BATCH, len(crops)), [], []
    for start in range(0, len(crops), batch):
        part = crops[start : start + batch]
        # Filled up to one size, so that the network compiles once.
        filled = part + [part[-1]] * (batch - len(part))
        outputs = jax.device_get(predict(run.variables, np.stack([crop["image"] for crop in filled])))
        for crop, points, scores in zip(part, outputs["keypoints"], outputs["scores"], strict=False):
            original = apply_affine(np.asarray(crop["inverse"], np.float64), np.asarray(points, np.float64))
            found.append(np.column_stack([original, scores]))
        if "second_scores" in outputs:
            several += show_several(outputs["scores"], outputs["second_scores"])[: len(part)].tolist()
    ends = np.cumsum([len(photo.boxes) for photo in photos])[:-1]
    people = np.split(np.reshape(found, (len(found), skeleton.num_keypoints, 3)), ends)
    # Without boxes photos and crops are the same.
    return Predicted(people, [place for place, are in enumerate(several) if are and not photos[0].is_boxed])


def coco_results(photo: Photo, people: np.ndarray, *, category_id: int | str = 1) -> list[dict]:
    """COCO keypoint results of [people, K, 3]; a person's score is the keypoints' mean times the box's.

    Args:
      category_id: of people whose box has none.
    """
    results = []
    for box, keypoints in zip(photo.boxes, people, strict=True):
        x1, y1, x2, y2 = box.corners
        results.append(
            {
                "image_id": photo.image_id if box.image_id is None else box.image_id,
                "file_name": photo.name or photo.path.name,
                "category_id": category_id if box.category_id is None else box.category_id,
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
    check_filters(config)
    trained, paths = load_run(config.checkpoint, with_second=config.boxes is None), once_each(config.images)
    photos = _find_people(config, paths, trained)
    pictures_of = [config.output / f"{name}_pose.png" for name in picture_names(paths)]
    check_outputs(pictures_of, paths)
    warn_of(category_notes(photos, trained.categories, chosen=config.box_category is not None))
    config.output.mkdir(parents=True, exist_ok=True)
    people, several = _predict(trained, photos)
    results, category_id = [], trained.categories[0].id if trained.categories else 1
    for photo, picture, found in zip(photos, pictures_of, people, strict=True):
        drawn = draw_people(photo, found, trained.skeleton, min_score=config.min_score)
        write_png(picture, drawn)
        results += coco_results(photo, found, category_id=category_id)
        print(f"{printable(str(photo.path))}: {len(found)} people, {picture}")
    warn_of(_several_notes([paths[place] for place in several], len(photos)))
    (config.output / "keypoints.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {config.output / 'keypoints.json'}")


def _several_notes(paths: Sequence[pathlib.Path], num_photos: int) -> list[str]:
    if not paths:
        return []
    shown = ", ".join(printable(str(path)) for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    return [
        f"{len(paths)} of {num_photos} images seem to show several subjects ({shown}); without --boxes each "
        "is taken for one subject that fills it: give a box for each, from hardmine detection predict, say"
    ]


def check_filters(config: PredictConfig) -> None:
    """Raises UserError for flags of boxes that cannot be."""
    for name in ("box_category", "box_min_score"):
        if getattr(config, name) is not None and config.boxes is None:
            raise InputError(f"{flag(name)} means nothing without --boxes: add it, or drop this")
    if config.box_min_score is not None and not math.isfinite(config.box_min_score):
        raise InputError(f"--box-min-score {config.box_min_score} must be a finite number")


def _find_people(config: PredictConfig, paths: Sequence[pathlib.Path], trained: TrainedRun) -> list[Photo]:
    """The photos with the boxes that are asked for; what is left out, or odd, is told on stderr."""
    # As the run was trained; of a photograph nobody lists a size that could tell more.
    orientation: Orientation = "stored" if trained.config.exif_orientation == "stored" else "upright"
    if config.boxes is None:
        return read_photos(paths, None, orientation)
    problems: list[tuple[str, str]] = []
    filters = Filters(config.box_min_score, config.box_category, trained.categories)

    def skip(reason: str, name: str) -> None:
        problems.append((reason, name))

    boxes = read_boxes(config.boxes, filters=filters, skip=skip)
    try:
        photos = read_photos(paths, boxes, orientation, skip=skip)
    except InputError as error:
        raise InputError(f"{error} ({config.boxes}: {gather(problems).report()})") from error
    if problems:
        print(f"boxes: {gather(problems).report()}", file=sys.stderr)
    return photos


def category_notes(photos: Sequence[Photo], known: Sequence[Category], *, chosen: bool) -> list[str]:
    """What people should know of the categories that the boxes are of.

    Args:
      known: the run's, none where it does not know; chosen: somebody said which boxes are meant.
    """
    found = {box.category_id for photo in photos for box in photo.boxes}
    listed = ", ".join(printable(str(one)) for one in sorted(found - {None}, key=str)[:5])
    named = ", ".join(f"{printable(one.name)} (id {one.id})" for one in known)
    notes = []
    if len(found - {None}) > 1 and not chosen:
        notes.append(
            f"boxes of several categories are all taken ({listed}): --box-category takes those of one"
        )
    if known and not {str(one) for one in found - {None}} <= {str(one.id) for one in known}:
        notes.append(
            f"the boxes are of category {listed}, which keypoints.json repeats; the run's is {named}"
        )
    if len(known) > 1 and None in found:
        notes.append(
            f"boxes that name no category are written as {named.split(', ')[0]} of the run's {named}"
        )
    return notes


def parse(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> PredictConfig:
    """The command line."""
    return tyro.cli(PredictConfig, prog=prog, args=arguments, description=__doc__)


def main(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """0, or 2 after one line about what is wrong."""
    config = parse(arguments, prog=prog)
    return run_to_exit_code(lambda: run(config))


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
