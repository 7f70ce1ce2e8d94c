"""SimpleBaseline: a ResNet and three transposed convolutions (Xiao et al., arXiv 1804.06208, section 2).

Images are `[B, H, W, 3]`, float, normalised, sides multiples of 32; heatmaps are
`[B, H/4, W/4, num_keypoints]`, float32.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hardmine_jax.models.layers import BatchNorm, Conv, DoubleConvTranspose
from hardmine_jax.models.resnet import ResNet


class SimpleBaseline(nn.Module):
    """Heatmaps from the last features of a ResNet, upsampled eight times by transposed convolutions.

    33,999,697 parameters at depth 50 with 17 keypoints.

    Attributes:
      depth: of the ResNet: 18, 34, 50, 101 or 152.
      num_keypoints: heatmaps per image.
      width: channels of the ResNet's first stage; 64 as published.
      deconvolution_features: channels of each transposed convolution; 256 as published.
      dtype: type of the computation; parameters and heatmaps stay float32.
      axis_name: mapped axis over which batch statistics are synchronised, or None.
    """

    depth: int = 50
    num_keypoints: int = 17
    width: int = 64
    deconvolution_features: int = 256
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] % 32 or images.shape[2] % 32:
            raise ValueError(
                f"SimpleBaseline wants images [B, H, W, 3] with sides a multiple of 32, got {images.shape}"
            )
        common = dict(dtype=self.dtype, axis_name=self.axis_name)
        features = ResNet(self.depth, self.width, **common, name="trunk")(images, train)[-1]
        for index in range(3):
            name = f"deconv{index}"
            features = DoubleConvTranspose(self.deconvolution_features, dtype=self.dtype, name=name)(features)
            features = nn.relu(BatchNorm(train=train, **common, name=f"{name}_bn")(features))
        # Large first heatmaps would drown the peaks that are to be learnt (std 0.001 as published).
        init = nn.initializers.normal(0.001)
        heatmaps = Conv(
            self.num_keypoints, 1, use_bias=True, kernel_init=init, dtype=self.dtype, name="final_layer"
        )
        return heatmaps(features).astype(jnp.float32)
