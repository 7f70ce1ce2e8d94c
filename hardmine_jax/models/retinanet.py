"""RetinaNet (Lin et al., arXiv 1708.02002): class logits and box deltas of every anchor of an image.

Images are `[B, H, W, 3]`, float, normalised, of any size. A feature pyramid (arXiv 1612.03144) has levels 3
to 7, level `n` at stride `2**n`, `ceil(H / 2**n)` rows by `ceil(W / 2**n)` columns; one small network for the
classes and one for the boxes run over each of them. Anchors are ordered by level, row, column and number, as
`hardmine_jax.detection.make_anchors` gives them. There is no background class: `focal_losses` wants none.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.models import resnet
from hardmine_jax.models.layers import Conv, upsample_nearest
from hardmine_jax.models.resnet import ResNet
from hardmine_jax.models.torch_weights import (
    WarmStart,
    WeightsError,
    count_children,
    fill,
    fill_what_fits,
    init_shapes,
    leading_sizes,
    plain_entries,
)

_FINEST = 3
_pyramid_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FeaturePyramid(nn.Module):
    """`(c3, c4, c5) -> (p3, p4, p5, p6, p7)`, all of `features` channels.

        p5 = output5(m5), m5 = lateral5(c5);  p_n = output_n(m_n), m_n = lateral_n(c_n) + upsampled m_(n+1)
        p6 = conv(c5) or conv(p5), p7 = conv(relu(p6)), both of stride 2

    Attributes:
      features: channels of each level.
      coarse: what the two coarse levels are made from: "c5" (1708.02002, footnote 2) or "p5", as in
        torchvision's `retinanet_resnet50_fpn`.
      dtype: type of the computation; parameters stay float32.
    """

    features: int = 256
    coarse: Literal["c5", "p5"] = "c5"
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        def conv(name: str, size: int, stride: int = 1) -> Conv:
            init: dict[str, Any] = dict(use_bias=True, dtype=self.dtype, kernel_init=_pyramid_init)
            return Conv(self.features, size, stride, **init, name=name)

        if self.coarse not in ("c5", "p5"):
            raise ValueError(f"RetinaNet coarse={self.coarse!r}: choose c5 or p5")
        outputs: list[jax.Array] = []
        above = None
        for index in reversed(range(len(levels))):
            merged = conv(f"lateral{index + _FINEST}", 1)(levels[index])
            if above is not None:
                # A level of odd sides is one short of twice the one above.
                height, width = merged.shape[1:3]
                merged = merged + upsample_nearest(above, 2)[:, :height, :width]
            outputs.insert(0, conv(f"output{index + _FINEST}", 3)(merged))
            above = merged
        p6 = conv("p6", 3, 2)(levels[-1] if self.coarse == "c5" else outputs[-1])
        return (*outputs, p6, conv("p7", 3, 2)(nn.relu(p6)))


class AnchorHead(nn.Module):
    """3x3 convolutions with ReLU and one more without: `[B, h, w, F] -> [B, h * w * num_anchors, numbers]`.

    Attributes:
      num_anchors: anchors a place.
      numbers: numbers an anchor.
      depth: how many convolutions come before the last.
      bias: first value of the last one's bias.
      dtype: type of the computation; parameters and outputs stay float32.
    """

    num_anchors: int
    numbers: int
    depth: int = 4
    bias: float = 0.0
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        # 1708.02002, section 4.1, "Initialization".
        common: dict[str, Any] = dict(
            use_bias=True, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01)
        )
        channels = features.shape[-1]
        for index in range(self.depth):
            features = nn.relu(Conv(channels, **common, name=f"conv{index}")(features))
        bias = nn.initializers.constant(self.bias)
        last = Conv(self.num_anchors * self.numbers, **common, bias_init=bias, name="output")
        outputs = last(features).astype(jnp.float32)
        batch, height, width = outputs.shape[:3]
        return outputs.reshape(batch, height * width * self.num_anchors, self.numbers)


class RetinaNet(nn.Module):
    """ResNet, feature pyramid and the two heads. 37,968,692 parameters at depth 50 with 80 classes.

    Attributes:
      num_classes: C, without background.
      depth: of the ResNet: 50 or 101 as published; 18, 34 or 152.
      num_anchors: anchors a place; 9 as published, three sizes of three shapes.
      width: channels of the ResNet's first stage; 64 as published.
      features: channels of the pyramid and the heads; 256 as published.
      head_depth: convolutions of a head before its last; 4 as published.
      prior: what every class's probability starts near, so that the many anchors without an object do not
        drown the few that have one in the first steps; 0.01 as published (section 3.3).
      coarse: see `FeaturePyramid`.
      frozen_norm: normalises with the running averages in training too, and keeps them: for weights trained
        before, with the few images a step that fit.
      dtype: type of the computation; parameters, logits and deltas stay float32.
      axis_name: mapped axis over which batch statistics are synchronised, or None.
    """

    num_classes: int
    depth: int = 50
    num_anchors: int = 9
    width: int = 64
    features: int = 256
    head_depth: int = 4
    prior: float = 0.01
    coarse: Literal["c5", "p5"] = "c5"
    frozen_norm: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Class logits [B, N, C] and box deltas [B, N, 4] of the N anchors, float32."""
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"RetinaNet wants images [B, H, W, 3], got {images.shape}")
        if not 0.0 < self.prior < 1.0:
            raise ValueError(f"RetinaNet prior={self.prior}: a probability lies between 0 and 1")
        trunk = ResNet(self.depth, self.width, dtype=self.dtype, axis_name=self.axis_name, name="trunk")
        levels = trunk(images, train and not self.frozen_norm)[1:]
        levels = FeaturePyramid(self.features, self.coarse, self.dtype, name="pyramid")(levels)
        common: dict[str, Any] = dict(num_anchors=self.num_anchors, depth=self.head_depth, dtype=self.dtype)
        bias = math.log(self.prior / (1.0 - self.prior))
        class_head = AnchorHead(numbers=self.num_classes, bias=bias, **common, name="class_head")
        box_head = AnchorHead(numbers=4, **common, name="box_head")
        logits, deltas = ([head(level) for level in levels] for head in (class_head, box_head))
        return jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1)


def from_torch(state_dict: Mapping[str, Any], *, model: RetinaNet | None = None) -> dict[str, Any]:
    """torchvision's `retinanet_resnet50_fpn` weights as variables of `RetinaNet(91, coarse="p5")`.

    Its column 0 is a background that is never answered: column `c` is label `c` of COCO's own numbering, so
    drop the first for labels that count from 1. Its boxes are `decode_boxes(..., weights=(1, 1, 1, 1))`. Its
    anchors have sides of whole pixels, less than a pixel from those of `make_anchors`, for images whose sides
    are multiples of 128. It evaluates the weights called COCO_V1 with an epsilon of 0 in the trunk's
    normalisation; here it is 1e-5.

    Args:
      state_dict: `backbone.body.conv1.weight` ... `head.regression_head.bbox_reg.bias`, by their names before
        torchvision 0.13 or since; arrays or tensors. Not of `retinanet_resnet50_fpn_v2`, whose heads are
        normalised.
      model: the network they are for; None: the one whose sizes they have.

    Returns:
      `{"params", "batch_stats"}`, float32.

    Raises:
      WeightsError: naming all entries that are missing, extra or of another shape.
    """
    entries = _since_0_13(plain_entries(state_dict))
    return fill(entries, init_shapes(model or _published_model(entries)), torch_name)


def warm_start(state_dict: Mapping[str, Any], variables: Mapping[str, Any]) -> WarmStart:
    """`variables` with the trunk of torchvision's or timm's ResNet, trained to classify images.

    Args:
      state_dict: `conv1.weight` ... `layer4.2.bn3.running_var`; `fc` is not read.
      variables: as `init` made them.

    Raises:
      WeightsError: naming the entries of the trunk that are missing or of another shape, and extra ones.
    """
    return fill_what_fits(
        state_dict,
        variables,
        resnet.torch_name,
        optional=("pyramid.", "class_head.", "box_head."),
        unused=("fc.",),
    )


def torch_name(path: tuple[str, ...]) -> str:
    """A module's name in torchvision's RetinaNet.

    >>> torch_name(("trunk", "layer2_0", "conv1")), torch_name(("pyramid", "lateral4"))
    ('backbone.body.layer2.0.conv1', 'backbone.fpn.inner_blocks.1.0')
    >>> torch_name(("class_head", "conv3")), torch_name(("box_head", "output"))
    ('head.classification_head.conv.3.0', 'head.regression_head.bbox_reg')
    """
    part, rest = path[0], path[1:]
    if part == "trunk":
        return f"backbone.body.{resnet.torch_name(rest)}"
    (name,) = rest
    kind, number = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
    if part == "pyramid":
        if kind == "p":
            return f"backbone.fpn.extra_blocks.{name}"
        blocks = {"lateral": "inner_blocks", "output": "layer_blocks"}[kind]
        return f"backbone.fpn.{blocks}.{int(number) - _FINEST}.0"
    head, last = {
        "class_head": ("head.classification_head", "cls_logits"),
        "box_head": ("head.regression_head", "bbox_reg"),
    }[part]
    return f"{head}.{last}" if kind == "output" else f"{head}.conv.{number}.0"


def _since_0_13(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries by the names that torchvision gives them today.

    >>> sorted(_since_0_13({"backbone.fpn.inner_blocks.2.weight": 0, "head.regression_head.conv.4.bias": 0}))
    ['backbone.fpn.inner_blocks.2.0.weight', 'head.regression_head.conv.2.0.bias']
    """

    def today(name: str) -> str:
        name = re.sub(r"(fpn\.\w+_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", name)
        # A ReLU, without entries of its own, was every odd number.
        old = re.fullmatch(r"(head\.\w+\.conv)\.(\d*[02468])\.(weight|bias)", name)
        return f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}" if old else name

    # A name of today counts where both are there: the other is then left over, and refused.
    return {name if today(name) in entries else today(name): entry for name, entry in entries.items()}


def _published_model(entries: Mapping[str, Any]) -> RetinaNet:
    """The network whose weights these are."""
    body = "backbone.body."
    trunk = {name.removeprefix(body): x for name, x in entries.items() if name.startswith(body)}
    depth, width = resnet.published_size(trunk)
    names = {
        "logits": "head.classification_head.cls_logits.bias",
        "deltas": "head.regression_head.bbox_reg.bias",
        "features": "backbone.fpn.inner_blocks.0.0.bias",
    }
    sizes = leading_sizes(entries, names)
    if len(sizes) < len(names) or sizes["deltas"] < 4 or not all(sizes.values()):
        raise WeightsError(f"these are no weights of a RetinaNet: {', '.join(names.values())} are looked for")
    num_anchors = sizes["deltas"] // 4
    into_p6 = np.shape(entries.get("backbone.fpn.extra_blocks.p6.weight", ()))[1:2]
    return RetinaNet(
        sizes["logits"] // num_anchors,
        depth,
        num_anchors,
        width,
        sizes["features"],
        head_depth=count_children(entries, "head.regression_head.conv."),
        coarse="p5" if into_p6 == (sizes["features"],) else "c5",
    )
