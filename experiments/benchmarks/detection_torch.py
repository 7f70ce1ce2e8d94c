"""Fast R-CNN in PyTorch as it is usually written, with torchvision's kernels where it is installed.

The layout is PyTorch's: images [B, 3, H, W], features [B, C, H, W]; boxes are float32 xyxy pixels. To be
imported only where PyTorch is.
"""

import importlib.util

import numpy as np
import torch
import torch.nn.functional as F

from hardmine_jax.models.images import DEVIATION, MEAN

HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
SIZE = (7, 7)


def name(plain: str) -> str:
    """What a way is called: by the library, or by what is done without it."""
    return "torchvision" if HAS_TORCHVISION else f"PyTorch, {plain}"


def pool(features: torch.Tensor, boxes: torch.Tensor, stride: int) -> torch.Tensor:
    """RoI max pooling of one image [1, C, H, W]: [N, C, 7, 7]."""
    if HAS_TORCHVISION:
        from torchvision.ops import roi_pool

        return roi_pool(features, [boxes], SIZE, 1 / stride)
    cells = (boxes / stride).round().int().tolist()
    crops = (features[:, :, top : bottom + 1, left : right + 1] for left, top, right, bottom in cells)
    return torch.cat([F.adaptive_max_pool2d(crop, SIZE) for crop in crops])


def align(features: torch.Tensor, boxes: list[torch.Tensor], stride: int) -> torch.Tensor:
    """RoIAlign of all images, 2 x 2 samples a bin: [sum of N, C, 7, 7]."""
    if HAS_TORCHVISION:
        from torchvision.ops import roi_align

        return roi_align(features, boxes, SIZE, 1 / stride, 2, True)
    return torch.cat([_sample(*image, stride) for image in zip(features, boxes, strict=True)])


def _sample(features: torch.Tensor, boxes: torch.Tensor, stride: int) -> torch.Tensor:
    extent = torch.tensor([features.shape[2], features.shape[1]], device=boxes.device)
    shares = (torch.arange(2 * SIZE[0], device=boxes.device) + 0.5)[:, None] / (2 * SIZE[0])
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    # -1 to 1 over whole pixels, from image pixels: half a feature pixel off the border is its own -1.
    places = 2 * (low + shares * (high - low)) / (stride * extent) - 1
    grid = torch.stack(torch.broadcast_tensors(places[:, None, :, 0], places[:, :, None, 1]), dim=-1)
    # All boxes as one tall grid: a map for each would be copied N times.
    grid = grid.reshape(1, -1, *grid.shape[2:])
    sampled = F.grid_sample(features[None], grid, padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled[0], 2).reshape(features.shape[0], -1, *SIZE).movedim(1, 0)


def iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[N, 4] and [M, 4] -> [N, M]."""
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b))
    start, end = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    both = (end - start).clamp(min=0).prod(2)
    return both / (area_a[:, None] + area_b - both)


def nms_loop(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, max_kept: int) -> torch.Tensor:
    """Indices of the first max_kept, best first."""
    order, kept = scores.argsort(descending=True), []
    while len(order) and len(kept) < max_kept:
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[iou(boxes[best][None], boxes[order])[0] <= threshold]
    return torch.stack(kept)


def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, max_kept: int) -> torch.Tensor:
    """As `nms_loop`, by torchvision where it is installed."""
    if HAS_TORCHVISION:
        from torchvision.ops import nms

        return nms(boxes, scores, threshold)[:max_kept]
    return nms_loop(boxes, scores, threshold, max_kept)


def match(boxes: torch.Tensor, objects: torch.Tensor, labels: torch.Tensor):
    """Labels [N] (0 background), overlaps [N] and the objects [N, 4] that are overlapped most."""
    overlaps, nearest = iou(boxes, objects).max(dim=1)
    return torch.where(overlaps >= 0.5, labels[nearest], 0), overlaps, objects[nearest]


def encode(boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Fast R-CNN's deltas [N, 4]."""
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    moved = (targets[:, :2] + targets[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2
    return torch.cat([10 * moved / size, 5 * torch.log(target_size / size)], dim=1)


class FastRCNN(torch.nn.Module):
    """The network of `hardmine_jax.models.FastRCNN` with a `VGGTrunk` with batch normalisation.

    Args:
      widths: channels of the convolutions of each block.
      params: of the flax network, as numpy arrays.
    """

    def __init__(self, widths: tuple[tuple[int, ...], ...], params: dict):
        super().__init__()
        layers, self.stride = [], 2 ** (len(widths) - 1)
        for block, channels in enumerate(widths, start=1):
            layers += [torch.nn.MaxPool2d(2)] if block > 1 else []
            for index in range(1, len(channels) + 1):
                layers += _convolution(params["trunk"], f"conv{block}_{index}")
        self.trunk = torch.nn.Sequential(*layers)
        self.fc6, self.fc7, self.class_logits, self.box_deltas = (
            _linear(params[layer]) for layer in ("fc6", "fc7", "class_logits", "box_deltas")
        )
        # Flattened [7, 7, C] there, [C, 7, 7] here.
        rows = self.fc6.weight.data.reshape(len(self.fc6.weight), *SIZE, -1)
        self.fc6.weight.data = rows.permute(0, 3, 1, 2).flatten(1).contiguous()

    def forward(self, images: torch.Tensor, boxes: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [sum of N, C + 1] and deltas [sum of N, C, 4]."""
        hidden = align(self.trunk(images), boxes, self.stride).flatten(1)
        hidden = F.relu(self.fc7(F.relu(self.fc6(hidden))))
        return self.class_logits(hidden), self.box_deltas(hidden).unflatten(1, (-1, 4))


def _convolution(params: dict, layer: str) -> list[torch.nn.Module]:
    kernel, norm = params[layer]["kernel"], params[f"{layer}_bn"]["norm"]
    convolution = torch.nn.Conv2d(*kernel.shape[2:], 3, padding=1, bias=False)
    convolution.weight.data = torch.tensor(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
    batch_norm = torch.nn.BatchNorm2d(kernel.shape[3])
    batch_norm.weight.data, batch_norm.bias.data = torch.tensor(norm["scale"]), torch.tensor(norm["bias"])
    return [convolution, batch_norm, torch.nn.ReLU(inplace=True)]


def _linear(params: dict) -> torch.nn.Linear:
    linear = torch.nn.Linear(*params["kernel"].shape)
    linear.weight.data = torch.tensor(np.ascontiguousarray(params["kernel"].T))
    linear.bias.data = torch.tensor(params["bias"])
    return linear


def region_losses(
    logits: torch.Tensor, deltas: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy, and smooth L1 where there is an object: [N]."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    own = deltas[torch.arange(len(labels), device=labels.device), (labels - 1).clamp(min=0)]
    boxes = F.smooth_l1_loss(own, targets, reduction="none").sum(1)
    return losses + torch.where(labels > 0, boxes, 0.0)


def masked_ohem(model: FastRCNN, batch: dict[str, torch.Tensor], k: int, threshold: float) -> torch.Tensor:
    """The training loss: all regions run with gradient, the k hardest of each image count."""
    rois = [torch.cat(pair) for pair in zip(batch["proposals"], batch["boxes"], strict=True)]
    matched = [match(*image) for image in zip(rois, batch["boxes"], batch["labels"], strict=True)]
    labels, _, nearest = (torch.cat(each) for each in zip(*matched, strict=True))
    targets = encode(torch.cat(rois), nearest)
    images = (batch["image"].movedim(3, 1) / 255 - batch["mean"]) / batch["deviation"]
    losses = region_losses(*model(images, rois), labels, targets).split([len(boxes) for boxes in rois])
    kept = [nms(*image, threshold, k) for image in zip(rois, [x.detach() for x in losses], strict=True)]
    return sum(each[keep].sum() / k for each, keep in zip(losses, kept, strict=True)) / len(rois)


def make_step(
    model: FastRCNN,
    arrays: dict[str, np.ndarray],
    *,
    k: int,
    threshold: float,
    clip_norm: float,
    dtype: str = "float32",
):
    """A function without arguments that takes a step of AdamW with rate 0: (loss, norm of the gradient).

    It runs where the model is, in bfloat16 by autocast.
    """
    device = next(model.parameters()).device
    half = torch.bfloat16 if dtype == "bfloat16" else None
    arrays = arrays | {"mean": MEAN[:, None, None], "deviation": DEVIATION[:, None, None]}
    batch = {key: torch.tensor(value, device=device) for key, value in arrays.items()}
    batch["labels"] = batch["labels"].long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01)

    def step() -> tuple[float, float]:
        optimizer.zero_grad()
        with torch.autocast(device.type, half, enabled=half is not None):
            loss = masked_ohem(model, batch, k, threshold)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        return float(loss.detach()), float(norm)

    return step
