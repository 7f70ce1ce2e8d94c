"""`roi_pool` and `roi_align` against torchvision's, or plain PyTorch where that is not installed.

Features are drawn [H, W, C], boxes xyxy float32 image pixels. PyTorch is given its own layout, [1, C, H, W].
An answer is the norm of each channel of the result, and of the gradient to features where it is asked for.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable

import jax
import numpy as np
from timing import Question, Way, jax_way, torch_device, torch_way

from hardmine_jax.detection import roi_align, roi_pool

SIZE = (7, 7)


@dataclasses.dataclass(frozen=True)
class Regions:
    """Boxes of one image and what to pool.

    Attributes:
      features: float32 [H, W, C].
      boxes: float32 [N, 4], inside the map.
      gradient: float32 [N, 7, 7, C], to be pulled back.
      stride: image pixels a feature pixel.
    """

    features: np.ndarray
    boxes: np.ndarray
    gradient: np.ndarray
    stride: int = 16


def draw(num_boxes: int, shape: tuple[int, int, int]) -> Regions:
    """Boxes from a twentieth of what is right of and below their corner to all of it."""
    rng = np.random.default_rng(0)
    stride = Regions.stride
    # The centre of the last feature pixel: no bin is clipped, which not all ways do alike.
    end = stride * (np.array([shape[1], shape[0]]) - 1)
    corner = rng.uniform(0, 0.8 * end, (num_boxes, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 1, (num_boxes, 2)) * (end - corner)], axis=-1)
    features, gradient = (rng.standard_normal(s, np.float32) for s in (shape, (num_boxes, *SIZE, shape[2])))
    return Regions(features, boxes.astype(np.float32), gradient, stride)


def pooling(regions: Regions, *, backward: bool) -> Question:
    """`roi_pool`: forward, or forward and backward."""
    return _question("roi_pool", roi_pool, regions, backward)


def aligning(regions: Regions, *, backward: bool) -> Question:
    """`roi_align` with its defaults: forward, or forward and backward."""
    return _question("roi_align", roi_align, regions, backward)


def _question(name: str, function: Callable, regions: Regions, backward: bool) -> Question:
    ours = functools.partial(function, size=SIZE, stride=regions.stride)

    def pull(features, boxes, gradient):
        pooled, pull = jax.vjp(lambda features: ours(features, boxes), features)
        return pooled, *pull(gradient)

    def forward(features, boxes):
        return (ours(features, boxes),)

    arrays = (regions.features, regions.boxes, regions.gradient)
    run, operands = (pull, arrays) if backward else (forward, arrays[:2])
    ways = {name: jax_way(run, *operands, has_loop=True, answer=_norms)}
    if importlib.util.find_spec("torch"):
        ways |= _torch_way(name, regions, backward)
    height, width, channels = regions.features.shape
    what = "forward and backward" if backward else "forward"
    return Question(f"{name}, {len(regions.boxes):,} boxes on {height} x {width} x {channels}, {what}", ways)


def _norms(arrays) -> np.ndarray:
    return np.stack(
        [np.sqrt(np.square(np.asarray(x, np.float64)).reshape(-1, x.shape[-1]).sum(0)) for x in arrays]
    )


def _torch_way(name: str, regions: Regions, backward: bool) -> dict[str, Way]:
    import detection_torch
    import torch

    arrays = regions.features.transpose(2, 0, 1)[None], regions.gradient.transpose(0, 3, 1, 2), regions.boxes
    features, gradient, boxes = (
        torch.tensor(np.ascontiguousarray(array), device=torch_device()) for array in arrays
    )
    features.requires_grad_(backward)

    def run():
        features.grad = None
        if name == "roi_pool":
            pooled = detection_torch.pool(features, boxes, regions.stride)
        else:
            pooled = detection_torch.align(features, [boxes], regions.stride)
        if backward:
            pooled.backward(gradient)
        return [pooled.detach(), *([features.grad] if backward else [])]

    plain = {"roi_pool": "adaptive_max_pool2d of each box", "roi_align": "grid_sample and avg_pool2d"}
    way = torch_way(run, answer=lambda found: _norms([np.moveaxis(x, 1, -1) for x in found]))
    return {detection_torch.name(plain[name]): way}
