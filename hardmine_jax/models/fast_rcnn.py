"""Fast R-CNN (Girshick, arXiv 1504.08083): one trunk an image, one small network a region of interest.

Images are `[B, H, W, 3]`, float, normalised; boxes `[B, N, 4]` xyxy in pixels of the image; class 0 is
background. The trunk runs once a step; the head is what two-pass mining runs twice (arXiv 1604.03540):

    features = model.apply(variables, images, method="features")        # [B, H / stride, W / stride, F]
    logits, deltas = model.apply(variables, pooled, method="head")      # pooled [N, 7, 7, F]

The head has no statistics over regions, so a region's loss does not depend on the others it runs with.
Batch normalisation is in the trunk only.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from hardmine_jax.models.resnet import ResNet, torch_name
from hardmine_jax.models.torch_weights import fill
from hardmine_jax.models.vgg import VGGTrunk, params_from_torch


class ResNetTrunk(nn.Module):
    """A ResNet without its last stage: `[B, H, W, 3] -> [B, H/16, W/16, F]`, F = 1024 at depth 50.

    Attributes:
      depth: 18, 34, 50, 101 or 152.
      width: channels of the first stage before expansion; 64 as published.
      frozen_norm: normalises with the running averages in training too, and keeps them: for weights trained
        before, with the one or two images a step of the paper.
      dtype: type of the computation; parameters stay float32.
      axis_name: mapped axis over which batch statistics are synchronised, or None.
      remat: residual blocks keep nothing for their gradient but their inputs (`rematerialised`).
    """

    depth: int = 50
    width: int = 64
    frozen_norm: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False
    stride = 16

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        common: dict[str, Any] = dict(dtype=self.dtype, axis_name=self.axis_name)
        resnet = ResNet(self.depth, self.width, stages=3, remat=self.remat, **common, name="resnet")
        return resnet(images, train and not self.frozen_norm)[-1]


class FastRCNN(nn.Module):
    """Class logits and box deltas of regions. 134,674,341 parameters with VGG16 and 20 classes.

    Attributes:
      num_classes: C, without background.
      trunk: module `(images, train) -> features` with a `stride`: `VGGTrunk` or `ResNetTrunk`.
      hidden: channels of fc6 and fc7.
      dropout: rate after fc6 and fc7 when training.
      pooling: which pooling `pool` does, and pooled features have to come from: "pool" (quantised maximum,
        as published) or "align".
      pool: `(features [H, W, F], boxes [N, 4]) -> [N, 7, 7, F]` for calls of the whole, as in
        `functools.partial(roi_pool, stride=16)`. `init`, `features` and `head` do without.
      dtype: type of the head's computation; None: that of its parameters and inputs, so that the
        `score_dtype` of `mine` has its effect. Parameters are made float32; logits and deltas stay float32.
    """

    num_classes: int
    trunk: nn.Module = VGGTrunk()
    hidden: tuple[int, int] = (4096, 4096)
    dropout: float = 0.5
    pooling: Literal["pool", "align"] = "pool"
    pool: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    dtype: jax.typing.DTypeLike | None = None

    @property
    def stride(self) -> int:
        """Pixels of the image per pixel of the features."""
        return self.trunk.stride

    def setup(self) -> None:
        if self.pooling not in ("pool", "align"):
            raise ValueError(f"FastRCNN pooling={self.pooling!r}: choose pool or align")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"FastRCNN dropout={self.dropout}: a rate is at least 0 and below 1")

        def dense(features: int, init: nn.initializers.Initializer) -> nn.Dense:
            return nn.Dense(features, kernel_init=init, dtype=self.dtype)

        self.fc6 = dense(self.hidden[0], nn.initializers.he_normal())
        self.fc7 = dense(self.hidden[1], nn.initializers.he_normal())
        # Section 2.3.
        self.class_logits = dense(self.num_classes + 1, nn.initializers.normal(0.01))
        self.box_deltas = dense(4 * self.num_classes, nn.initializers.normal(0.001))

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, 3] -> [B, H // stride, W // stride, F]`."""
        return self.trunk(images, train)

    def head(
        self, pooled: jax.Array, train: bool = False, keys: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Each region by itself.

        Args:
          pooled: [N, 7, 7, F] pooled features.
          train: drops out.
          keys: [N] PRNG keys, a region's own for its dropout. Mapped by `mine` along with `pooled` they
            travel with the regions, and a hard one meets the same dropout in both runs. They must be of a
            kind whose draws do not change under `jax.vmap` (threefry, the default, and not rbg). None: drawn
            by position from the "dropout" random stream.

        Returns:
          Class logits [N, C + 1] and box deltas [N, C, 4], row c - 1 for class c; float32.
        """
        drops = train and self.dropout > 0.0
        keeps = self._draw_dropout(len(pooled), keys) if drops else (None, None)
        hidden = pooled.reshape(len(pooled), math.prod(pooled.shape[1:]))
        for dense, keep in zip((self.fc6, self.fc7), keeps, strict=True):
            hidden = nn.relu(dense(hidden))
            if keep is not None:
                hidden = jnp.where(keep, hidden / (1.0 - self.dropout), 0.0)
        deltas = self.box_deltas(hidden).reshape(len(pooled), self.num_classes, 4)
        return self.class_logits(hidden).astype(jnp.float32), deltas.astype(jnp.float32)

    def _draw_dropout(self, num_regions: int, keys: jax.Array | None) -> list[jax.Array]:
        """What stays of each hidden layer, bool [N, channels]."""
        if keys is None:
            keys = jax.random.split(self.make_rng("dropout"), num_regions)
        shape = (sum(self.hidden),)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.dropout, shape))(keys)
        return jnp.split(keep, [self.hidden[0]], axis=1)

    def __call__(
        self, images: jax.Array, boxes: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Trunk, pooling and head of images and their boxes.

        Args:
          images: [B, H, W, 3].
          boxes: [B, N, 4].
          train: drops out, and normalises with the statistics of the batch.
          keys: [B, N], as for `head`.

        Returns:
          Class logits [B, N, C + 1] and box deltas [B, N, C, 4].

        Raises:
          ValueError: if the module has no `pool`, or boxes are not those of the images.
        """
        if self.pool is None and not self.is_initializing():
            raise ValueError("FastRCNN has no pool: give it functools.partial(roi_pool, stride=model.stride)")
        if boxes.ndim != 3 or len(boxes) != len(images) or boxes.shape[-1] != 4:
            raise ValueError(f"boxes must be [B, N, 4], B={len(images)} as in images, not {boxes.shape}")
        pooled = jax.vmap(self.pool or _blank_pool)(self.features(images, train), boxes)
        units = boxes.shape[:2]
        keys = None if keys is None else keys.reshape(math.prod(units), *keys.shape[2:])
        logits, deltas = self.head(pooled.reshape(math.prod(units), *pooled.shape[2:]), train, keys)
        return logits.reshape(*units, *logits.shape[1:]), deltas.reshape(*units, *deltas.shape[1:])


def from_torch(state_dict: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` with what a network that was trained to classify images has.

    Args:
      state_dict: of torchvision's `vgg16`, for trunk, fc6 and fc7: `features.0.weight` ...
        `classifier.3.bias`; `classifier.6`, the 1000 classes, is not read. Or of torchvision's or timm's
        ResNet, for the trunk: `conv1.weight` ... `layer3.5.bn3.running_var`; `layer4` and `fc` are not read.
      variables: of a `FastRCNN` as `init` made them, with a `VGGTrunk` without normalisation, or with the
        `ResNetTrunk` of that depth.

    Returns:
      `{"params", ...}`; everything else is that of `variables`.

    Raises:
      WeightsError: naming all entries that are missing, extra or of another shape.
    """
    params = dict(variables["params"])
    if "resnet" in params["trunk"]:
        trunk = {name: tree["trunk"]["resnet"] for name, tree in variables.items()}
        filled = fill(state_dict, trunk, torch_name, unused=("layer4.", "fc."))
        return {name: {**tree, "trunk": {"resnet": filled[name]}} for name, tree in variables.items()}
    old = ("classifier.6.weight", "classifier.6.bias")
    taken = {name: params[name] for name in ("trunk", "fc6", "fc7")}
    return {**variables, "params": params | params_from_torch(state_dict, taken, unused=old)}


def _blank_pool(features: jax.Array, boxes: jax.Array) -> jax.Array:
    """Of the published size, to make parameters with."""
    return jnp.zeros((len(boxes), 7, 7, features.shape[-1]), features.dtype)
