"""Detection: boxes, regions, losses and metrics, as pure functions. Boxes are xyxy in pixels, no + 1.

`hardmine_jax.detection.coco_eval` (COCO AP and AR) is imported by name: it needs faster-coco-eval.
"""

from hardmine_jax.detection.anchors import make_anchors
from hardmine_jax.detection.boxes import area, clip_boxes, decode_boxes, encode_boxes, iou
from hardmine_jax.detection.losses import fast_rcnn_losses, focal_losses, smooth_l1
from hardmine_jax.detection.match import Matched, match
from hardmine_jax.detection.metrics import (
    AveragePrecision,
    ClassPrecision,
    Detections,
    GroundTruth,
    average_precision,
)
from hardmine_jax.detection.nms import nms
from hardmine_jax.detection.ohem import ohem
from hardmine_jax.detection.proposals import selective_search
from hardmine_jax.detection.roi_align import roi_align
from hardmine_jax.detection.roi_pool import roi_pool
from hardmine_jax.detection.sampling import sample_rois
from hardmine_jax.detection.soft_nms import soft_nms

__all__ = [
    "AveragePrecision",
    "ClassPrecision",
    "Detections",
    "GroundTruth",
    "Matched",
    "area",
    "average_precision",
    "clip_boxes",
    "decode_boxes",
    "encode_boxes",
    "fast_rcnn_losses",
    "focal_losses",
    "iou",
    "make_anchors",
    "match",
    "nms",
    "ohem",
    "roi_align",
    "roi_pool",
    "sample_rois",
    "selective_search",
    "smooth_l1",
    "soft_nms",
]
