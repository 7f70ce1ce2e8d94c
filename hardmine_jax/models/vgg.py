"""VGG (Simonyan and Zisserman, arXiv 1409.1556, table 1): blocks of 3x3 convolutions and 2x2 max pooling.

Images are `[B, H, W, 3]`, float, normalised; features are NHWC. `convB_I` is convolution I of block B, both
counted from 1.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from hardmine_jax.models.layers import BatchNorm, Conv
from hardmine_jax.models.torch_weights import conv_kernel, dense_kernel, init_shapes, take_entries

# Configuration D: channels of the convolutions of each block.
VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGGTrunk(nn.Module):
    """`[B, H, W, 3] -> [B, H // stride, W // stride, widths[-1][-1]]`, conv1_1 to conv5_3 as published.

    There is a max pooling between blocks and none after the last: the stride of five blocks is 16.

    Attributes:
      widths: channels of the convolutions of each block.
      norm: what follows each convolution: "none" as published, "batch", or "group" (groups of channels
        within one image, 32 of them if they divide the width). From random weights the published network
        hardly learns.
      dtype: type of the computation; parameters stay float32.
      axis_name: mapped axis over which batch statistics are synchronised, or None.
      remat: a block keeps nothing for its gradient but its input; it is computed a second time.
    """

    widths: tuple[tuple[int, ...], ...] = VGG16_WIDTHS
    norm: Literal["none", "batch", "group"] = "none"
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @property
    def stride(self) -> int:
        """Pixels of the image per pixel of the features."""
        return 2 ** (len(self.widths) - 1)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        self._check(images)
        features = images
        for block, widths in enumerate(self.widths, start=1):
            if block > 1:
                features = max_pool(features)
            whole = functools.partial(VGGTrunk._block, block=block, widths=widths, train=train)
            features = (nn.remat(whole) if self.remat else whole)(self, features)
        return features

    def _block(self, features: jax.Array, *, block: int, widths: tuple[int, ...], train: bool) -> jax.Array:
        for index, width in enumerate(widths, start=1):
            name = f"conv{block}_{index}"
            conv = Conv(width, use_bias=self.norm == "none", dtype=self.dtype, name=name)
            features = nn.relu(self._normalise(conv(features), name, train))
        return features

    def _normalise(self, features: jax.Array, name: str, train: bool) -> jax.Array:
        if self.norm == "none":
            return features
        if self.norm == "batch":
            return BatchNorm(train, self.axis_name, self.dtype, name=f"{name}_bn")(features)
        groups = math.gcd(32, features.shape[-1])
        return nn.GroupNorm(groups, epsilon=1e-5, dtype=self.dtype, name=f"{name}_gn")(features)

    def _check(self, images: jax.Array) -> None:
        if not self.widths or not all(self.widths):
            raise ValueError(f"VGG widths={self.widths}: give each block a convolution at least")
        if self.norm not in ("none", "batch", "group"):
            raise ValueError(f"VGG norm={self.norm!r}: choose none, batch or group")
        if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < self.stride:
            raise ValueError(
                f"VGG of {len(self.widths)} blocks wants images [B, H, W, 3] with sides of at least"
                f" {self.stride}, got {images.shape}"
            )


class VGG16(nn.Module):
    """The classifier: trunk, a last pooling, fc6, fc7, fc8 -> logits `[B, num_classes]`, float32.

    138,357,544 parameters as published. fc6 belongs to one size of image, 224x224 in the paper.

    Attributes:
      num_classes: logits an image.
      widths: channels of the convolutions of each block.
      hidden: channels of fc6 and fc7.
      dropout: rate after fc6 and fc7 when training; it draws from the "dropout" random stream.
      dtype: type of the computation; parameters and logits stay float32.
    """

    num_classes: int = 1000
    widths: tuple[tuple[int, ...], ...] = VGG16_WIDTHS
    hidden: int = 4096
    dropout: float = 0.5
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        features = max_pool(VGGTrunk(self.widths, dtype=self.dtype, name="trunk")(images, train))
        features = features.reshape(len(features), -1)
        for name in ("fc6", "fc7"):
            features = nn.relu(self._dense(self.hidden, name)(features))
            features = nn.Dropout(self.dropout, deterministic=not train)(features)
        return self._dense(self.num_classes, "fc8")(features).astype(jnp.float32)

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name=name)


def max_pool(features: jax.Array) -> jax.Array:
    """2x2 max pooling, `[B, H, W, C] -> [B, H // 2, W // 2, C]`; an odd last row or column is left out.

    XLA:CPU takes 10 to 15 times longer for the gradient of `nn.max_pool`, TPU v5e 2.6 times the cycles. Where
    maxima tie, this gradient goes to each alike.
    """
    height, width = (side // 2 * 2 for side in features.shape[1:3])
    rows = jnp.maximum(features[:, 0:height:2, :width], features[:, 1:height:2, :width])
    return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


def from_torch(
    state_dict: Mapping[str, Any],
    *,
    model: VGG16 | VGGTrunk | None = None,
    size: tuple[int, int] = (224, 224),
) -> dict[str, Any]:
    """torchvision's `vgg16` weights as variables of `VGG16` or, torchvision's or timm's, of `VGGTrunk`.

    Args:
      state_dict: `features.0.weight` ... `features.28.bias`, `classifier.0`, `.3`, `.6`; arrays or tensors.
      model: the network they are for; None: the published `VGG16`. A `VGGTrunk` does not read what comes
        after the convolutions.
      size: height and width of its images.

    Returns:
      `{"params": ...}`, float32; the network has no batch statistics.

    Raises:
      ValueError: naming all entries that are missing, extra or of another shape.
    """
    shapes = init_shapes(model or VGG16(), size)["params"]
    if not isinstance(model, VGGTrunk):
        return {"params": params_from_torch(state_dict, shapes)}
    after = ("classifier.", "pre_logits.", "head.")
    return {"params": params_from_torch(state_dict, {"trunk": shapes}, unused=after)["trunk"]}


def params_from_torch(
    state_dict: Mapping[str, Any], params: Mapping[str, Any], *, unused: Iterable[str] = ()
) -> dict[str, Any]:
    """Parameters with the names and shapes of `params` out of torchvision's weights.

    Args:
      state_dict: as for `from_torch`.
      params: "trunk" and any of "fc6", "fc7", "fc8"; arrays, or only their shapes.
      unused: names in `state_dict` that may be there and are not read.

    Raises:
      ValueError: as `from_torch`; and for a trunk with normalisation, which has no such weights.
    """
    layers = _torch_layers(params)
    shapes = {}
    for source, (_, kernel) in layers.items():
        shapes[f"{source}.weight"] = (kernel.shape[-1], *kernel.shape[-2:-1], *kernel.shape[:-2])
        shapes[f"{source}.bias"] = kernel.shape[-1:]
    arrays = take_entries(state_dict, shapes, unused=unused)
    filled: dict[tuple[str, ...], Any] = {}
    for source, (path, kernel) in layers.items():
        weight, bias = arrays[f"{source}.weight"], arrays[f"{source}.bias"]
        maps = params["trunk"][max(params["trunk"])]["bias"].size if path == ("fc6",) else None
        weight = conv_kernel(weight) if kernel.ndim == 4 else dense_kernel(weight, maps=maps)
        filled[path] = {"kernel": jnp.asarray(weight), "bias": jnp.asarray(bias)}
    return flax.traverse_util.unflatten_dict(filled)


def _torch_layers(params: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """torchvision's name of each layer -> (its path here, its kernel)."""
    layers: dict[str, tuple[tuple[str, ...], Any]] = {}
    for position, name in enumerate(sorted(params["trunk"])):
        if set(params["trunk"][name]) != {"kernel", "bias"}:
            raise ValueError(f'trunk/{name} is no convolution with a bias: take the trunk with norm="none"')
        # A convolution and its ReLU count two there, a pooling one.
        index = 2 * position + int(name.removeprefix("conv").split("_")[0]) - 1
        layers[f"features.{index}"] = (("trunk", name), params["trunk"][name]["kernel"])
    for source, name in {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"}.items():
        if name in params:
            layers[source] = ((name,), params[name]["kernel"])
    return layers
