"""Evaluation of a detector on a dataset's validation split: batches in, scores and pictures out.

Boxes are xyxy in pixels of the original images; labels are 1 .. C.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from hardmine_jax.data.detection.batches import Proposals, evaluation_images
from hardmine_jax.data.detection.proposals import SourceProposals
from hardmine_jax.data.images import decode_image
from hardmine_jax.data.records import Records
from hardmine_jax.data.stream import ordered_batches
from hardmine_jax.detection import AveragePrecision, Detections, GroundTruth, average_precision
from hardmine_jax.detection.coco_eval import coco_average_precision
from hardmine_jax.detection.metrics import overlaps
from hardmine_jax.job.activity import working
from hardmine_jax.job.exchange import all_rows
from hardmine_jax.tasks.detection import pictures
from hardmine_jax.tasks.detection.predict import PREDICTED_FROM
from hardmine_jax.tasks.rows import Rows, evenly_spaced
from hardmine_jax.tasks.run_config import Shard
from hardmine_jax.tasks.uncertainty import bootstrap_half_width


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Some images of a split: their positions in the source and names, what was found and what is there."""

    rows: np.ndarray
    names: Sequence[str]
    found: Sequence[Detections]
    truth: Sequence[GroundTruth]


@dataclasses.dataclass(frozen=True)
class Batching:
    """How a split becomes batches: this process's share of one, (H, W) of the input, boxes and proposals an
    image."""

    shard: Shard
    size: tuple[int, int]
    max_boxes: int
    max_proposals: int
    short_side: int | None = None

    def batches(
        self, source: Records, proposals: SourceProposals, rows: np.ndarray | None = None
    ) -> Iterable[dict[str, np.ndarray]]:
        """Batches of a split, or of some rows of it, numbered by their place among these."""
        shown: Records = source
        found: Proposals = proposals
        if rows is not None:
            shown, found = Rows(source, rows), lambda index: proposals[int(rows[index])]
        sizes = {name: getattr(self, name) for name in ("size", "max_boxes", "max_proposals", "short_side")}
        return ordered_batches(shown, evaluation_images(found, **sizes), **self.shard._asdict())


class Scored(Protocol):
    """A dataset as far as it is scored."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def validation(self) -> Records: ...


class Evaluator:
    """Scores of a state on the validation split.

    Processes of one job read a share of each batch, and have all the results in the end.

    Args:
      dataset: its `validation` is evaluated on.
      proposals: of the validation split.
      predict: (state, batch) -> what `predict.make_predict` gives.
      batching: of the split.
      num_images: how many `quick` evaluates.
    """

    def __init__(
        self,
        dataset: Scored,
        proposals: SourceProposals,
        predict: Callable[[Any, dict[str, np.ndarray]], dict[str, np.ndarray]],
        *,
        batching: Batching,
        num_images: int,
    ):
        self._dataset, self._proposals, self._predict = dataset, proposals, predict
        self._batching = batching
        self._some = evenly_spaced(len(dataset.validation), num_images)

    def run(self, state: Any, rows: np.ndarray | None = None) -> Evaluated:
        """Everything found on all of the split, or on some rows of it."""
        source = self._dataset.validation
        rows = np.arange(len(source)) if rows is None else rows
        with working("an evaluation"):
            seen, found = self._predict_all(state, self._batching.batches(source, self._proposals, rows))
        rows = rows[np.array(seen, int)]
        truth = [read_truth(source[int(row)]) for row in rows]
        return Evaluated(rows, [name for name, _ in truth], found, [objects for _, objects in truth])

    def _predict_all(
        self, state: Any, batches: Iterable[dict[str, np.ndarray]]
    ) -> tuple[list[int], list[Detections]]:
        """Positions among the images, and what was found on each."""
        seen, found = [], []
        for batch in batches:
            outputs = self._predict(state, {name: batch[name] for name in PREDICTED_FROM})
            # Outputs are of all processes' images already.
            index, where = all_rows((batch["index"], batch["where"]))
            for place in np.flatnonzero(where):
                keep = outputs["where"][place]
                found.append(Detections(*(outputs[name][place][keep] for name in Detections._fields)))
                seen.append(int(index[place]))
        return seen, found

    def quick(self, state: Any) -> dict[str, float]:
        """The numbers to watch while training, on a fixed part of the split."""
        evaluated = self.run(state, self._some)
        measured = voc_precision(evaluated, self._dataset.classes)
        # A few images may show no object that counts.
        return {"map": finite(measured.mean) or 0.0, "map_11_point": finite(measured.mean_11_point) or 0.0}

    def recall(self, evaluated: Evaluated, *, overlap: float = 0.5) -> float | None:
        """Share of the objects that some proposal covers: no detector gets beyond it by much."""
        covered: list[bool] = []
        for row, truth in zip(evaluated.rows, evaluated.truth, strict=True):
            boxes = self._proposals[int(row)][: self._batching.max_proposals]
            wanted = truth.boxes[~np.asarray(truth.difficult, bool)]
            covered += np.any(overlaps(wanted, boxes) >= overlap, axis=1).tolist()
        return float(np.mean(covered)) if covered else None

    def pictures(self, evaluated: Evaluated, places: Iterable[int]) -> list[pictures.Example]:
        """Some of the evaluated images with what was found and what is there; those that can be read."""
        examples = []
        for place in places:
            image = decode_image(self._dataset.validation[int(evaluated.rows[place])]["image"])
            if image is not None:
                found, truth = evaluated.found[place], evaluated.truth[place]
                examples.append(pictures.Example(image, found, truth, evaluated.names[place]))
        return examples


def read_truth(record: dict) -> tuple[str, GroundTruth]:
    """Name and objects of a record; those without area are none, nor what training leaves alone."""
    boxes, labels = np.asarray(record["boxes"], np.float32).reshape(-1, 4), np.asarray(record["labels"])
    real = (boxes[:, 2:] > boxes[:, :2]).all(-1) & (labels > 0)
    columns = (boxes, labels, np.asarray(record["difficult"], bool))
    return str(record["name"]), GroundTruth(*(column[real] for column in columns))


def voc_precision(evaluated: Evaluated, classes: Sequence[str]) -> AveragePrecision:
    """VOC's average precision at IoU 0.5."""
    return average_precision(evaluated.found, evaluated.truth, classes=classes)


def map_half_width(evaluated: Evaluated, classes: Sequence[str]) -> float | None:
    """Half of the mAP's 95 % interval over images, see `uncertainty.bootstrap_half_width`."""

    def mean(rows: np.ndarray) -> float:
        found, truth = [evaluated.found[row] for row in rows], [evaluated.truth[row] for row in rows]
        return average_precision(found, truth, classes=classes).mean

    return bootstrap_half_width(mean, len(evaluated.names))


def score(evaluated: Evaluated, measured: AveragePrecision, *, max_detections: int = 100) -> dict:
    """The numbers of result.json: `map` and `map_11_point` at IoU 0.5, `per_class`, COCO's own in `coco`.

    Args:
      measured: what `voc_precision` gives of them.
      max_detections: an image; COCO's numbers are by 100 at least.
    """
    per_class = {
        row.name: {
            "ap": finite(row.ap),
            "ap_11_point": finite(row.ap_11_point),
            "recall": finite(row.recall[-1]) if len(row.recall) else (0.0 if row.num_objects else None),
            "count": row.num_objects,
        }
        for row in measured.classes
    }
    classes = [row.name for row in measured.classes]
    most = max(100, max_detections)
    coco = coco_average_precision(evaluated.found, evaluated.truth, classes=classes, max_detections=most)
    return {
        "map": finite(measured.mean),
        "map_11_point": finite(measured.mean_11_point),
        "coco": coco,
        "per_class": per_class,
        "classes_without_objects": list(measured.without_objects),
    }


def curves(measured: AveragePrecision) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(recall, precision) of every class that has objects."""
    some = [row for row in measured.classes if row.num_objects and len(row.recall)]
    return {row.name: (row.recall, row.precision) for row in some}


def finite(value: float) -> float | None:
    """None for NaN, which is no JSON."""
    return float(value) if np.isfinite(value) else None


def count_wanted(truth: GroundTruth) -> int:
    """Objects that are to be found."""
    return int((~np.asarray(truth.difficult, bool)).sum())


def count_mistakes(found: Detections, truth: GroundTruth, *, min_score: float = 0.5) -> int:
    """Objects missed, difficult ones aside, plus detections that cover no object of their class."""
    sure = found.scores >= min_score
    boxes, labels = found.boxes[sure], found.labels[sure]
    hits = (overlaps(truth.boxes, boxes) >= 0.5) & (truth.labels[:, None] == labels)
    missed = ~hits.any(1) & ~np.asarray(truth.difficult, bool)
    return int(missed.sum() + (~hits.any(0)).sum())
