"""Residual networks (He et al., arXiv 1512.03385), the trunk of SimpleBaseline, CPN and Fast R-CNN.

Images are `[B, H, W, 3]`, float, normalised; features are NHWC. The stride of a bottleneck sits in its 3x3
convolution, as in torchvision and in the published pose checkpoints.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hardmine_jax.models.layers import BatchNorm, Conv, rematerialised
from hardmine_jax.models.torch_weights import (
    WeightsError,
    count_children,
    fill,
    init_shapes,
    leading_sizes,
    plain_entries,
)

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the identity; `features` out."""

    features: int
    stride: int = 1
    train: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None
    expansion = 1

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        norm: dict[str, Any] = dict(train=self.train, axis_name=self.axis_name, dtype=self.dtype)
        outputs = Conv(self.features, stride=self.stride, dtype=self.dtype, name="conv1")(inputs)
        outputs = nn.relu(BatchNorm(**norm, name="bn1")(outputs))
        outputs = Conv(self.features, dtype=self.dtype, name="conv2")(outputs)
        outputs = BatchNorm(**norm, name="bn2")(outputs)
        return nn.relu(outputs + _shortcut(self, inputs, self.features, norm))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and the identity; `4 * features` out."""

    features: int
    stride: int = 1
    train: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None
    expansion = 4

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        norm: dict[str, Any] = dict(train=self.train, axis_name=self.axis_name, dtype=self.dtype)
        outputs = Conv(self.features, 1, dtype=self.dtype, name="conv1")(inputs)
        outputs = nn.relu(BatchNorm(**norm, name="bn1")(outputs))
        outputs = Conv(self.features, stride=self.stride, dtype=self.dtype, name="conv2")(outputs)
        outputs = nn.relu(BatchNorm(**norm, name="bn2")(outputs))
        outputs = Conv(4 * self.features, 1, dtype=self.dtype, name="conv3")(outputs)
        outputs = BatchNorm(**norm, name="bn3")(outputs)
        return nn.relu(outputs + _shortcut(self, inputs, 4 * self.features, norm))


def _shortcut(block: nn.Module, inputs: jax.Array, features: int, norm: dict[str, Any]) -> jax.Array:
    """The identity, or a strided 1x1 projection where the block changes shape (called inside the block)."""
    if block.stride == 1 and inputs.shape[-1] == features:
        return inputs
    projected = Conv(features, 1, block.stride, dtype=block.dtype, name="downsample_conv")(inputs)
    return BatchNorm(**norm, name="downsample_bn")(projected)


class ResNet(nn.Module):
    """The trunk: `[B, H, W, 3] -> (c2, c3, c4, c5)`, at strides 4, 8, 16 and 32.

    Attributes:
      depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
      width: channels of the first stage before expansion; 64 as published.
      stages: how many of the four there are; with 3 the levels end at c4.
      dtype: type of the computation; parameters stay float32.
      axis_name: mapped axis over which batch statistics are synchronised, or None.
      remat: residual blocks keep nothing for their gradient but their inputs (`rematerialised`).
    """

    depth: int = 50
    width: int = 64
    stages: int = 4
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Sequence[jax.Array]:
        if self.depth not in STAGES:
            raise ValueError(f"ResNet depth={self.depth} is not published: choose one of {sorted(STAGES)}")
        common: dict[str, Any] = dict(train=train, axis_name=self.axis_name, dtype=self.dtype)
        features = Conv(self.width, 7, 2, dtype=self.dtype, name="conv1")(images)
        features = nn.relu(BatchNorm(**common, name="bn1")(features))
        features = nn.max_pool(features, (3, 3), (2, 2), ((1, 1), (1, 1)))
        block: Any = rematerialised(BasicBlock if self.depth < 50 else Bottleneck, self.remat)
        levels = []
        for stage, count in enumerate(STAGES[self.depth][: self.stages]):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"layer{stage + 1}_{index}"
                features = block(self.width * 2**stage, stride, **common, name=name)(features)
            levels.append(features)
        return tuple(levels)


class ResNetClassifier(nn.Module):
    """Trunk, mean over the last features and one linear layer -> logits `[B, num_classes]`, float32.

    25,557,032 parameters at depth 50, as published.

    Attributes:
      depth, width, dtype, axis_name: of the trunk, a `ResNet`.
      num_classes: logits an image.
    """

    depth: int = 50
    num_classes: int = 1000
    width: int = 64
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        trunk = ResNet(self.depth, self.width, dtype=self.dtype, axis_name=self.axis_name, name="trunk")
        features = trunk(images, train)[-1].mean((1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(features).astype(jnp.float32)


def from_torch(
    state_dict: Mapping[str, Any], *, model: ResNet | ResNetClassifier | None = None
) -> dict[str, Any]:
    """torchvision's or timm's `resnet18` to `resnet152` weights as variables.

    Args:
      state_dict: `conv1.weight` ... `layer4.2.bn3.running_var`, `fc.bias`; arrays or tensors.
      model: the network they are for; None: the `ResNet` whose depth and width they have. A `ResNet` does
        not read `fc`, nor the stages that it has not.

    Returns:
      `{"params", "batch_stats"}`, float32.

    Raises:
      WeightsError: naming all entries that are missing, extra or of another shape.
    """
    model = model or ResNet(*published_size(state_dict))
    whole = isinstance(model, ResNetClassifier)
    stages = 4 if whole else model.stages
    beyond = () if whole else ("fc.", *(f"layer{stage}." for stage in range(stages + 1, 5)))
    return fill(state_dict, init_shapes(model), torch_name, unused=beyond)


def published_size(state_dict: Mapping[str, Any]) -> tuple[int, int]:
    """Depth and width of the ResNet whose weights these are, among others perhaps.

    Raises:
      WeightsError: if no depth has their blocks.
    """
    entries = plain_entries(state_dict)
    counts = tuple(count_children(entries, f"layer{stage}.") for stage in range(1, 5))
    bottlenecks = "layer1.0.conv3.weight" in entries
    for depth, blocks in STAGES.items():
        if blocks == counts and bottlenecks == (depth >= 50):
            return depth, leading_sizes(entries, {"width": "conv1.weight"}).get("width", ResNet.width)
    kind = "bottlenecks" if bottlenecks else "basic blocks"
    raise WeightsError(f"layer1 to layer4 have {counts} {kind}: no ResNet of depth {sorted(STAGES)} has")


def torch_name(path: tuple[str, ...]) -> str:
    """A module's name in PyTorch's ResNets.

    >>> torch_name(("layer2_0", "downsample_conv")), torch_name(("trunk", "bn1"))
    ('layer2.0.downsample.0', 'bn1')
    """
    name = ".".join(path).removeprefix("trunk.")
    name = re.sub(r"^layer(\d)_", r"layer\1.", name)
    return name.replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
