"""The published test procedures beside the common evaluation: COCO's on a detector's boxes, MPII's by heads.

Keypoints and boxes are in pixels of the original images.
"""

import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hardmine_jax.data import coco_download, coco_json
from hardmine_jax.data.pose import coco_truth, mpii, person_boxes
from hardmine_jax.data.pose.coco_categories import find_categories, written_categories
from hardmine_jax.data.pose.records import PoseDataset
from hardmine_jax.data.problems import DataError, Skipped
from hardmine_jax.pose import pck_correct
from hardmine_jax.tasks.pose.config import Config
from hardmine_jax.tasks.pose.evaluation import Evaluator
from hardmine_jax.tasks.pose.people import People
from hardmine_jax.tasks.pose.score import COCO_PEOPLE, coco_annotations, mean_where, score_boxes

# The joints of each group that MPII's published tables have; pelvis and thorax are in none, nor in the mean.
_GROUPS = {
    "head": (9,), "shoulder": (12, 13), "elbow": (11, 14), "wrist": (10, 15), "hip": (2, 3), "knee": (1, 4),
    "ankle": (0, 5),
}  # fmt: skip
_SCORED = np.array(sorted(joint for joints in _GROUPS.values() for joint in joints) + [8])


class Protocol(NamedTuple):
    """What a run is measured by besides.

    Attributes:
      boxes: of a detector, with the COCO annotations of their images; or None.
      annotations: COCO dicts.
      heads: of MPII's validation people; or None.
    """

    boxes: person_boxes.PersonBoxes | None = None
    annotations: tuple[dict, ...] = ()
    heads: mpii.Truth | None = None


def prepare_protocol(config: Config, dataset: PoseDataset) -> Protocol:
    """Reads what `config.boxes` and MPII's files hold, before anything is trained for it.

    Raises:
      DataError: the boxes cannot be used.
    """
    heads = None
    if config.dataset == "mpii":
        try:
            heads = mpii.load_truth(config.data_dir)
        except DataError as error:
            print(f"note: no PCKh: {error}", file=sys.stderr)
    if config.boxes is None:
        return Protocol(heads=heads)
    truth = _truth(config, dataset)
    boxes = person_boxes.load(
        config.boxes,
        truth.images,
        num_keypoints=dataset.skeleton.num_keypoints,
        categories=truth.categories,
        other_ids=truth.other_ids,
        given=config.box_category,
        min_score=-math.inf if config.box_min_score is None else config.box_min_score,
    )
    _warn_skipped("boxes", boxes.skipped)
    return Protocol(boxes, tuple(truth.annotations), heads)


def score_protocol(
    protocol: Protocol,
    config: Config,
    dataset: PoseDataset,
    evaluator: Evaluator,
    state: Any,
    evaluated: tuple[People, np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """What goes into result.json: `detections`, COCO's ten numbers on the boxes, and `pckh`.

    Args:
      evaluated: what `evaluator.run(state)` gave.
    """
    people, keypoints, _ = evaluated
    result: dict[str, Any] = {}
    if protocol.heads is not None:
        result["pckh"] = score_heads(keypoints, people.annotation_id, protocol.heads)
    if protocol.boxes is not None:
        found = evaluator.run_boxes(state, protocol.boxes)
        annotations = protocol.annotations or coco_annotations(people)
        result["detections"] = score_boxes(
            *found,
            protocol.boxes,
            annotations,
            dataset.skeleton,
            size=config.image_size,
            padding=config.augment.padding,
            max_people=config.max_people or COCO_PEOPLE,
        )
    return result


class _Truth(NamedTuple):
    """The pictures that boxes may lie on, and all that COCO annotates there; nothing where it is not COCO."""

    images: person_boxes.Images
    annotations: list[dict] = []
    categories: Sequence[coco_json.Category] = (coco_json.Category(1, "person"),)
    other_ids: tuple[int | str, ...] = ()


def _truth(config: Config, dataset: PoseDataset) -> _Truth:
    shown = person_boxes.SourceImages(dataset.validation)
    if config.dataset != "coco":
        return _Truth(shown)
    file, apart = validation_file(config)
    official = config.annotations is None
    orientation = "stored" if official else config.exif_orientation or "auto"
    images: person_boxes.Images = person_boxes.CocoImages(file, orientation) if apart else shown
    wanted = config.category or ("person" if official else None)
    annotations, skipped = coco_truth.annotations(
        file,
        num_keypoints=dataset.skeleton.num_keypoints,
        category=wanted,
        image_ids=images.ids,
        point_side=config.point_side,
    )
    _warn_skipped("annotations", skipped)
    categories = written_categories(find_categories(file, wanted))
    listed = [one for one in file.content["categories"] if isinstance(one, dict)]
    ids = {coco_json.whole_id(one.get("id")) for one in listed}
    others = tuple(one for one in ids - {one.id for one in categories} if one is not None)
    return _Truth(images, annotations, categories, others)


def validation_file(config: Config) -> tuple[coco_json.File, bool]:
    """The COCO file with the validation images, and whether it has only these."""
    if config.annotations is None:
        folder = config.data_dir or coco_download.download(cache_dir=config.run.cache_dir)
        folder = pathlib.Path(folder).expanduser()
        path = folder / "annotations" / "person_keypoints_val2017.json"
        return coco_json.load_file(path, folder / "val2017"), True
    if config.validation_annotations is not None:
        images = config.validation_images or config.images
        return coco_json.load_file(config.validation_annotations, images), True
    return coco_json.load_file(config.annotations, config.images), False


def _warn_skipped(what: str, skipped: Skipped) -> None:
    if skipped:
        print(f"{what}: {skipped.report()}", file=sys.stderr)


def score_heads(
    predicted: np.ndarray, annotation_ids: np.ndarray, truth: mpii.Truth
) -> dict[str, float | None]:
    """PCKh as the released evaluation has it: within half (or a tenth) of the size of the head.

    The mean is over all labelled joints but pelvis and thorax; a group is the plain mean of its two joints.
    What the released code prints as Mean@0.1 is measured at 0.11 (index 11 of 0, 0.01, 0.02 ...); here both.

    Args:
      predicted: [M, 16, 2] in pixels of the original images, counted from 0.
      annotation_ids: [M], who they are: places in valid.json.

    Returns:
      pckh@0.5, pckh@0.1, pckh@0.11, and at 0.5 head, shoulder, elbow, wrist, hip, knee, ankle; each in
      0 .. 1, None where nothing is labelled.
    """
    target, where, head_sizes = (array[annotation_ids] for array in truth)
    with np.errstate(over="ignore"):  # Numbers of a damaged file: infinitely far is wrong, too.
        predicted, head_sizes = np.asarray(predicted, np.float32), np.asarray(head_sizes, np.float32)
        target = np.asarray(np.where(where[..., None], target, 0.0), np.float32)

    def correct(fraction: float) -> np.ndarray:
        found = pck_correct(predicted, target, reference=head_sizes, fraction=fraction, where=where)
        return np.asarray(found)

    half = correct(0.5)
    result = {
        f"pckh@{fraction}": mean_where(correct(fraction)[:, _SCORED], where[:, _SCORED])
        for fraction in (0.5, 0.1, 0.11)
    }
    for group, joints in _GROUPS.items():
        shares = [mean_where(half[:, joint], where[:, joint]) for joint in joints]
        known = [share for share in shares if share is not None]
        result[group] = sum(known) / len(known) if len(known) == len(shares) else None
    return result
