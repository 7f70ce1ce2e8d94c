"""`nms` and `match` against what one would otherwise call or write.

Boxes are xyxy float32 pixels, drawn around objects as proposals are.
"""

import importlib.util

import jax.numpy as jnp
import mining_boxes
import numpy as np
from timing import Question, Way, jax_way, torch_device, torch_way

from hardmine_jax.detection import iou, match, nms

HAS_TORCH = importlib.util.find_spec("torch") is not None


def suppression(boxes: mining_boxes.Boxes, max_kept: int) -> Question:
    """Of one image; an answer is the indices, best first."""
    scores, corners = boxes.scores[0], boxes.corners[0]
    threshold = mining_boxes.THRESHOLD

    def ours(corners, scores):
        return nms(corners, scores, threshold=threshold, max_kept=max_kept)

    def by_matrix(corners, scores):
        return mining_boxes.by_matrix(scores, corners, max_kept)

    def best_first(keep):
        kept = np.flatnonzero(keep)
        return kept[np.argsort(-scores[kept])]

    def first_of_images(rows):
        return np.asarray(rows[0]).reshape(-1)[:max_kept]

    def kept_slots(found):
        indices, where = map(np.asarray, found)
        return indices[where]

    ways = {
        "nms": jax_way(ours, corners, scores, has_loop=True, answer=kept_slots),
        "N x N matrix": jax_way(by_matrix, corners, scores, has_loop=True, answer=best_first),
        "numpy, loop": Way(lambda: mining_boxes.by_numpy(scores, corners, max_kept)),
        **mining_boxes.libraries(boxes, first_of_images),
    }
    if HAS_TORCH:
        import detection_torch
        import torch

        tensors = tuple(torch.tensor(array, device=torch_device()) for array in (corners, scores))
        ways["PyTorch, loop"] = torch_way(lambda: detection_torch.nms_loop(*tensors, threshold, max_kept))
    return Question(f"nms, {len(scores):,} boxes, max_kept={max_kept}, IoU 0.7", ways)


def matching(boxes: mining_boxes.Boxes, num_objects: int) -> Question:
    """To some of the boxes, moved; an answer is the labels and the overlaps."""
    corners = boxes.corners[0]
    rng = np.random.default_rng(1)
    objects = corners[rng.permutation(len(corners))[:num_objects]]
    objects = (objects + rng.normal(0, 5, objects.shape)).astype(np.float32)
    labels = rng.integers(1, 21, num_objects).astype(np.int32)

    def by_argmax(corners, objects, labels):
        overlaps = iou(corners, objects)
        found = jnp.where(overlaps.max(1) >= 0.5, labels[overlaps.argmax(1)], 0)
        return found, overlaps.max(1)

    def labels_and_overlaps(found):
        return np.stack([np.asarray(each, np.float32) for each in found[:2]])

    def ours(*operands):
        matched = match(*operands)
        return matched.labels, matched.overlaps

    operands = corners, objects, labels
    ways = {
        "match": jax_way(ours, *operands, answer=labels_and_overlaps),
        "argmax in JAX": jax_way(by_argmax, *operands, answer=labels_and_overlaps),
    }
    if HAS_TORCH:
        import detection_torch
        import torch

        tensors = tuple(torch.tensor(array, device=torch_device()) for array in operands)
        ways["PyTorch"] = torch_way(lambda: detection_torch.match(*tensors), answer=labels_and_overlaps)
    return Question(f"match, {len(corners):,} boxes x {num_objects} objects", ways)
