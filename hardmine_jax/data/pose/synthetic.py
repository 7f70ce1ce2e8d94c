"""The default dataset: made-up people in made-up rooms, rendered here in seconds, nothing downloaded.

One person a picture of 160x160 pixels, 17 keypoints in COCO's order and naming. Poses, proportions, clothes,
views, scenery and occluders vary; visibility is read off the map of what owns each pixel. Every example has a
generator of its own, from (seed, split, index). `figures.py` draws the body, `scenes.py` composes a
picture, `rendering.py` makes many.
"""

import dataclasses
import os
from collections.abc import Iterator

from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.pose import rendering
from hardmine_jax.data.pose.coco import COCO_SKELETON
from hardmine_jax.data.pose.records import Person, Picture, PoseDataset, Splits, prepare
from hardmine_jax.data.problems import Report
from hardmine_jax.pose import Skeleton


def load(
    *,
    seed: int = 0,
    num_train: int = 4000,
    num_validation: int = 500,
    cache_dir: str | os.PathLike | None = None,
) -> PoseDataset:
    """Renders the dataset, or finds it in the cache.

    The first n examples of a split are the same whatever its length.

    Args:
      seed: another seed is another dataset.
      num_train: pictures in the training split.
      num_validation: pictures in the validation split.
      cache_dir: where prepared data lies; default `$HARDMINE_CACHE`, or `~/.cache/hardmine_jax`.

    Returns:
      A dataset whose `skipped` is empty.

    Raises:
      ValueError: `num_train` or `num_validation` below 1, or a negative `seed`.
    """
    if num_train < 1 or num_validation < 1 or seed < 0:
        raise ValueError(
            f"num_train={num_train}, num_validation={num_validation} must be >= 1, seed={seed} >= 0"
        )
    made_from = {
        "seed": seed,
        "num_train": num_train,
        "num_validation": num_validation,
        "skeleton": dataclasses.asdict(COCO_SKELETON),
        # Whoever changes the renderer gets new pictures, not yesterday's.
        "code": code_hash(__file__),
    }

    def read(report: Report) -> tuple[Skeleton, Splits]:
        del report  # Every picture made here is usable.
        counts = {"train": num_train, "validation": num_validation}
        return COCO_SKELETON, {split: _pictures(seed, split, count) for split, count in counts.items()}

    return prepare("synthetic_pose", made_from=made_from, read=read, expected="pictures", cache_dir=cache_dir)


def _pictures(seed: int, split: str, count: int) -> Iterator[Picture]:
    number = ("train", "validation").index(split)
    for index, example in enumerate(rendering.examples(seed, number, count)):
        identity = number * 10**9 + index + 1
        person = Person(example.keypoints, example.visibility, example.box, example.area, identity)
        yield Picture(f"{split}_{index:06d}.jpg", identity, example.image, (person,))
