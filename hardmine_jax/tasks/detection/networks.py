"""The detectors by name: how each is built, and whose weights it can start from."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from hardmine_jax.models import fast_rcnn
from hardmine_jax.models.torch_weights import WarmStart
from hardmine_jax.models.vgg import VGGTrunk

ModelName = Literal["laptop", "vgg16", "resnet50"]


def make_model(
    name: ModelName,
    num_classes: int,
    *,
    dtype: str,
    axis_name: str | None,
    frozen_norm: bool,
    remat: bool = False,
) -> fast_rcnn.FastRCNN:
    """The network of that name; `laptop` is small enough for two CPU cores.

    Args:
      frozen_norm: a resnet50 keeps its batch statistics, those that it starts from.
      remat: the trunk's blocks are computed again for their gradient.
    """
    common: dict[str, Any] = dict(num_classes=num_classes, dtype=jnp.dtype(dtype))
    size: dict[str, Any] = dict(dtype=jnp.dtype(dtype), axis_name=axis_name, remat=remat)
    if name == "laptop":
        small = VGGTrunk(((16,), (32, 32), (64, 64)), norm="batch", **size)
        return fast_rcnn.FastRCNN(trunk=small, hidden=(256, 256), dropout=0.0, pooling="align", **common)
    if name == "resnet50":
        trunk = fast_rcnn.ResNetTrunk(50, frozen_norm=frozen_norm, **size)
        return fast_rcnn.FastRCNN(trunk=trunk, hidden=(1024, 1024), dropout=0.0, pooling="align", **common)
    return fast_rcnn.FastRCNN(trunk=VGGTrunk(dtype=jnp.dtype(dtype), remat=remat), **common)


def init_variables(model: fast_rcnn.FastRCNN, size: tuple[int, int], key: jax.Array) -> Mapping[str, Any]:
    """Random weights of trunk and head."""

    def both(module: nn.Module, images: jax.Array) -> Any:
        features = module.features(images)
        return module.head(jnp.zeros((1, 7, 7, features.shape[-1]), features.dtype))

    return model.init(key, jnp.zeros((1, *size, 3)), method=both)


def published_weights(name: ModelName) -> Callable[[dict, dict], WarmStart] | None:
    """`(state_dict, variables) -> WarmStart`; None where nobody published any."""

    def fill(state_dict: dict, variables: dict) -> WarmStart:
        filled = fast_rcnn.from_torch(state_dict, variables)
        return WarmStart(filled, ("class_logits", "box_deltas"), ())

    return None if name == "laptop" else fill
