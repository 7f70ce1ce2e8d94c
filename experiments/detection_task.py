"""Fast R-CNN as a task: RoIs with their targets, the mined loss, and detections in original pixels.

The units are the N RoIs of an image: its proposals, then its ground-truth boxes. Images are uint8
[B, H, W, 3], boxes float32 xyxy in pixels of that input. The trunk runs once a batch; the RoI head is what
mining repeats.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hardmine_jax.detection import (
    area,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    fast_rcnn_losses,
    focal_losses,
    iou,
    match,
    nms,
    ohem,
    roi_align,
    roi_pool,
    sample_rois,
    smooth_l1,
)
from hardmine_jax.mining import hard_negatives, masked_mean, mine, stats
from hardmine_jax.mining.fit import fit
from hardmine_jax.models import normalise_images

MiningName = Literal["ohem", "random", "all", "masked", "focal", "hard_negatives", "bootstrap"]
FOREGROUND = 0.5


class Rois(NamedTuple):
    """The units.

    Attributes:
      boxes: [..., N, 4].
      labels: int32 [..., N], 0 background.
      targets: [..., N, 4], deltas to the matched object; zeros on background.
      overlaps: [..., N], IoU with the nearest object.
      where: bool [..., N], takes part.
      pool: bool [..., N], in the pool of `bootstrap`.
    """

    boxes: jax.Array
    labels: jax.Array
    targets: jax.Array
    overlaps: jax.Array
    where: jax.Array
    pool: jax.Array


@dataclasses.dataclass(frozen=True)
class Mining:
    """What carries the gradient.

    Attributes:
      kind: "ohem" the k hardest RoIs of each image that do not overlap one another, found without gradient
        and run again; "masked" the same ones, but the gradient is taken through all and zeroed; "random"
        Fast R-CNN's draw (a quarter foreground, background with IoU in [0.1, 0.5)); "all" every RoI; "focal"
        every RoI, with focal losses; "hard_negatives" the foreground and three times as many of the hardest
        background (SSD); "bootstrap" Fast R-CNN's draw with background from the pool of false positives.
      k: RoIs an image, B/N of the OHEM paper; also the fixed denominator an image, except of "all".
      iou_threshold: of the non-maximum suppression on losses.
    """

    kind: MiningName
    k: int
    iou_threshold: float = 0.7


def make_rois(batch: dict) -> Rois:
    """Proposals and ground-truth boxes of a batch with labels and targets, [B, N], N = P + M.

    Difficult objects train nothing: they are no targets, and a RoI that lies on one and on no other object is
    left out, since its label would be background. Boxes without area take no part.
    """
    objects = batch["boxes_where"] & (area(batch["boxes"]) > 0)
    easy = objects & ~batch["difficult"]
    boxes = jnp.concatenate([batch["proposals"], batch["boxes"]], axis=1)
    where = jnp.concatenate([batch["proposals_where"], easy], axis=1) & (area(boxes) > 0)
    where &= batch["where"][:, None]
    # Padding is all zeros: pooled, decoded and compared like any other it shall stay finite.
    small = jnp.array([0.0, 0.0, 16.0, 16.0], boxes.dtype).reshape(1, 1, 4)
    boxes = jnp.where(where[..., None], boxes, small)
    matched = match(boxes, batch["boxes"], batch["labels"], foreground=FOREGROUND, where=easy)
    foreground = matched.labels > 0
    difficult = jnp.where((objects & batch["difficult"])[:, None], iou(boxes, batch["boxes"]), 0.0)
    where &= foreground | (difficult.max(-1) < FOREGROUND)
    targets = encode_boxes(boxes, jnp.where(foreground[..., None], matched.boxes, boxes))
    pool = jnp.zeros(where.shape, bool)
    if "pool" in batch:
        pool = jnp.concatenate([batch["pool"], jnp.zeros(easy.shape, bool)], axis=1)
    return Rois(boxes, matched.labels, targets, matched.overlaps, where, pool)


def make_loss(
    model: nn.Module, mining: Mining
) -> Callable[..., tuple[jax.Array, tuple[dict, dict[str, jax.Array]]]]:
    """The training loss `(params, batch_stats, batch, key) -> (loss, (batch_stats, metrics))`.

    Every sum over RoIs is divided by a fixed number an image, so that devices average exactly.

    Returns:
      The function. Its metrics: `fraction_kept` of the RoIs, `foreground_share` of the kept ones, and where
        the losses of all are known `loss_captured`, the kept ones' part of their sum.
    """

    def loss_function(params, batch_stats, batch, key):
        variables = {"params": params, "batch_stats": batch_stats}
        images = normalise_images(batch["image"])
        features, updated = model.apply(
            variables, images, train=True, method="features", mutable=["batch_stats"]
        )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        rois = make_rois(batch)
        one = make_image_loss(model, mining)
        losses, metrics = jax.vmap(one, (None, 0, 0, 0))(variables, features, rois, keys)
        metrics = jax.tree.map(lambda x: jax.lax.stop_gradient(x.mean(0)), metrics)
        return losses.mean(), (updated.get("batch_stats", {}), metrics)

    return loss_function


def make_image_loss(model: nn.Module, mining: Mining) -> Callable[..., tuple[jax.Array, dict]]:
    """`(variables, features [h, w, F], rois [N], key) -> (loss [], metrics)` of one image."""
    head_losses = make_head_losses(model, focal=mining.kind == "focal", train=True)

    def choose(losses, rois, *_):
        return choose_rois(losses, rois, mining)

    def image_loss(variables, features, rois, key):
        sample_key, dropout_key = jax.random.split(key)
        # One key a RoI: found hard under one dropout mask, it is to be learned from under the same.
        keys = jax.random.split(dropout_key, len(rois.boxes)) if model.dropout else None
        if mining.kind == "ohem":
            seen = {}

            def select(losses, rois, *_):
                # The losses of the read-only pass, for the statistics: nobody else gets to see them.
                seen["losses"], seen["keep"] = losses, choose(losses, rois)
                return seen["keep"]

            hard = mine(head_losses, select, capacity=mining.k, in_axes=(None, None, 0, 0))
            mined = hard(variables, features, rois, keys)
            loss = masked_mean(mined.losses, where=mined.keep, denominator=mining.k)
            return loss, _describe(rois, seen["keep"], seen["losses"])
        if mining.kind in ("random", "bootstrap"):
            keep = draw_rois(sample_key, rois, mining)
            chosen = fit(keep.astype(jnp.float32), keep, capacity=mining.k)
            few, few_keys = jax.tree.map(lambda x: x[chosen.indices], (rois, keys))
            losses = head_losses(variables, features, few, few_keys)
            loss = masked_mean(losses, where=chosen.keep, denominator=mining.k)
            return loss, _describe(rois, keep)
        losses = head_losses(variables, features, rois, keys)
        keep = choose(losses, rois)
        denominator = len(losses) if mining.kind == "all" else mining.k
        return masked_mean(losses, where=keep, denominator=denominator), _describe(rois, keep, losses)

    return image_loss


def make_head_losses(model: nn.Module, *, focal: bool, train: bool) -> Callable[..., jax.Array]:
    """`(variables, features [h, w, F], rois [n], keys [n] or None) -> losses [n]`, pooling included.

    Boxes carry the units, the feature map is shared: so no gradient of the pooled features is ever made for
    RoIs that were not chosen.
    """

    def head_losses(variables: dict, features: jax.Array, rois: Rois, keys: jax.Array | None) -> jax.Array:
        logits, deltas = apply_head(model, variables, features, rois.boxes, train=train, keys=keys)
        if not focal:
            return fast_rcnn_losses(logits, deltas, rois.labels, rois.targets)
        box = smooth_l1(_own_deltas(deltas, rois.labels) - rois.targets).sum(-1)
        return focal_losses(logits[..., 1:], rois.labels) + jnp.where(rois.labels > 0, box, 0.0)

    return head_losses


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
    return model.apply(variables, pooled, train, keys, method="head")


def choose_rois(losses: jax.Array, rois: Rois, mining: Mining) -> jax.Array:
    """keep [N] of one image, by the losses of all its RoIs."""
    if mining.kind in ("ohem", "masked"):
        return ohem(losses, rois.boxes, k=mining.k, iou_threshold=mining.iou_threshold, where=rois.where)
    if mining.kind == "hard_negatives":
        positive = rois.where & (rois.labels > 0)
        return positive | hard_negatives(losses, positive=positive, where=rois.where)
    return rois.where


def draw_rois(key: jax.Array, rois: Rois, mining: Mining) -> jax.Array:
    """keep [N] of one image, drawn without regard to losses."""
    if mining.kind == "random":
        return sample_rois(key, rois.labels, rois.overlaps, k=mining.k, where=rois.where)
    where = rois.where & (rois.pool | (rois.labels > 0))
    background = (0.0, FOREGROUND)
    return sample_rois(key, rois.labels, rois.overlaps, k=mining.k, background=background, where=where)


def make_choice(model: nn.Module, mining: Mining) -> Callable[[dict, dict], dict[str, jax.Array]]:
    """`(variables, batch) -> {"keep" bool [B, N], "boxes" [B, N, 4], "labels" [B, N]}`: what this network
    would be trained on, without dropout; draws are the same each time."""
    head_losses = make_head_losses(model, focal=mining.kind == "focal", train=False)

    def choice(variables: dict, batch: dict) -> dict[str, jax.Array]:
        features = model.apply(variables, normalise_images(batch["image"]), train=False, method="features")

        def one(features, rois, index):
            if mining.kind in ("random", "bootstrap"):
                return draw_rois(jax.random.fold_in(jax.random.key(0), index), rois, mining)
            return choose_rois(head_losses(variables, features, rois, None), rois, mining)

        rois = make_rois(batch)
        keep = jax.vmap(one)(features, rois, batch["index"])
        return {"keep": keep, "boxes": rois.boxes, "labels": rois.labels}

    return choice


@dataclasses.dataclass(frozen=True)
class Decoding:
    """From the head's outputs to detections.

    Attributes:
      iou_threshold: of the non-maximum suppression within a class.
      min_score: detections below it are dropped.
      max_detections: an image.
      sigmoid: each class scored by itself (a head trained with focal losses), not a softmax.
    """

    iou_threshold: float = 0.3
    min_score: float = 0.01
    max_detections: int = 100
    sigmoid: bool = False


def make_predict(model: nn.Module, decoding: Decoding) -> Callable[[dict, dict], dict[str, jax.Array]]:
    """`(variables, batch) -> {"boxes" [B, D, 4] original pixels, "scores" [B, D], "labels" int32 [B, D],
    "where" bool [B, D]}`, best first, D = max_detections; all shapes static.

    The batch needs "image", "image_size", "scale", "proposals" and "proposals_where".
    """

    def predict(variables: dict, batch: dict) -> dict[str, jax.Array]:
        features = model.apply(variables, normalise_images(batch["image"]), train=False, method="features")
        where = batch["proposals_where"] & (area(batch["proposals"]) > 0)

        def one(features, proposals, where, size):
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

    def one_class(boxes, scores):
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
        features = model.apply(variables, normalise_images(batch["image"]), train=False, method="features")
        num_proposals = batch["proposals"].shape[1]
        rois = jax.tree.map(lambda x: x[:, :num_proposals], make_rois(batch))

        def one(features, rois):
            logits, _ = apply_head(model, variables, features, rois.boxes, train=False)
            scores = jax.nn.softmax(logits)
            wrong = rois.where & (rois.labels == 0)
            best, slots = jax.lax.top_k(jnp.where(wrong, scores[:, 1:].max(-1), -1.0), count)
            return {"slots": slots.astype(jnp.int32), "scores": best, "where": best >= 0}

        return jax.vmap(one)(features, rois)

    return search


def _own_deltas(deltas: jax.Array, labels: jax.Array) -> jax.Array:
    """[n, C, 4] -> [n, 4], those of the RoI's own class."""
    row = jnp.maximum(labels - 1, 0)
    return jnp.take_along_axis(deltas, row[:, None, None], axis=1)[:, 0]


def _describe(rois: Rois, keep: jax.Array, losses: jax.Array | None = None) -> dict[str, Any]:
    """What was kept of one image."""
    known = losses is not None
    described = stats(losses if known else keep.astype(jnp.float32), keep, rois.where)
    count = jnp.maximum(keep.sum(), 1)
    metrics = {
        "fraction_kept": described.fraction_kept,
        "foreground_share": (keep & (rois.labels > 0)).sum() / count,
    }
    return {**metrics, "loss_captured": described.loss_captured} if known else metrics
