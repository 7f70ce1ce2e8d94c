"""Keypoints: heatmaps, crops, losses and metrics, as pure functions. Pixels are (x, y), maps are NHWC.

`hardmine_jax.pose.coco_eval` (COCO AP and AR) is imported by name: it needs faster-coco-eval.
"""

from hardmine_jax.pose.affine import (
    affine_matrix,
    apply_affine,
    box_to_centre_scale,
    flip_heatmaps,
    flip_keypoints,
    half_body,
    invert_affine,
)
from hardmine_jax.pose.heatmaps import decode_heatmaps, encode_heatmaps, heatmap_to_image, image_to_heatmap
from hardmine_jax.pose.losses import heatmap_mse, ohkm
from hardmine_jax.pose.metrics import oks, pck, pck_correct, pckh
from hardmine_jax.pose.oks_nms import oks_nms
from hardmine_jax.pose.person_scores import person_scores
from hardmine_jax.pose.skeleton import Skeleton

__all__ = [
    "Skeleton",
    "affine_matrix",
    "apply_affine",
    "box_to_centre_scale",
    "decode_heatmaps",
    "encode_heatmaps",
    "flip_heatmaps",
    "flip_keypoints",
    "half_body",
    "heatmap_mse",
    "heatmap_to_image",
    "image_to_heatmap",
    "invert_affine",
    "ohkm",
    "oks",
    "oks_nms",
    "pck",
    "pck_correct",
    "pckh",
    "person_scores",
]
