"""Scores of predicted keypoints in the pixels of the original images."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from hardmine_jax.data.pose.person_boxes import PersonBoxes
from hardmine_jax.pose import Skeleton, oks, pck_correct
from hardmine_jax.pose.affine import box_to_centre_scale
from hardmine_jax.pose.coco_eval import coco_average_precision
from hardmine_jax.pose.coco_results import coco_results
from hardmine_jax.tasks.pose.people import People
from hardmine_jax.tasks.uncertainty import share_half_width

# Of an image so many of the people found count in COCO's evaluation.
COCO_PEOPLE = 20


def correct_keypoints(predicted: np.ndarray, people: People, *, fraction: float) -> np.ndarray:
    """bool [N, K]: within `fraction` of the longer side of the box around the person's labelled keypoints."""
    boxes = people.boxes
    reference = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    where, target = people.labelled, np.where(people.labelled[..., None], people.keypoints, 0.0)
    return np.asarray(
        pck_correct(jnp.asarray(predicted), jnp.asarray(target), reference=jnp.asarray(reference),
                    fraction=fraction, where=jnp.asarray(where))
    )  # fmt: skip


def pck(predicted: np.ndarray, people: People, *, fraction: float = 0.1) -> float | None:
    """Share of everybody's labelled keypoints that `correct_keypoints` finds right."""
    return mean_where(correct_keypoints(predicted, people, fraction=fraction), people.labelled)


def pck_half_width(predicted: np.ndarray, people: People) -> float | None:
    """Half of PCK@0.1's 95 % interval, see `uncertainty.share_half_width`."""
    right = correct_keypoints(predicted, people, fraction=0.1) & people.labelled
    return share_half_width(right.sum(1), people.labelled.sum(1))


def score(
    predicted: np.ndarray,
    scores: np.ndarray,
    people: People,
    skeleton: Skeleton,
    *,
    max_people: int = COCO_PEOPLE,
) -> dict:
    """The numbers of result.json: `pck` and its parts, `pck@0.2`, COCO's `ap`, `per_joint`.

    Args:
      max_people: of an image's people so many count in the AP.
    """
    visible, occluded = people.visibility == 2, people.visibility == 1
    correct = correct_keypoints(predicted, people, fraction=0.1)
    per_joint = {
        name: {
            "pck": mean_where(correct[:, j], people.labelled[:, j]),
            "pck_visible": mean_where(correct[:, j], visible[:, j]),
            "pck_occluded": mean_where(correct[:, j], occluded[:, j]),
            "count": int(people.labelled[:, j].sum()),
        }
        for j, name in enumerate(skeleton.names)
    }
    return {
        "pck": mean_where(correct, people.labelled),
        "pck@0.2": pck(predicted, people, fraction=0.2),
        "pck_visible": mean_where(correct, visible),
        "pck_occluded": mean_where(correct, occluded),
        **average_precision(predicted, scores, people, skeleton, max_people=max_people),
        "per_joint": per_joint,
    }


_COCO_NAMES = {
    "AP": "ap", "AP50": "ap50", "AP75": "ap75", "APM": "ap_medium", "APL": "ap_large",
    "AR": "ar", "AR50": "ar50", "AR75": "ar75", "ARM": "ar_medium", "ARL": "ar_large",
}  # fmt: skip


def average_precision(
    predicted: np.ndarray,
    scores: np.ndarray,
    people: People,
    skeleton: Skeleton,
    *,
    max_people: int = COCO_PEOPLE,
) -> dict[str, float]:
    """COCO's keypoint AP and AR, boxes from the ground truth; a person's score is its mean keypoint score."""
    predictions = [
        {
            "image_id": int(people.image_id[row]),
            "keypoints": np.column_stack([predicted[row], scores[row]]).ravel(),
            "score": float(scores[row].mean()),
        }
        for row in range(len(people.names))
    ]
    measured = coco_average_precision(
        predictions, coco_annotations(people), sigmas=skeleton.sigmas, max_people=max_people
    )
    names = ("AP", "AP50", "AP75", "AR")
    return {_COCO_NAMES[name]: measured[name] for name in names}


def note_crowded(people: People, *, max_people: int) -> list[str]:
    """A sentence where an image has more people than AP and AR count; none where no image has."""
    counts = np.unique(people.image_id[people.labelled.any(1)], return_counts=True)[1]
    more = counts[counts > max_people]
    if not len(more):
        return []
    images, have = ("1 image has", "") if len(more) == 1 else (f"{len(more)} images have", "at most ")
    return [
        f"{images} more than {max_people} people ({have}{more.max()}): AP and AR count the {max_people} with "
        "the best scores, all others are missed however well they are found; --max-people raises that"
    ]


def coco_annotations(people: People) -> list[dict]:
    """The people as COCO annotations: the ground truth of a dataset that has no COCO file.

    The box is what excuses a prediction on somebody without a labelled keypoint.
    """
    sides = people.boxes[:, 2:] - people.boxes[:, :2]
    bboxes = np.concatenate([people.boxes[:, :2], sides], axis=1).astype(np.float64)
    return [
        {
            "image_id": int(people.image_id[row]),
            "keypoints": np.column_stack([people.keypoints[row], people.visibility[row]]).ravel(),
            "area": float(people.area[row]),
            "bbox": bboxes[row].tolist(),
        }
        for row in range(len(people.names))
    ]


def score_boxes(
    rows: np.ndarray,
    predicted: np.ndarray,
    scores: np.ndarray,
    boxes: PersonBoxes,
    annotations: Sequence[dict],
    skeleton: Skeleton,
    *,
    size: tuple[int, int],
    padding: float,
    max_people: int = COCO_PEOPLE,
) -> dict[str, float]:
    """COCO's AP and AR of the predictions on a detector's boxes, by the published procedure.

    People are scored by box and keypoints, copies are taken out by OKS over the areas of the crops,
    `max_people` an image remain; see `coco_results`.

    Args:
      rows: [N], positions in `boxes`; predicted [N, K, 2] original pixels and scores [N, K] are
        `predict_people`'s.
      annotations: everything labelled on the images of `boxes`, crowds and people without labels too.
      size: (H, W) of the crops; padding: of the boxes.

    Returns:
      ap, ap50, ap75, ap_medium, ap_large, and the same of ar.
    """
    crops = [box_to_centre_scale(box, aspect=size[1] / size[0], padding=padding) for box in boxes.boxes[rows]]
    results = coco_results(
        boxes.image_ids[rows],
        predicted,
        scores,
        box_scores=boxes.scores[rows],
        areas=np.array([sides.prod() for _, sides in crops]),
        sigmas=skeleton.sigmas,
        max_people=max_people,
    )
    measured = coco_average_precision(results, annotations, sigmas=skeleton.sigmas, max_people=max_people)
    return {short: measured[name] for name, short in _COCO_NAMES.items()}


def mean_oks(predicted: np.ndarray, people: People, skeleton: Skeleton) -> np.ndarray:
    """[N] object keypoint similarity of each person, to rank examples by."""
    target = np.where(people.labelled[..., None], people.keypoints, 0.0)
    arrays = (jnp.asarray(x) for x in (predicted, target))
    return np.asarray(
        oks(*arrays, area=jnp.asarray(people.area), sigmas=jnp.asarray(skeleton.sigmas),
            where=jnp.asarray(people.labelled))
    )  # fmt: skip


def mean_where(correct: np.ndarray, where: np.ndarray) -> float | None:
    """Share of True among the places that count; None where none does."""
    return float(correct[where].mean()) if where.any() else None
