"""The embedded default for detection: filled shapes on clutter, drawn here in seconds, nothing downloaded.

Pictures of 160x160 pixels with few objects of six classes and much that is none. Every picture has a
generator of its own, from (seed, split, index). `shapes.py` draws them.
"""

import os
from collections.abc import Iterator

import cv2
import numpy as np

from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.detection import records, shapes
from hardmine_jax.data.detection.records import DetectionDataset, Listed, ObjectPicture
from hardmine_jax.data.problems import Report

IMAGE_SIZE = 160
JPEG_QUALITY = 92


def load(
    *,
    seed: int = 0,
    num_train: int = 800,
    num_validation: int = 200,
    cache_dir: str | os.PathLike | None = None,
) -> DetectionDataset:
    """Draws the dataset, or finds it in the cache.

    The first n pictures of a split are the same whatever its length. `skipped` notes those without a shape.

    Args:
      seed: another seed is another dataset.
      num_train: pictures in the training split.
      num_validation: pictures in the validation split.
      cache_dir: where prepared data lies; see `cache.cache_root`.

    Raises:
      ValueError: `num_train` or `num_validation` below 1, or a negative `seed`.
      DataError: so few pictures that none shows a shape.
    """
    if num_train < 1 or num_validation < 1 or seed < 0:
        raise ValueError(
            f"num_train={num_train}, num_validation={num_validation} must be >= 1, seed={seed} >= 0"
        )
    counts = {"train": num_train, "validation": num_validation}
    made_from = {
        "seed": seed,
        "counts": counts,
        # Whoever changes the drawing gets new pictures, not yesterday's.
        "code": code_hash(__file__),
    }

    def read(report: Report) -> Listed:
        del report  # Every picture drawn here is usable.
        splits = {split: _pictures(seed, split, count) for split, count in counts.items()}
        return Listed(shapes.CLASSES, splits)

    return records.prepare(
        "synthetic_shapes", made_from=made_from, read=read, expected="shapes", cache_dir=cache_dir
    )


def _pictures(seed: int, split: str, count: int) -> Iterator[ObjectPicture]:
    number = ("train", "validation").index(split)
    for index in range(count):
        shown = shapes.render(np.random.default_rng((seed, number, index)), size=IMAGE_SIZE)
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        _, encoded = cv2.imencode(".jpg", cv2.cvtColor(shown.image, cv2.COLOR_RGB2BGR), quality)
        yield ObjectPicture(
            name=f"{split}_{index:06d}.jpg",
            image_id=number * 10**9 + index + 1,
            image=encoded.tobytes(),
            boxes=shown.boxes,
            labels=shown.labels,
            difficult=np.zeros(len(shown.labels), bool),
            names=tuple(shapes.CLASSES[label - 1] for label in shown.labels),
        )
