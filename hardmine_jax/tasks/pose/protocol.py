"""The published test procedures beside the common evaluation: COCO's on a detector's boxes, MPII's by heads.

Keypoints and boxes are in pixels of the original images.
"""

import pathlib
import sys
from typing import NamedTuple

from hardmine_jax.data import coco_download, coco_json, coco_truth, mpii, person_boxes
from hardmine_jax.data.problems import DataError, Skipped
from hardmine_jax.data.records import PoseDataset
from hardmine_jax.tasks.pose.evaluation import Evaluator
from hardmine_jax.tasks.pose.score import coco_annotations, score_boxes


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


def prepare_protocol(config, dataset: PoseDataset) -> Protocol:
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
    images, annotations = _truth(config, dataset)
    boxes = person_boxes.load(config.boxes, images, num_keypoints=dataset.skeleton.num_keypoints)
    _tell("boxes", boxes.skipped)
    return Protocol(boxes, tuple(annotations), heads)


def score_protocol(
    protocol: Protocol, config, dataset: PoseDataset, evaluator: Evaluator, state, evaluated
) -> dict:
    """What goes into result.json: `detections`, COCO's ten numbers on the boxes, and `pckh`.

    Args:
      evaluated: what `evaluator.run(state)` gave.
    """
    people, keypoints, _ = evaluated
    result = {}
    if protocol.heads is not None:
        result["pckh"] = mpii.score(keypoints, people.annotation_id, protocol.heads)
    if protocol.boxes is not None:
        found = evaluator.run_boxes(state, protocol.boxes)
        annotations = protocol.annotations or coco_annotations(people)
        sides = dict(size=config.image_size, padding=config.augment.padding)
        skeleton = dataset.skeleton
        result["detections"] = score_boxes(*found, protocol.boxes, annotations, skeleton, **sides)
    return result


def _truth(config, dataset: PoseDataset) -> tuple[person_boxes.Images, list[dict]]:
    """The pictures that boxes may lie on, and all that COCO annotates there; nothing where it is not COCO."""
    shown = person_boxes.SourceImages(dataset.validation)
    if config.dataset != "coco":
        return shown, []
    file, apart = _validation_file(config)
    images = person_boxes.CocoImages(file) if apart else shown
    annotations, skipped = coco_truth.annotations(
        file,
        num_keypoints=dataset.skeleton.num_keypoints,
        category=config.category or ("person" if config.annotations is None else None),
        image_ids=images.ids,
    )
    _tell("annotations", skipped)
    return images, annotations


def _validation_file(config) -> tuple[coco_json.File, bool]:
    """The COCO file with the validation images, and whether it has only these."""
    if config.annotations is None:
        folder = config.data_dir or coco_download.download(cache_dir=config.cache_dir)
        folder = pathlib.Path(folder).expanduser()
        path = folder / "annotations" / "person_keypoints_val2017.json"
        return coco_json.load_file(path, folder / "val2017"), True
    if config.validation_annotations is not None:
        folder = config.validation_images or config.images
        return coco_json.load_file(config.validation_annotations, folder), True
    return coco_json.load_file(config.annotations, config.images), False


def _tell(what: str, skipped: Skipped) -> None:
    if skipped.count:
        print(f"{what}: {skipped.report()}", file=sys.stderr)
