"""SimpleBaseline: a ResNet and three transposed convolutions (Xiao et al., arXiv 1804.06208, section 2).

Images are `[B, H, W, 3]`, float, normalised, sides multiples of 32; heatmaps are
`[B, H/4, W/4, num_keypoints]`, float32.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hardmine_jax.models.layers import BatchNorm, Conv, DoubleConvTranspose
from hardmine_jax.models.resnet import ResNet, published_size
from hardmine_jax.models.resnet import torch_name as resnet_name
from hardmine_jax.models.torch_weights import (
    WarmStart,
    fill,
    fill_what_fits,
    init_shapes,
    leading_sizes,
    plain_entries,
)

_DECONVOLUTIONS = ("deconv0", "deconv1", "deconv2")


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
      remat: residual blocks keep nothing for their gradient but their inputs (`rematerialised`).
    """

    depth: int = 50
    num_keypoints: int = 17
    width: int = 64
    deconvolution_features: int = 256
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] % 32 or images.shape[2] % 32:
            raise ValueError(
                f"SimpleBaseline wants images [B, H, W, 3] with sides a multiple of 32, got {images.shape}"
            )
        common: dict[str, Any] = dict(dtype=self.dtype, axis_name=self.axis_name)
        trunk = ResNet(self.depth, self.width, remat=self.remat, **common, name="trunk")
        features = trunk(images, train)[-1]
        for name in _DECONVOLUTIONS:
            features = DoubleConvTranspose(self.deconvolution_features, dtype=self.dtype, name=name)(features)
            features = nn.relu(BatchNorm(train=train, **common, name=f"{name}_bn")(features))
        # Large first heatmaps would drown the peaks that are to be learnt (std 0.001 as published).
        init = nn.initializers.normal(0.001)
        heatmaps = Conv(
            self.num_keypoints, 1, use_bias=True, kernel_init=init, dtype=self.dtype, name="final_layer"
        )
        return heatmaps(features).astype(jnp.float32)


def from_torch(state_dict: Mapping[str, Any], *, model: SimpleBaseline | None = None) -> dict[str, Any]:
    """The published weights as variables of `SimpleBaseline`.

    Args:
      state_dict: `conv1.weight` ... `deconv_layers.0.weight` ... `final_layer.bias`; arrays or tensors.
      model: the network they are for; None: the one whose sizes they have.

    Returns:
      `{"params", "batch_stats"}`, float32.

    Raises:
      WeightsError: naming all entries that are missing, extra or of another shape.
    """
    shapes = init_shapes(model or _model_of(state_dict))
    return fill(state_dict, shapes, _torch_name, transposed=_DECONVOLUTIONS)


def warm_start(state_dict: Mapping[str, Any], variables: Mapping[str, Any]) -> WarmStart:
    """`variables` with the weights of an ImageNet ResNet, or of a pose network with other keypoints.

    Args:
      state_dict: as for `from_torch`, or torchvision's; what is above the trunk is taken if it is there and
        fits, and a classifier is not read.
      variables: as `init` made them.

    Raises:
      WeightsError: naming the entries of the trunk that are missing or of another shape, and extra ones.
    """
    return fill_what_fits(
        state_dict,
        variables,
        _torch_name,
        transposed=_DECONVOLUTIONS,
        optional=("deconv_layers.", "final_layer."),
        unused=("fc.",),
    )


def _model_of(state_dict: Mapping[str, Any]) -> SimpleBaseline:
    entries = plain_entries(state_dict)
    depth, width = published_size(entries)
    names = {"num_keypoints": "final_layer.bias", "deconvolution_features": "deconv_layers.1.bias"}
    sizes: dict[str, Any] = leading_sizes(entries, names)
    return SimpleBaseline(depth, width=width, **sizes)


def _torch_name(path: tuple[str, ...]) -> str:
    for index, name in enumerate(_DECONVOLUTIONS):
        # Convolution, normalisation and ReLU count three there.
        if path[0] in (name, f"{name}_bn"):
            return f"deconv_layers.{3 * index + (path[0] != name)}"
    return resnet_name(path)
