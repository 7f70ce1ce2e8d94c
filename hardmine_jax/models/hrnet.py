"""HRNet: high resolution kept from the first stage to the last (Sun et al., arXiv 1902.09212, section 3).

Images are `[B, H, W, 3]`, float, normalised, sides multiples of 32; heatmaps are
`[B, H/4, W/4, num_keypoints]`, float32. Branch `i` works at stride `4 * 2**i` with `width * 2**i` channels.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hardmine_jax.models.layers import BatchNorm, Conv
from hardmine_jax.models.resnet import BasicBlock, Bottleneck


class ConvNorm(nn.Module):
    """Convolution, batch normalisation and, if asked for, ReLU."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    relu: bool = True
    train: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        outputs = Conv(self.features, self.kernel_size, self.stride, dtype=self.dtype, name="conv")(inputs)
        outputs = BatchNorm(self.train, self.axis_name, self.dtype, name="bn")(outputs)
        return nn.relu(outputs) if self.relu else outputs


class Exchange(nn.Module):
    """Every output is the sum of all branches, brought to its resolution and width (figure 3)."""

    num_outputs: int
    train: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, branches: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(
            nn.relu(sum(self._bring(branches, source, target) for source in range(len(branches))))
            for target in range(self.num_outputs)
        )

    def _bring(self, branches: Sequence[jax.Array], source: int, target: int) -> jax.Array:
        common = dict(train=self.train, dtype=self.dtype, axis_name=self.axis_name)
        branch, features = branches[source], branches[target].shape[-1]
        name = f"from{source}_to{target}"
        if source > target:
            branch = ConvNorm(features, kernel_size=1, relu=False, **common, name=name)(branch)
            return upsample_nearest(branch, 2 ** (source - target))
        for step in range(source, target):
            last = step == target - 1
            width = features if last else branch.shape[-1]
            branch = ConvNorm(width, stride=2, relu=not last, **common, name=f"{name}_{step}")(branch)
        return branch


class HRNet(nn.Module):
    """The high-resolution network. Width 32 and 48 with 17 keypoints: 28,536,113 and 63,595,745 parameters.

    Attributes:
      width: channels of the branch with the highest resolution (the W of HRNet-W32).
      num_keypoints: heatmaps per image.
      stem_features: channels of the two strided convolutions and of the first stage's bottlenecks.
      stem_blocks: bottlenecks in the first stage.
      modules: exchange modules in stages 2, 3 and 4; fewer than three entries leave the last stages out.
      blocks: residual blocks a branch in each module.
      dtype: type of the computation; parameters and heatmaps stay float32.
      axis_name: mapped axis over which batch statistics are synchronised, or None.
    """

    width: int = 32
    num_keypoints: int = 17
    stem_features: int = 64
    stem_blocks: int = 4
    modules: tuple[int, ...] = (1, 4, 3)
    blocks: int = 4
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        self._check(images)
        common = dict(train=train, dtype=self.dtype, axis_name=self.axis_name)
        features = ConvNorm(self.stem_features, stride=2, **common, name="stem1")(images)
        features = ConvNorm(self.stem_features, stride=2, **common, name="stem2")(features)
        for index in range(self.stem_blocks):
            features = Bottleneck(self.stem_features, **common, name=f"layer1_{index}")(features)
        branches = [ConvNorm(self.width, **common, name="transition1_0")(features)]
        coarsest = features
        for stage, count in enumerate(self.modules, start=2):
            name = f"transition{stage - 1}_{stage - 1}"
            branches.append(ConvNorm(self.width * 2 ** (stage - 1), stride=2, **common, name=name)(coarsest))
            for module in range(count):
                # Nothing reads the coarse branches after the very last exchange.
                last = stage == len(self.modules) + 1 and module == count - 1
                branches = self._module(branches, f"stage{stage}_{module}", 1 if last else stage, common)
            coarsest = branches[-1]
        head = Conv(
            self.num_keypoints,
            1,
            use_bias=True,
            kernel_init=nn.initializers.normal(0.001),
            dtype=self.dtype,
            name="final_layer",
        )
        return head(branches[0]).astype(jnp.float32)

    def _module(
        self, branches: Sequence[jax.Array], name: str, num_outputs: int, common: dict
    ) -> list[jax.Array]:
        outputs = []
        for index, branch in enumerate(branches):
            for block in range(self.blocks):
                branch = BasicBlock(branch.shape[-1], **common, name=f"{name}_branch{index}_{block}")(branch)
            outputs.append(branch)
        return list(Exchange(num_outputs, **common, name=f"{name}_exchange")(outputs))

    def _check(self, images: jax.Array) -> None:
        stride = 4 * 2 ** len(self.modules)
        if not 1 <= len(self.modules) <= 3:
            raise ValueError(f"HRNet modules={self.modules}: one to three entries, for stages 2, 3 and 4")
        if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] % stride or images.shape[2] % stride:
            raise ValueError(
                f"HRNet wants images [B, H, W, 3] with sides a multiple of {stride}, got {images.shape}"
            )


def upsample_nearest(features: jax.Array, factor: int) -> jax.Array:
    """`[B, H, W, C] -> [B, factor * H, factor * W, C]`, every pixel repeated."""
    batch, height, width, channels = features.shape
    shape = (batch, height, factor, width, factor, channels)
    repeated = jnp.broadcast_to(features[:, :, None, :, None, :], shape)
    return repeated.reshape(batch, height * factor, width * factor, channels)
