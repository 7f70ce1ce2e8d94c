"""CPN, the Cascaded Pyramid Network (Chen et al., arXiv 1711.07319, section 3.2): GlobalNet, then RefineNet.

Images are `[B, H, W, 3]`, float, normalised, sides multiples of 32; heatmaps are
`[B, H/4, W/4, num_keypoints]`, float32. Pyramid level `n` (2 to 5) works at stride `2**n`; what GlobalNet
returns comes coarsest level first, in the order in which it is worked out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hardmine_jax.models.layers import Conv, ConvNorm, rematerialised, upsample_bilinear
from hardmine_jax.models.resnet import ResNet, torch_name
from hardmine_jax.models.torch_weights import WarmStart, fill_what_fits

# Heatmaps come out of a batch normalisation; its scales start at 1 in the released code, whose targets are
# 255 high.
_HEATMAP_SCALE = 1 / 255


class CPNHeatmaps(NamedTuple):
    """What is supervised: each of GlobalNet's levels, coarsest first, and RefineNet, the prediction."""

    levels: tuple[jax.Array, ...]
    refined: jax.Array


class RefineBottleneck(nn.Module):
    """1x1, 3x3, 1x1 and the identity, half of the `features` in between."""

    features: int
    train: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        common: dict[str, Any] = dict(train=self.train, dtype=self.dtype, axis_name=self.axis_name)
        outputs = ConvNorm(self.features // 2, 1, **common, name="conv1")(inputs)
        outputs = ConvNorm(self.features // 2, 3, **common, name="conv2")(outputs)
        outputs = ConvNorm(self.features, 1, relu=False, **common, name="conv3")(outputs)
        if inputs.shape[-1] != self.features:
            inputs = ConvNorm(self.features, 1, relu=False, **common, name="downsample")(inputs)
        return nn.relu(outputs + inputs)


class GlobalNet(nn.Module):
    """A feature pyramid with heatmaps at each level, all brought to the size of the finest.

    Level by level from the coarsest: `merged = relu(lateral(level)) + merge(merged above)`.

    Attributes:
      num_keypoints: heatmaps per image and level.
      features: channels of each level.
      dtype: type of the computation; parameters and heatmaps stay float32.
      axis_name: mapped axis over which batch statistics are synchronised, or None.
    """

    num_keypoints: int = 17
    features: int = 256
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, levels: Sequence[jax.Array], train: bool = False
    ) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """`(c2, c3, ...)`, each half as large as the one before -> merged levels, heatmaps."""
        common: dict[str, Any] = dict(train=train, dtype=self.dtype, axis_name=self.axis_name)
        merged: list[jax.Array] = []
        heatmaps = []
        for index in reversed(range(len(levels))):
            level = index + 2
            features = ConvNorm(self.features, 1, **common, name=f"lateral{level}")(levels[index])
            if merged:
                # Whatever reads the finest level normalises it first, which would cancel a bias.
                merge = Conv(self.features, 1, use_bias=index > 0, dtype=self.dtype, name=f"merge{level}")
                # Published the other way round, which is equal and four times the work.
                features = features + upsample_bilinear(merge(merged[-1]), 2)
            merged.append(features)
            features = ConvNorm(self.features, 1, **common, name=f"head{level}_conv")(features)
            maps = _heatmaps(features, self.num_keypoints, common, f"head{level}")
            heatmaps.append(upsample_bilinear(maps, 2**index))
        return tuple(merged), tuple(heatmaps)


class RefineNet(nn.Module):
    """All levels of the pyramid, the coarser the more worked on, together at the size of the finest.

    Attributes:
      num_keypoints: heatmaps per image.
      features: channels of each level's bottlenecks and of the last one.
      dtype: type of the computation; parameters and heatmaps stay float32.
      axis_name: mapped axis over which batch statistics are synchronised, or None.
      remat: as of a `ResNet`.
    """

    num_keypoints: int = 17
    features: int = 256
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, merged: Sequence[jax.Array], train: bool = False) -> jax.Array:
        """Levels, coarsest first, each half the size of the next -> heatmaps."""
        common: dict[str, Any] = dict(train=train, dtype=self.dtype, axis_name=self.axis_name)
        parts, bottleneck = [], rematerialised(RefineBottleneck, self.remat)
        for above, features in zip(reversed(range(len(merged))), merged, strict=True):
            for index in range(above):
                name = f"level{above + 2}_{index}"
                features = bottleneck(self.features, **common, name=name)(features)
            parts.append(upsample_bilinear(features, 2**above))
        features = jnp.concatenate(parts, axis=-1)
        features = bottleneck(self.features, **common, name="bottleneck")(features)
        return _heatmaps(features, self.num_keypoints, common, "head")


def _heatmaps(features: jax.Array, num_keypoints: int, common: dict[str, Any], name: str) -> jax.Array:
    """3x3 convolution and batch normalisation (called inside the network)."""
    head = ConvNorm(num_keypoints, relu=False, initial_scale=_HEATMAP_SCALE, **common, name=name)
    return head(features).astype(jnp.float32)


class CPN(nn.Module):
    """ResNet, GlobalNet and RefineNet.

    27,009,514 parameters at depth 50 with 17 keypoints, 46,001,642 at 101: those of the released network but
    the 256 biases of `merge2`, which have no effect. Unlike there, upsampling keeps to the centres of pixels.

    Attributes:
      depth: of the ResNet: 50 or 101 as published; 18, 34 or 152.
      num_keypoints: heatmaps per image and level.
      width: channels of the ResNet's first stage; 64 as published.
      features: channels of GlobalNet's and RefineNet's levels; 256 as published.
      dtype: type of the computation; parameters and heatmaps stay float32.
      axis_name: mapped axis over which batch statistics are synchronised, or None.
      remat: residual blocks keep nothing for their gradient but their inputs (`rematerialised`).
    """

    depth: int = 50
    num_keypoints: int = 17
    width: int = 64
    features: int = 256
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> CPNHeatmaps:
        if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] % 32 or images.shape[2] % 32:
            raise ValueError(f"CPN wants images [B, H, W, 3] with sides a multiple of 32, got {images.shape}")
        common: dict[str, Any] = dict(dtype=self.dtype, axis_name=self.axis_name)
        levels = ResNet(self.depth, self.width, remat=self.remat, **common, name="trunk")(images, train)
        head: dict[str, Any] = dict(num_keypoints=self.num_keypoints, features=self.features, **common)
        merged, heatmaps = GlobalNet(**head, name="global")(levels, train)
        refine = RefineNet(remat=self.remat, **head, name="refine")
        return CPNHeatmaps(heatmaps, refine(merged, train))


def target_sigmas(kernels: Sequence[int] = (15, 11, 9, 7)) -> tuple[float, ...]:
    """Standard deviations, in heatmap pixels, of the targets that the released code trains with.

        sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8

    is what OpenCV's `GaussianBlur` takes for a kernel of so many pixels. The released code
    (chenyilun95/tf-cpn) blurs one pixel with each of four kernels, 15, 11, 9 and 7 at 256x192, 23, 17, 13 and
    9 at 384x288, and scales the peak to 255. RefineNet learns the sharpest. GengDavid/pytorch-cpn gives the
    widest to the coarsest level, so that the Gaussian shrinks as the level gets finer; tf-cpn, and so its
    trained weights, has the four the other way round, by mistake as a comment there says.

    Its loss is, for RefineNet, OHKM with k=8 over labelled keypoints; for GlobalNet, half the mean over
    levels, images, all keypoints and pixels of the squared error, a keypoint that is not visible having an
    empty target.

    Args:
      kernels: pixels, odd, coarsest level first.

    Returns:
      One for each level, coarsest first.

    >>> target_sigmas(), target_sigmas((23, 17, 13, 9))
    ((2.6, 2.0, 1.7, 1.4), (3.8, 2.9, 2.3, 1.7))
    """
    return tuple(round(0.3 * ((kernel - 1) / 2 - 1) + 0.8, 6) for kernel in kernels)


def warm_start(state_dict: Mapping[str, Any], variables: Mapping[str, Any]) -> WarmStart:
    """`variables` with the trunk of torchvision's or timm's ResNet, trained to classify images.

    Args:
      state_dict: `conv1.weight` ... `layer4.2.bn3.running_var`; `fc` is not read.
      variables: as `init` made them.

    Raises:
      WeightsError: naming the entries of the trunk that are missing or of another shape, and extra ones.
    """
    optional, unused = ("global.", "refine."), ("fc.",)
    return fill_what_fits(state_dict, variables, torch_name, optional=optional, unused=unused)
