"""Evaluation of a pose network on a dataset's validation split: batches in, scores and pictures out.

Everything that is compared with labels is in pixels of the original images; pictures are finer crops.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from hardmine_jax.data.pose.augment import evaluate_crop
from hardmine_jax.data.pose.batches import evaluation_crops
from hardmine_jax.data.pose.records import PoseDataset
from hardmine_jax.data.records import Records
from hardmine_jax.data.stream import ordered_batches
from hardmine_jax.job.activity import working
from hardmine_jax.job.exchange import all_rows
from hardmine_jax.pose.affine import apply_affine, invert_affine
from hardmine_jax.tasks.pose import pictures
from hardmine_jax.tasks.pose.people import People, read_people
from hardmine_jax.tasks.pose.predict import predict_people
from hardmine_jax.tasks.pose.score import COCO_PEOPLE, correct_keypoints, score
from hardmine_jax.tasks.rows import Rows, evenly_spaced
from hardmine_jax.tasks.run_config import Shard

# In pixels of the crop that is drawn on.
_PICTURE_HEIGHT = 384


class Evaluator:
    """Scores of a state on the validation split.

    Processes of one job read a share of each batch, and have all the results in the end.

    Args:
      dataset: its `validation` is evaluated on.
      predict: (state, {"image": uint8 [B, H, W, 3]}) -> {"keypoints" [B, K, 2] crop pixels, "scores" [B, K]}.
      shard: of a batch, the last of which is filled up.
      size: (H, W) of the crops.
      padding: the crop is the person's box times this.
      num_people: how many `quick` evaluates; max_people: of an image so many count in the AP.
    """

    def __init__(
        self,
        dataset: PoseDataset,
        predict: Callable[[Any, dict[str, np.ndarray]], dict[str, np.ndarray]],
        *,
        shard: Shard,
        size: tuple[int, int],
        padding: float,
        num_people: int,
        max_people: int = COCO_PEOPLE,
    ):
        self._dataset, self._predict = dataset, predict
        self._shard, self._size, self._padding = shard, size, padding
        self._max_people = max_people
        self._some = evenly_spaced(len(dataset.validation), num_people)

    def run(self, state: Any, rows: np.ndarray | None = None) -> tuple[People, np.ndarray, np.ndarray]:
        """(people, keypoints [N, K, 2], scores [N, K]) over all of the split, or some rows of it."""
        source = self._dataset.validation
        found, keypoints, scores = self.run_boxes(state, source if rows is None else Rows(source, rows))
        return read_people(source, found if rows is None else rows[found]), keypoints, scores

    def run_boxes(self, state: Any, boxes: Records) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(positions in `boxes`, keypoints [N, K, 2], scores [N, K]) of the people in a detector's boxes."""
        with working("an evaluation"):
            return predict_people(
                lambda batch: self._predict(state, {"image": batch["image"]}), self._batches(boxes)
            )

    def quick(self, state: Any) -> dict[str, float]:
        """The numbers to watch while training, on a fixed part of the split."""
        people, keypoints, scores = self.run(state, self._some)
        skeleton, max_people = self._dataset.skeleton, self._max_people
        result = score(keypoints, scores, people, skeleton, max_people=max_people)
        names = ("pck", "pck@0.2", "pck_visible", "ap")
        return {name: result[name] for name in names if result[name] is not None}

    def _batches(self, source: Records) -> Iterator[dict[str, np.ndarray]]:
        """Batches with this process's images, and what everybody needs to know of all images."""
        crops = evaluation_crops(self._size, self._dataset.skeleton, self._padding)
        batches = ordered_batches(source, crops, **self._shard._asdict())
        for batch in batches:
            known = {name: batch[name] for name in ("index", "where", "inverse")}
            yield {"image": batch["image"], **all_rows(known)}

    def pictures(self, people: People, keypoints: np.ndarray, rows: Iterable[int]) -> list[pictures.Example]:
        """Some of the evaluated people, in the crops that the network saw but finer."""
        correct = correct_keypoints(keypoints, people, fraction=0.1)
        width = round(_PICTURE_HEIGHT * self._size[1] / self._size[0])
        examples = []
        for row in rows:
            crop = evaluate_crop(
                self._dataset.validation[int(people.rows[row])],
                size=(_PICTURE_HEIGHT, width),
                skeleton=self._dataset.skeleton,
                padding=self._padding,
            )
            to_crop = invert_affine(crop["inverse"].astype(np.float64))
            predicted, target = (
                apply_affine(to_crop, np.asarray(points[row], np.float64))
                for points in (keypoints, people.keypoints)
            )
            labels = (people.visibility[row], correct[row], people.names[row])
            examples.append(pictures.Example(crop["image"], predicted, target, *labels))
        return examples
