"""`non_max` over boxes against the non-maximum suppression one would otherwise call or write.

Boxes are xyxy float32 pixels. An answer is the indices of the first max_kept boxes of each image, in the
order of the boxes.
"""

import dataclasses
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from timing import Question, Way, jax_way, torch_device, torch_way

from hardmine_jax.mining import non_max

# The float32 nearest to 0.7: the others compare in double precision.
THRESHOLD = float(np.float32(0.7))


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Clustered boxes, as a detector's proposals are.

    Attributes:
      corners: float32 [B, N, 4].
      scores: float32 [B, N], without ties.
    """

    corners: np.ndarray
    scores: np.ndarray


def draw(num_images: int, num_boxes: int, num_objects: int = 100) -> Boxes:
    """About num_boxes / num_objects boxes around each object."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 600, (num_images, num_objects, 1, 2))
    sizes = rng.uniform(40, 200, (num_images, num_objects, 1, 2))
    each = -(-num_boxes // num_objects)
    centres = centres + rng.normal(0, 8, (num_images, num_objects, each, 2))
    sizes = sizes * rng.uniform(0.8, 1.25, (num_images, num_objects, each, 2))
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1).reshape(num_images, -1, 4)
    order = rng.permutation(corners.shape[1])[:num_boxes]
    ranks = rng.permuted(np.broadcast_to(np.arange(num_boxes), (num_images, num_boxes)), axis=-1)
    return Boxes(corners[:, order].astype(np.float32), ((ranks + 1) / num_boxes).astype(np.float32))


def iou_row(corners: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Index -> IoU with that box, from [N, 4]; four vectors, since XLA:CPU does not vectorise along fours."""
    left, top, right, bottom = corners.T
    area = (right - left) * (bottom - top)

    def row(index):
        width = jnp.minimum(right, right[index]) - jnp.maximum(left, left[index])
        height = jnp.minimum(bottom, bottom[index]) - jnp.maximum(top, top[index])
        overlap = jnp.maximum(width, 0) * jnp.maximum(height, 0)
        return overlap / (area[index] + area - overlap)

    return row


def by_rows(scores: jax.Array, corners: jax.Array, max_kept: int) -> jax.Array:
    """Ours: bool [N]."""
    return non_max(scores, iou_row(corners), threshold=THRESHOLD, max_kept=max_kept)


def by_matrix(scores: jax.Array, corners: jax.Array, max_kept: int) -> jax.Array:
    """As usually written in JAX: sort, all N x N overlaps, a loop over all N."""
    order = jnp.argsort(-scores)
    iou = jax.vmap(iou_row(corners[order]))(jnp.arange(len(scores)))
    covers = jnp.triu(iou > THRESHOLD, k=1)

    def visit(i, left):
        return left & ~(covers[i] & left[i])

    left = jax.lax.fori_loop(0, len(scores), visit, jnp.ones(len(scores), bool))
    return jnp.zeros(len(scores), bool).at[order].set(left & (jnp.cumsum(left) <= max_kept))


def by_numpy(scores: np.ndarray, corners: np.ndarray, max_kept: int) -> np.ndarray:
    """The textbook loop: indices, best first."""
    order, kept = np.argsort(-scores), []
    area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    while order.size and len(kept) < max_kept:
        best, order = order[0], order[1:]
        kept.append(best)
        start, end = (
            np.maximum(corners[best, :2], corners[order, :2]),
            np.minimum(corners[best, 2:], corners[order, 2:]),
        )
        overlap = np.maximum(end - start, 0).prod(axis=-1)
        order = order[overlap / (area[best] + area[order] - overlap) <= np.float32(THRESHOLD)]
    return np.array(kept)


def libraries(boxes: Boxes, answer: Callable) -> dict[str, Way]:
    """torchvision's and OpenCV's, where installed: image after image, indices best first."""
    ways = {}
    if importlib.util.find_spec("torchvision"):
        import torch
        from torchvision.ops import nms

        arrays = (torch.tensor(array, device=torch_device()) for array in (boxes.corners, boxes.scores))
        pairs_of_tensors = list(zip(*arrays, strict=True))
        ways["torchvision"] = torch_way(lambda: [nms(*pair, THRESHOLD) for pair in pairs_of_tensors], answer)
    if importlib.util.find_spec("cv2"):
        import cv2

        corners, sizes = boxes.corners[..., :2], boxes.corners[..., 2:] - boxes.corners[..., :2]
        rectangles = np.concatenate([corners, sizes], axis=-1).tolist()
        pairs = list(zip(rectangles, boxes.scores.tolist(), strict=True))
        ways["OpenCV"] = Way(
            lambda: [cv2.dnn.NMSBoxes(*pair, 0.0, THRESHOLD) for pair in pairs], answer=answer
        )
    return ways


def suppression(boxes: Boxes, max_kept: int) -> Question:
    """Over each image."""

    def from_keep(keep):
        return np.stack([np.flatnonzero(row) for row in np.atleast_2d(keep)])

    def from_indices(rows):
        return np.stack([np.sort(np.asarray(row).reshape(-1)[:max_kept]) for row in rows])

    def over_images(function):
        def one(scores, corners):
            return function(scores, corners, max_kept)

        if len(boxes.scores) == 1:
            return jax_way(one, boxes.scores[0], boxes.corners[0], has_loop=True, answer=from_keep)
        return jax_way(jax.vmap(one), boxes.scores, boxes.corners, has_loop=True, answer=from_keep)

    def loop():
        return [by_numpy(*pair, max_kept) for pair in zip(boxes.scores, boxes.corners, strict=True)]

    ways = {
        "non_max, rows": over_images(by_rows),
        "N x N matrix": over_images(by_matrix),
        "numpy, loop": Way(loop, answer=from_indices),
        **libraries(boxes, from_indices),
    }
    num_images, num_boxes = boxes.scores.shape
    title = f"non_max, {num_images} image(s) of {num_boxes:,} boxes, max_kept={max_kept}, IoU 0.7"
    return Question(title, ways)
