"""Evaluation of a detector on a dataset's validation split: batches in, scores and pictures out.

Boxes are xyxy in pixels of the original images; labels are 1 .. C.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence

import detection_plots
import numpy as np
from rows import Rows, evenly_spaced
from running import Share, told_of_errors

from hardmine_jax.data.detection_pipeline import detection_evaluation_batches
from hardmine_jax.data.detection_records import DetectionDataset
from hardmine_jax.data.pictures import decode_image
from hardmine_jax.data.proposals import SourceProposals
from hardmine_jax.detection import AveragePrecision, Detections, GroundTruth, average_precision
from hardmine_jax.detection.coco_eval import coco_average_precision
from hardmine_jax.training.activity import working
from hardmine_jax.training.exchange import all_rows, is_main


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

    share: Share
    size: tuple[int, int]
    max_boxes: int
    max_proposals: int
    short_side: int | None = None

    def batches(self, source: Sequence[dict], proposals: SourceProposals, rows: np.ndarray | None = None):
        """Batches of a split, or of some rows of it, numbered by their place among these."""
        if rows is not None:
            source, every = Rows(source, rows), proposals

            def proposals(index):
                return every[int(rows[index])]

        sizes = {name: getattr(self, name) for name in ("size", "max_boxes", "max_proposals", "short_side")}
        return detection_evaluation_batches(source, proposals, **sizes, **self.share._asdict())


class Evaluator:
    """Scores of a state on the validation split.

    Processes of one job read a share of each batch, and have all the results in the end.

    Args:
      dataset: its `validation` is evaluated on.
      proposals: of the validation split.
      predict: (state, batch) -> what `detection_task.make_predict` gives.
      batching: of the split.
      num_images: how many `quick` evaluates.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        proposals: SourceProposals,
        predict: Callable,
        *,
        batching: Batching,
        num_images: int,
    ):
        self._dataset, self._proposals, self._predict = dataset, proposals, predict
        self._batching = batching
        self._some = evenly_spaced(len(dataset.validation), num_images)

    def run(self, state, rows: np.ndarray | None = None) -> Evaluated:
        """Everything found on all of the split, or on some rows of it."""
        source = self._dataset.validation
        rows = np.arange(len(source)) if rows is None else rows
        with working("an evaluation"):
            seen, found = self._predict_all(state, self._batching.batches(source, self._proposals, rows))
        rows = rows[np.array(seen, int)]
        truth = [read_truth(source[int(row)]) for row in rows]
        return Evaluated(rows, [name for name, _ in truth], found, [objects for _, objects in truth])

    def _predict_all(self, state, batches: Iterable[dict]) -> tuple[list[int], list[Detections]]:
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

    def quick(self, state) -> dict[str, float]:
        """The numbers to watch while training, on a fixed part of the split."""
        evaluated = self.run(state, self._some)
        measured = voc(evaluated, self._dataset.classes)
        # A few images may show no object that counts.
        return {"map": finite(measured.mean) or 0.0, "map_11_point": finite(measured.mean_11_point) or 0.0}

    def recall(self, evaluated: Evaluated, *, overlap: float = 0.5) -> float | None:
        """Share of the objects that some proposal covers: no detector gets beyond it by much."""
        covered = []
        for row, truth in zip(evaluated.rows, evaluated.truth, strict=True):
            boxes = self._proposals[int(row)][: self._batching.max_proposals]
            for box in truth.boxes[~truth.difficult]:
                covered.append((detection_plots.overlaps(box, boxes) >= overlap).any())
        return float(np.mean(covered)) if covered else None

    def pictures(self, evaluated: Evaluated, places: Sequence[int]) -> list[detection_plots.Example]:
        """Some of the evaluated images with what was found and what is there."""
        examples = []
        for place in places:
            image = decode_image(self._dataset.validation[int(evaluated.rows[place])]["image"])
            examples.append(
                detection_plots.Example(
                    image, evaluated.found[place], evaluated.truth[place], evaluated.names[place]
                )
            )
        return examples


# What `detection_task.make_predict` reads of a batch.
PREDICTED_FROM = ("image", "image_size", "scale", "proposals", "proposals_where")


def read_truth(record: dict) -> tuple[str, GroundTruth]:
    """Name and objects of a record; those without area are none."""
    boxes = np.asarray(record["boxes"], np.float32).reshape(-1, 4)
    real = (boxes[:, 2:] > boxes[:, :2]).all(-1)
    columns = (boxes, np.asarray(record["labels"]), np.asarray(record["difficult"], bool))
    return str(record["name"]), GroundTruth(*(column[real] for column in columns))


def voc(evaluated: Evaluated, classes: Sequence[str]) -> AveragePrecision:
    return average_precision(evaluated.found, evaluated.truth, classes=classes)


def score(evaluated: Evaluated, classes: Sequence[str]) -> dict:
    """The numbers of result.json: `map` and `map_11_point` at IoU 0.5, `per_class`, COCO's own in `coco`."""
    measured = voc(evaluated, classes)
    per_class = {
        row.name: {
            "ap": finite(row.ap),
            "ap_11_point": finite(row.ap_11_point),
            "recall": finite(row.recall[-1]) if len(row.recall) else (0.0 if row.num_objects else None),
            "count": row.num_objects,
        }
        for row in measured.classes
    }
    coco = coco_average_precision(evaluated.found, evaluated.truth, classes=classes)
    return {
        "map": finite(measured.mean),
        "map_11_point": finite(measured.mean_11_point),
        "coco": coco,
        "per_class": per_class,
        "classes_without_objects": list(measured.without_objects),
    }


def curves(evaluated: Evaluated, classes: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(recall, precision) of every class that has objects."""
    rows = voc(evaluated, classes).classes
    return {row.name: (row.recall, row.precision) for row in rows if row.num_objects and len(row.recall)}


def finite(value: float) -> float | None:
    """None for NaN, which is no JSON."""
    return float(value) if np.isfinite(value) else None


class MinedRecorder:
    """Writes down which RoIs of a few training images are mined, as training goes on: `mined/<step>.npz`.

    Args:
      workdir: the run's folder.
      source, proposals: of the training split.
      choose: (state, batch) -> what `detection_task.make_choice` gives.
      batching: of the split, one batch of which is watched.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        source: Sequence[dict],
        proposals: SourceProposals,
        choose: Callable,
        *,
        batching: Batching,
    ):
        self._folder, self._source, self._choose = workdir / "mined", source, choose
        rows = evenly_spaced(len(source), batching.share.batch_size * batching.share.shard_count)
        self._batch = next(iter(batching.batches(source, proposals, rows)))
        self._known = all_rows({name: self._batch[name] for name in ("index", "where", "scale")})
        self._rows = rows

    def record(self, state, step: int) -> None:
        chosen = self._choose(state, self._batch)
        if not is_main():
            return
        path = self._folder / f"{step}.npz"
        new = path.with_suffix(".new")
        with told_of_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(new, "wb") as stream:
                np.savez_compressed(stream, **chosen)
            # Killed here, there is no half of it for the report to stumble over.
            new.replace(path)

    def pictures(self) -> list[detection_plots.MinedExample]:
        """For each watched image what was mined first and last; empty where fewer than two were recorded."""
        steps = sorted(int(path.stem) for path in self._folder.glob("*.npz") if path.stem.isdecimal())
        if len(steps) < 2:
            return []
        early, late = (
            {**np.load(self._folder / f"{step}.npz", allow_pickle=False)} for step in (steps[0], steps[-1])
        )
        if early["keep"].shape != late["keep"].shape:
            return []
        examples = []
        for place in np.flatnonzero(self._known["where"]):
            record = self._source[int(self._rows[self._known["index"][place]])]
            scale = float(self._known["scale"][place])
            mined = (
                detection_plots.MinedRois(
                    step, chosen["boxes"][place][keep] / scale, chosen["labels"][place][keep]
                )
                for step, chosen in ((steps[0], early), (steps[-1], late))
                for keep in (chosen["keep"][place],)
            )
            examples.append(
                detection_plots.MinedExample(decode_image(record["image"]), *mined, str(record["name"]))
            )
        return examples
