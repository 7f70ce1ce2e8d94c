"""Boxes on your own pictures, from a checkpoint that `hardmine detection train` wrote.

    hardmine detection predict photo.jpg other.jpg --checkpoint WORKDIR --output detections

Writes `<name>_boxes.png` for each image, and `detections.json`: COCO detection results, one entry a
detection, `bbox` as [x, y, width, height] in pixels of the image as stored (EXIF is not looked at, as in
training), `category_id` counting from 1 in the order of the training's classes, `category` their names.
`image_id` is the file's name where that is a number, else its place on the command line. Proposals come from
selective search with the settings of the training. Seconds on a laptop CPU.
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
from hardmine_jax.data.problems import printable
from hardmine_jax.data.stream import ordered_batches
from hardmine_jax.detection import Detections
from hardmine_jax.tasks.detection import pictures
from hardmine_jax.tasks.detection.config import TrainedRun, load_run
from hardmine_jax.tasks.detection.predict import PREDICTED_FROM
from hardmine_jax.tasks.exit_codes import run_to_exit_code
from hardmine_jax.tasks.flags import check_numbers
from hardmine_jax.tasks.photos import InputError, photo_id, picture_names, read_photo, write_png

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
    """

    images: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    checkpoint: pathlib.Path
    output: pathlib.Path = pathlib.Path("detections")
    min_score: float = 0.5


class Photo(NamedTuple):
    """An image file: its bytes as they are, its pixels u8 [H, W, 3] RGB, and its id in the JSON."""

    path: pathlib.Path
    encoded: bytes
    image: np.ndarray
    image_id: int


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


def coco_results(photo: Photo, found: Detections, classes: Sequence[str]) -> list[dict]:
    """COCO detection results of one photo."""
    return [
        {
            "image_id": photo.image_id,
            "file_name": photo.path.name,
            "category_id": int(label),
            "category": classes[label - 1],
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
    trained = load_run(config.checkpoint)
    classes = trained.classes
    photos = [
        Photo(path, *read_photo(path), photo_id(path, position))
        for position, path in enumerate(config.images, start=1)
    ]
    config.output.mkdir(parents=True, exist_ok=True)
    names = picture_names(config.images)
    results, everything = [], find_objects(trained, photos)
    for photo, name, found in zip(photos, names, everything, strict=True):
        sure = found.scores >= config.min_score
        boxes, scores, labels = (column[sure] for column in found)
        drawn = pictures.draw_boxes(photo.image, boxes, labels, classes, scores=scores)
        picture = config.output / f"{name}_boxes.png"
        write_png(picture, drawn)
        results += coco_results(photo, found, classes)
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
