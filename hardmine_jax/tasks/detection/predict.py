"""From images and proposals to detections in pixels of the originals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hardmine_jax.detection import area, clip_boxes, decode_boxes, nms, roi_align, roi_pool
from hardmine_jax.models import normalise_images
from hardmine_jax.tasks.detection.rois import Rois, make_rois


def apply_head(
    model: nn.Module,
    variables: dict,
    features: jax.Array,
    boxes: jax.Array,
    *,
    train: bool,
    keys: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Pools the boxes [n, 4] of one image and runs the RoI head: logits [n, C+1] and deltas [n, C, 4].

    Args:
      keys: [n], a dropout key a box; None where nothing is dropped.
    """
    pool = {"pool": roi_pool, "align": roi_align}[model.pooling]
    pooled = pool(features, boxes, stride=model.stride)
    outputs: Any = model.apply(variables, pooled, train, keys, method="head")
    return outputs


def apply_trunk(model: nn.Module, variables: dict, images: jax.Array) -> jax.Array:
    """Features [B, h, w, F] of images uint8 [B, H, W, 3]."""
    features: Any = model.apply(variables, normalise_images(images), train=False, method="features")
    return features


@dataclasses.dataclass(frozen=True)
class Decoding:
    """From the head's outputs to detections.

    Attributes:
      iou_threshold: of the non-maximum suppression within a class.
      min_score: detections below it are dropped.
      max_detections: an image.
      sigmoid: each class scored by itself (a head trained with focal losses), not a softmax.
      labels: of the classes to look for; None for all.
    """

    iou_threshold: float = 0.3
    min_score: float = 0.01
    max_detections: int = 100
    sigmoid: bool = False
    labels: tuple[int, ...] | None = None


def make_predict(model: nn.Module, decoding: Decoding) -> Callable[[dict, dict], dict[str, jax.Array]]:
    """`(variables, batch) -> {"boxes" [B, D, 4] original pixels, "scores" [B, D], "labels" int32 [B, D],
    "where" bool [B, D]}`, best first, D = max_detections; all shapes static.

    The batch needs "image", "image_size", "scale", "proposals" and "proposals_where".
    """

    def predict(variables: dict, batch: dict) -> dict[str, jax.Array]:
        features = apply_trunk(model, variables, batch["image"])
        where = batch["proposals_where"] & (area(batch["proposals"]) > 0)

        def one(
            features: jax.Array, proposals: jax.Array, where: jax.Array, size: jax.Array
        ) -> dict[str, jax.Array]:
            logits, deltas = apply_head(model, variables, features, proposals, train=False)
            scores = jax.nn.sigmoid(logits) if decoding.sigmoid else jax.nn.softmax(logits)
            boxes = clip_boxes(decode_boxes(proposals[:, None], deltas), size=(size[0], size[1]))
            return find_detections(boxes, scores[:, 1:], where, decoding)

        found = jax.vmap(one)(features, batch["proposals"], where, batch["image_size"])
        return {**found, "boxes": found["boxes"] / batch["scale"][:, None, None]}

    return predict


def find_detections(
    boxes: jax.Array, scores: jax.Array, where: jax.Array, decoding: Decoding
) -> dict[str, jax.Array]:
    """Non-maximum suppression within each class, then the best of all classes; see `make_predict`.

    Args:
      boxes: [P, C, 4]; scores: [P, C]; where: bool [P].
    """
    num_boxes, num_classes = scores.shape
    kept = min(decoding.max_detections, num_boxes)
    if decoding.labels is not None:
        wanted_classes = jnp.isin(jnp.arange(1, num_classes + 1), jnp.array(decoding.labels))
        scores = jnp.where(wanted_classes, scores, -1.0)

    def one_class(boxes: jax.Array, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        wanted = where & (scores >= decoding.min_score)
        indices, keep = nms(boxes, scores, threshold=decoding.iou_threshold, max_kept=kept, where=wanted)
        return boxes[indices], jnp.where(keep, scores[indices], -1.0)

    boxes, scores = jax.vmap(one_class, (1, 1))(boxes, scores)
    labels = jnp.broadcast_to(jnp.arange(1, num_classes + 1, dtype=jnp.int32)[:, None], scores.shape)
    flat_boxes, flat_scores, flat_labels = boxes.reshape(-1, 4), scores.ravel(), labels.ravel()
    short = max(0, decoding.max_detections - len(flat_scores))
    flat_scores = jnp.pad(flat_scores, (0, short), constant_values=-1.0)
    flat_boxes, flat_labels = jnp.pad(flat_boxes, ((0, short), (0, 0))), jnp.pad(flat_labels, (0, short))
    best, indices = jax.lax.top_k(flat_scores, decoding.max_detections)
    where = best >= 0
    return {
        "boxes": jnp.where(where[:, None], flat_boxes[indices], 0.0),
        "scores": jnp.where(where, best, 0.0),
        "labels": jnp.where(where, flat_labels[indices], 0),
        "where": where,
    }


def false_positives(model: nn.Module, *, count: int) -> Callable[[dict, dict], dict[str, jax.Array]]:
    """`(variables, batch) -> {"slots" int32 [B, count], "scores" [B, count], "where" bool [B, count]}`.

    The background proposals that look most like an object of some class, by their place among the proposals.
    """

    def search(variables: dict, batch: dict) -> dict[str, jax.Array]:
        features = apply_trunk(model, variables, batch["image"])
        num_proposals = batch["proposals"].shape[1]
        rois = jax.tree.map(lambda x: x[:, :num_proposals], make_rois(batch))

        def one(features: jax.Array, rois: Rois) -> dict[str, jax.Array]:
            logits, _ = apply_head(model, variables, features, rois.boxes, train=False)
            scores = jax.nn.softmax(logits)
            wrong = rois.where & (rois.labels == 0)
            best, slots = jax.lax.top_k(jnp.where(wrong, scores[:, 1:].max(-1), -1.0), count)
            return {"slots": slots.astype(jnp.int32), "scores": best, "where": best >= 0}

        return jax.vmap(one)(features, rois)

    return search


# What `predict.make_predict` reads of a batch.
PREDICTED_FROM = ("image", "image_size", "scale", "proposals", "proposals_where")
