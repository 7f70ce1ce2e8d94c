"""Stacked hourglasses: down to a few pixels and up again (Newell et al., arXiv 1603.06937, section 3).

Images are `[B, H, W, 3]`, float, normalised, sides multiples of `4 * 2**depth`, 64 as published; heatmaps are
`[B, H/4, W/4, num_keypoints]`, float32, one set for each stack.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hardmine_jax.models.layers import BatchNorm, Conv, ConvNorm, rematerialised, upsample_nearest
from hardmine_jax.models.vgg import max_pool


class Residual(nn.Module):
    """Normalisation and ReLU before each of a 1x1, a 3x3 and a 1x1 convolution, and the identity."""

    features: int
    train: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        outputs = inputs
        half = self.features // 2
        for index, (features, size) in enumerate([(half, 1), (half, 3), (self.features, 1)], start=1):
            norm = BatchNorm(self.train, self.axis_name, self.dtype, name=f"bn{index}")
            outputs = Conv(features, size, dtype=self.dtype, name=f"conv{index}")(nn.relu(norm(outputs)))
        if inputs.shape[-1] != self.features:
            inputs = Conv(self.features, 1, dtype=self.dtype, name="downsample_conv")(inputs)
        return outputs + inputs


class Hourglass(nn.Module):
    """Hourglass after hourglass, each with heatmaps to supervise, which the next one sees.

    The last heatmaps are the prediction. 8 stacks with 16 keypoints: 25,369,664 parameters, 2 stacks:
    6,553,568. Published code (princeton-vl, bearpaw/pytorch-pose) has a bias in every convolution, 64,448
    more with 8 stacks; all but those of the heatmaps are cancelled by a batch normalisation further on, and
    left out here. The HRNet paper quotes 25.1 million.

    Attributes:
      stacks: how many hourglasses; 8 as published.
      num_keypoints: heatmaps per image and stack; MPII has 16.
      features: channels throughout.
      depth: how often an hourglass halves the resolution.
      blocks: residual modules in each place of an hourglass.
      dtype: type of the computation; parameters and heatmaps stay float32.
      axis_name: mapped axis over which batch statistics are synchronised, or None.
      remat: residual blocks keep nothing for their gradient but their inputs (`rematerialised`).
    """

    stacks: int = 8
    num_keypoints: int = 16
    features: int = 256
    depth: int = 4
    blocks: int = 1
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        self._check(images)
        common: dict[str, Any] = dict(train=train, dtype=self.dtype, axis_name=self.axis_name)
        features = self._stem(images, common)
        heatmaps = []
        for stack in range(self.stacks):
            name = f"stack{stack}"
            outputs = self._hourglass(features, self.depth, name, common)
            outputs = self._residuals(outputs, f"{name}_out", common)
            outputs = ConvNorm(self.features, 1, **common, name=f"{name}_linear")(outputs)
            maps = self._heatmaps(outputs, f"{name}_heatmaps")
            heatmaps.append(maps.astype(jnp.float32))
            if stack < self.stacks - 1:
                remap = Conv(self.features, 1, dtype=self.dtype, name=f"{name}_remap_features")
                remap_heatmaps = Conv(self.features, 1, dtype=self.dtype, name=f"{name}_remap_heatmaps")
                features = features + remap(outputs) + remap_heatmaps(maps)
        return tuple(heatmaps)

    def _stem(self, images: jax.Array, common: dict[str, Any]) -> jax.Array:
        quarter, half = max(self.features // 4, 1), max(self.features // 2, 1)
        features = ConvNorm(quarter, 7, 2, **common, name="stem")(images)
        residual = rematerialised(Residual, self.remat)
        features = max_pool(residual(half, **common, name="stem_residual1")(features))
        features = residual(half, **common, name="stem_residual2")(features)
        return residual(self.features, **common, name="stem_residual3")(features)

    def _hourglass(self, features: jax.Array, depth: int, name: str, common: dict[str, Any]) -> jax.Array:
        skipped = self._residuals(features, f"{name}_skip{depth}", common)
        inner = self._residuals(max_pool(features), f"{name}_down{depth}", common)
        if depth > 1:
            inner = self._hourglass(inner, depth - 1, name, common)
        else:
            inner = self._residuals(inner, f"{name}_bottom", common)
        return skipped + upsample_nearest(self._residuals(inner, f"{name}_up{depth}", common), 2)

    def _residuals(self, features: jax.Array, name: str, common: dict[str, Any]) -> jax.Array:
        residual = rematerialised(Residual, self.remat)
        for index in range(self.blocks):
            features = residual(self.features, **common, name=f"{name}_{index}")(features)
        return features

    def _heatmaps(self, features: jax.Array, name: str) -> jax.Array:
        init = nn.initializers.normal(0.001)
        head = Conv(self.num_keypoints, 1, use_bias=True, kernel_init=init, dtype=self.dtype, name=name)
        return head(features)

    def _check(self, images: jax.Array) -> None:
        if self.stacks < 1 or self.depth < 1:
            raise ValueError(f"Hourglass stacks={self.stacks} and depth={self.depth} must be 1 or more")
        stride = 4 * 2**self.depth
        if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] % stride or images.shape[2] % stride:
            raise ValueError(
                f"Hourglass of depth {self.depth} wants images [B, H, W, 3] with sides a multiple of"
                f" {stride}, got {images.shape}"
            )
