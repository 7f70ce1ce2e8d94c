"""`roi_pool` and `roi_align` against torchvision's, or where it is not installed against plain PyTorch.

Features are drawn [H, W, C], boxes xyxy float32 image pixels. PyTorch is given its own layout, [1, C, H, W].
An answer is the norm of each channel of the result, and of the gradient to features where it is asked for.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable

import jax
import numpy as np
from timing import Question, Way, jax_way

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
    return _question("roi_pool", roi_pool, _torch_pool, regions, backward)


def aligning(regions: Regions, *, backward: bool) -> Question:
    """`roi_align` with its defaults: forward, or forward and backward."""
    return _question("roi_align", roi_align, _torch_align, regions, backward)


def _question(name: str, ours: Callable, theirs: Callable, regions: Regions, backward: bool) -> Question:
    ours = functools.partial(ours, size=SIZE, stride=regions.stride)

    def pull(features, boxes, gradient):
        pooled, pull = jax.vjp(lambda features: ours(features, boxes), features)
        return pooled, *pull(gradient)

    def forward(features, boxes):
        return (ours(features, boxes),)

    arrays = (regions.features, regions.boxes, regions.gradient)
    ways = {name: jax_way(pull, *arrays, has_loop=True, answer=_norms)}
    if not backward:
        # Its one loop is for boxes far larger than the map.
        ways = {name: jax_way(forward, *arrays[:2], answer=_norms)}
    if importlib.util.find_spec("torch"):
        ways |= _torch_way(theirs, regions, backward)
    height, width, channels = regions.features.shape
    what = "forward and backward" if backward else "forward"
    return Question(f"{name}, {len(regions.boxes):,} boxes on {height} x {width} x {channels}, {what}", ways)


def _norms(arrays) -> np.ndarray:
    return np.stack(
        [np.sqrt(np.square(np.asarray(x, np.float64)).reshape(-1, x.shape[-1]).sum(0)) for x in arrays]
    )


def _torch_way(pooled_by: Callable, regions: Regions, backward: bool) -> dict[str, Way]:
    """`pooled_by` (features, boxes, stride) -> (its name, a function without arguments -> [N, C, 7, 7])."""
    import torch

    features = torch.tensor(np.ascontiguousarray(regions.features.transpose(2, 0, 1)[None]))
    gradient = torch.tensor(np.ascontiguousarray(regions.gradient.transpose(0, 3, 1, 2)))
    features.requires_grad_(backward)
    name, pool = pooled_by(features, torch.tensor(regions.boxes), regions.stride)

    def run():
        features.grad = None
        pooled = pool()
        if backward:
            pooled.backward(gradient)
        return [pooled.detach(), *([features.grad] if backward else [])]

    return {name: Way(run, answer=lambda found: _norms([x.movedim(1, -1).numpy() for x in found]))}


def _torch_pool(features, boxes, stride: int) -> tuple[str, Callable]:
    if importlib.util.find_spec("torchvision"):
        from torchvision.ops import roi_pool

        return "torchvision", lambda: roi_pool(features, [boxes], SIZE, 1 / stride)
    import torch

    cells = (boxes / stride).round().int().tolist()

    def pool():
        crops = (features[:, :, top : bottom + 1, left : right + 1] for left, top, right, bottom in cells)
        return torch.cat([torch.nn.functional.adaptive_max_pool2d(crop, SIZE) for crop in crops])

    return "PyTorch, adaptive_max_pool2d of each box", pool


def _torch_align(features, boxes, stride: int) -> tuple[str, Callable]:
    if importlib.util.find_spec("torchvision"):
        from torchvision.ops import roi_align

        return "torchvision", lambda: roi_align(features, [boxes], SIZE, 1 / stride, 2, True)
    import torch

    extent = torch.tensor([features.shape[3], features.shape[2]])
    shares = (torch.arange(2 * SIZE[0]) + 0.5)[:, None] / (2 * SIZE[0])

    def align():
        low, high = boxes[:, None, :2], boxes[:, None, 2:]
        # -1 to 1 over whole pixels, from image pixels: half a feature pixel off the border is its own -1.
        places = 2 * (low + shares * (high - low)) / (stride * extent) - 1
        grid = torch.stack(torch.broadcast_tensors(places[:, None, :, 0], places[:, :, None, 1]), dim=-1)
        sampled = torch.nn.functional.grid_sample(
            # All boxes as one tall grid: a map for each would be copied N times.
            features,
            grid.reshape(1, -1, *grid.shape[2:]),
            padding_mode="border",
            align_corners=False,
        )
        pooled = torch.nn.functional.avg_pool2d(sampled[0], 2)
        return pooled.reshape(features.shape[1], -1, *SIZE).movedim(1, 0)

    return "PyTorch, grid_sample and avg_pool2d", align
