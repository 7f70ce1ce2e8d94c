"""From predictions on all boxes of a split to COCO keypoint results: rescored, copies taken out, best kept.

Host side: numpy in, plain Python out. Keypoints are (x, y) in pixels of the original images.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hardmine_jax.pose.oks_nms import oks_nms
from hardmine_jax.pose.person_scores import person_scores

# Images with about as many people share one compiled function.
_LEAST_PEOPLE = 32


def coco_results(
    image_ids: np.ndarray,
    keypoints: np.ndarray,
    keypoint_scores: np.ndarray,
    *,
    box_scores: np.ndarray,
    areas: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    threshold: float = 0.9,
    min_score: float = 0.2,
    max_people: int = 20,
    category_id: int | str = 1,
) -> list[dict[str, Any]]:
    """What the released code of SimpleBaseline and HRNet hands to COCO's evaluation.

    Each person's score is `person_scores`; in each image `oks_nms` goes over all of them, and the best
    `max_people` of what it leaves remain (COCO's evaluation looks at 20, so more change nothing there;
    `coco_average_precision` takes a `max_people` of its own).

    Args:
      image_ids: int [N].
      keypoints: [N, K, 2] pixels.
      keypoint_scores: [N, K], heights of the heatmaps.
      box_scores: [N], the detector's; ones for boxes of the ground truth.
      areas: [N] square pixels, in the released code those of the padded crops; see `oks_nms`.
      sigmas: K, the dataset's own (`Skeleton.sigmas`).
      threshold: of OKS, above which the lower of two poses goes.
      min_score: what a keypoint's score must exceed to count in the person's.
      max_people: people an image at most, 1 or more.
      category_id: of the people in the ground truth.

    Returns:
      COCO results, for `coco_eval.coco_average_precision` or `json.dump`: dicts with `image_id`,
      `category_id`, `keypoints` (3 K numbers: x, y, score) and `score`. Images in order of first appearance,
      in each the best first.

    Raises:
      ValueError: for max_people < 1, or shapes that do not fit.

    >>> poses = np.array([[[10.0, 5.0]], [[10.5, 5.0]], [[90.0, 5.0]]])
    >>> results = coco_results(
    ...     np.array([7, 7, 7]), poses, np.array([[0.5], [1.0], [0.25]]),
    ...     box_scores=np.ones(3), areas=np.full(3, 400.0), sigmas=(0.1,),
    ... )
    >>> [result["keypoints"] for result in results]
    [[10.5, 5.0, 1.0], [90.0, 5.0, 0.25]]
    """
    shapes = [np.shape(array) for array in (image_ids, keypoints, keypoint_scores, box_scores, areas)]
    count = len(image_ids)
    if shapes != [(count,), (count, len(sigmas), 2), (count, len(sigmas)), (count,), (count,)]:
        raise ValueError(
            "image_ids, keypoints, keypoint_scores, box_scores and areas of shapes "
            f"{', '.join(map(str, shapes))} must be [N], [N, K, 2], [N, K], [N] and [N], K={len(sigmas)}"
        )
    if max_people < 1:
        raise ValueError(f"max_people={max_people} < 1: give how many people an image may have")
    scores = np.asarray(
        person_scores(
            np.asarray(keypoint_scores, np.float32), np.asarray(box_scores, np.float32), min_score=min_score
        )
    )
    triples = np.concatenate([keypoints, np.asarray(keypoint_scores)[..., None]], axis=-1, dtype=np.float64)
    return [
        {
            "image_id": int(image_ids[row]),
            "category_id": category_id,
            "keypoints": triples[row].ravel().tolist(),
            "score": float(scores[row]),
        }
        for rows in _by_image(np.asarray(image_ids))
        for row in rows[_kept(keypoints[rows], scores[rows], areas[rows], sigmas, threshold, max_people)]
    ]


def _by_image(image_ids: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of each image, in order."""
    _, first, which = np.unique(image_ids, return_index=True, return_inverse=True)
    rows = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
    for image in np.argsort(first):
        yield rows[image]


def _kept(
    keypoints: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    threshold: float,
    max_people: int,
) -> np.ndarray:
    """Which people of one image remain, best first."""
    count = len(scores)
    free = max(_LEAST_PEOPLE, 1 << (count - 1).bit_length()) - count
    keypoints, scores, areas = (
        np.pad(np.asarray(array, np.float32), [(0, free)] + [(0, 0)] * (array.ndim - 1))
        for array in (keypoints, scores, areas)
    )
    indices, where = oks_nms(
        keypoints,
        scores,
        areas,
        sigmas=sigmas,
        threshold=threshold,
        max_kept=min(max_people, len(scores)),
        where=np.arange(len(scores)) < count,
    )
    return np.asarray(indices)[np.asarray(where)]
