"""Boxes on your own pictures, from a checkpoint that `hardmine detection train` wrote.

    hardmine detection predict photo.jpg other.jpg --checkpoint WORKDIR --output detections

Writes `<name>_boxes.png` for each image, and `detections.json`: COCO detection results, one entry a
detection, `bbox` as [x, y, width, height] in pixels of the image upright, as viewers show it (as stored where
the run was trained so), `category_id` and `category` as in the file that the run was trained on (ids count
from 1 where it had none). `image_id` is the file's name where that is a number of no other file, else its
place on the command line or the next that is free; `file_name` has folders where names alone do not tell the
files apart. `hardmine pose predict --boxes` takes that file. Proposals come from selective search with the
settings of the training. Seconds on a laptop CPU.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import jax
import numpy as np
import tyro

from hardmine_jax.data.detection.batches import evaluation_images
from hardmine_jax.data.detection.proposals import search_image
from hardmine_jax.data.images import Orientation
from hardmine_jax.data.problems import printable
from hardmine_jax.data.stream import ordered_batches
from hardmine_jax.detection import Detections
from hardmine_jax.tasks.detection import pictures
from hardmine_jax.tasks.detection.config import TrainedRun, load_run
from hardmine_jax.tasks.detection.predict import PREDICTED_FROM
from hardmine_jax.tasks.exit_codes import run_to_exit_code
from hardmine_jax.tasks.flags import check_numbers
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

_BATCH = 4


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Finds objects on image files.

    Attributes:
      images: image files.
      checkpoint: the workdir of a training run, or one checkpoint in it.
      output: folder for the pictures and detections.json.
      min_score: detections with a lower score are not drawn; the JSON has all that the training's --min-score
        lets through.
      max_detections: an image, by default the training's.
    """

    images: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    checkpoint: pathlib.Path
    output: pathlib.Path = pathlib.Path("detections")
    min_score: float = 0.5
    max_detections: int | None = None


class Photo(NamedTuple):
    """An image file: its bytes as they are, its pixels u8 [H, W, 3] RGB, its id and its name in the JSON."""

    path: pathlib.Path
    encoded: bytes
    image: np.ndarray
    image_id: int
    name: str


def find_objects(run: TrainedRun, photos: Sequence[Photo]) -> Iterator[Detections]:
    """What is found on each photo, best first, boxes in its pixels."""
    config, predict = run.config, jax.jit(run.predict)
    images = evaluation_images(
        lambda index: search_image(photos[index].encoded, config.search),
        size=config.image_size,
        max_boxes=1,
        max_proposals=config.search.max_proposals,
        short_side=max(config.augment.short_sides, default=None),
    )
    records = [_record(photo, index) for index, photo in enumerate(photos)]
    batches = ordered_batches(records, images, batch_size=min(_BATCH, len(photos)))
    for batch in batches:
        outputs = jax.device_get(predict(run.variables, {name: batch[name] for name in PREDICTED_FROM}))
        for place in np.flatnonzero(batch["where"]):
            keep = outputs["where"][place]
            yield Detections(*(outputs[name][place][keep] for name in Detections._fields))


def coco_results(photo: Photo, found: Detections, run: TrainedRun) -> list[dict]:
    """COCO detection results of one photo, in the ids and names that the run was trained on."""
    return [
        {
            "image_id": photo.image_id,
            "file_name": photo.name,
            "category_id": run.category_ids[label - 1],
            "category": run.classes[label - 1],
            "bbox": np.round([*box[:2], *(box[2:] - box[:2])], 2).tolist(),
            "score": round(float(score), 4),
        }
        for box, score, label in zip(*found, strict=True)
    ]


def run(config: PredictConfig) -> None:
    """Reads everything first, so that what is missing is said before anything is compiled."""
    check_numbers(config)
    if not config.images:
        raise InputError("no image: name at least one file")
    trained = load_run(config.checkpoint, max_detections=config.max_detections)
    paths = once_each(config.images)
    orientation: Orientation = "stored" if trained.config.exif_orientation == "stored" else "upright"
    photos = [
        Photo(path, *read_photo(path, orientation), image_id, name)
        for path, image_id, name in zip(paths, number_photos(paths), file_names(paths), strict=True)
    ]
    drawings = [config.output / f"{name}_boxes.png" for name in picture_names(paths)]
    check_outputs(drawings, paths)
    config.output.mkdir(parents=True, exist_ok=True)
    results, everything = [], find_objects(trained, photos)
    for photo, picture, found in zip(photos, drawings, everything, strict=True):
        sure = found.scores >= config.min_score
        boxes, scores, labels = (column[sure] for column in found)
        drawn = pictures.draw_boxes(photo.image, boxes, labels, trained.classes, scores=scores)
        write_png(picture, drawn)
        results += coco_results(photo, found, trained)
        print(f"{printable(str(photo.path))}: {sure.sum()} objects, {picture}")
    (config.output / "detections.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {config.output / 'detections.json'}")


def parse(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> PredictConfig:
    """The command line."""
    return tyro.cli(PredictConfig, prog=prog, args=arguments, description=__doc__)


def main(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """0, or 2 after one line about what is wrong."""
    config = parse(arguments, prog=prog)
    return run_to_exit_code(lambda: run(config))


def _record(photo: Photo, index: int) -> dict:
    """A record of `data/detection/records.py` with nothing labelled."""
    return {
        "image": photo.encoded,
        "name": str(photo.path),
        "boxes": np.zeros((0, 4), np.float32),
        "labels": np.zeros(0, np.int32),
        "difficult": np.zeros(0, bool),
        "image_id": np.int64(photo.image_id),
        "index": index,
    }
