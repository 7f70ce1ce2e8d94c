"""RoIs with their targets, and the choice among them.

The units are the N RoIs of an image: its proposals, then its ground-truth boxes. Boxes are float32 xyxy in
pixels of the input.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from hardmine_jax.detection import area, encode_boxes, iou, match, ohem, sample_rois
from hardmine_jax.detection.match import part_inside
from hardmine_jax.mining import hard_negatives, quota_top_k

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
        Fast R-CNN's draw (a quarter foreground, background with IoU in [background_overlap, 0.5)); "all"
        every RoI; "focal" every RoI, with focal losses; "hard_negatives" the foreground and `ratio` times as
        many of the hardest background (SSD: 3); "bootstrap" Fast R-CNN's draw with background from the pool
        of false positives.
      k: RoIs an image, B/N of the OHEM paper; also the fixed denominator an image, except of "all".
      iou_threshold: of the non-maximum suppression on losses.
      min_negatives: of "hard_negatives", background at least, also of an image without objects.
      background_overlap: of "random", what background's IoU with the nearest object must reach; 0 takes any,
        and so that of images without objects.
      ratio: of "hard_negatives", background for each RoI with an object.
      foreground_quota: of "ohem" and "masked", so many RoIs with an object at most, the hardest, filled up
        with the hardest background to k; both among the 4 k hardest that do not overlap. None: what is hard.
    """

    kind: MiningName
    k: int
    iou_threshold: float = 0.7
    min_negatives: int = 0
    background_overlap: float = 0.1
    ratio: float = 3.0
    foreground_quota: int | None = None


def make_rois(batch: dict) -> Rois:
    """Proposals and ground-truth boxes of a batch with labels and targets, [B, N], N = P + M.

    Difficult objects train nothing: they are no targets, and a RoI that lies on one and on no other object is
    left out, since its label would be background. It lies on one by their IoU, and in a crowd by the part of
    the RoI that is inside, as in COCO's evaluation; of a batch without "crowd" all difficult ones are crowds.
    Boxes without area take no part.
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
    difficult, crowd = objects & batch["difficult"], batch.get("crowd", batch["difficult"])
    on_one = jnp.where((difficult & ~crowd)[:, None], iou(boxes, batch["boxes"]), 0.0).max(-1)
    in_crowd = part_inside(boxes, batch["boxes"], where=difficult & crowd)
    where &= foreground | ((on_one < FOREGROUND) & (in_crowd < FOREGROUND))
    targets = encode_boxes(boxes, jnp.where(foreground[..., None], matched.boxes, boxes))
    pool = jnp.zeros(where.shape, bool)
    if "pool" in batch:
        pool = jnp.concatenate([batch["pool"], jnp.zeros(easy.shape, bool)], axis=1)
    return Rois(boxes, matched.labels, targets, matched.overlaps, where, pool)


def choose_rois(losses: jax.Array, rois: Rois, mining: Mining) -> jax.Array:
    """keep [N] of one image, by the losses of all its RoIs."""
    if mining.kind in ("ohem", "masked"):
        return _hardest(losses, rois, mining)
    if mining.kind == "hard_negatives":
        positive = rois.where & (rois.labels > 0)
        negative = hard_negatives(
            losses,
            positive=positive,
            ratio=mining.ratio,
            min_negatives=mining.min_negatives,
            where=rois.where,
        )
        return positive | negative
    return rois.where


def _hardest(losses: jax.Array, rois: Rois, mining: Mining) -> jax.Array:
    k, quota = mining.k, mining.foreground_quota
    most = k if quota is None else min(4 * k, len(losses))
    keep = ohem(losses, rois.boxes, k=most, iou_threshold=mining.iou_threshold, where=rois.where)
    if quota is None:
        return keep
    foreground = rois.labels > 0
    count = jnp.minimum((keep & foreground).sum(dtype=jnp.int32), quota)
    return quota_top_k(losses, foreground, k=jnp.stack([k - count, count]), where=keep)


def draw_rois(key: jax.Array, rois: Rois, mining: Mining) -> jax.Array:
    """keep [N] of one image, drawn without regard to losses."""
    where, least = rois.where, mining.background_overlap
    if mining.kind == "bootstrap":
        where, least = where & (rois.pool | (rois.labels > 0)), 0.0
    background = (least, FOREGROUND)
    return sample_rois(key, rois.labels, rois.overlaps, k=mining.k, background=background, where=where)
