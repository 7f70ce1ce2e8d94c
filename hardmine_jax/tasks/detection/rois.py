"""RoIs with their targets, and the choice among them.

The units are the N RoIs of an image: its proposals, then its ground-truth boxes. Boxes are float32 xyxy in
pixels of the input.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from hardmine_jax.detection import area, encode_boxes, iou, match, ohem, sample_rois
from hardmine_jax.mining import hard_negatives

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
