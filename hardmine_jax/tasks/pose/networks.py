"""The pose networks by name: how each is built, what of it is supervised, whose weights it can start from.

A network gives heatmaps [B, H, W, K], or a tuple of such that are supervised one after another, of which the
last are the prediction.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hardmine_jax import models
from hardmine_jax.models import cpn, hrnet, normalise_images, simple_baseline
from hardmine_jax.models.torch_weights import WarmStart

ModelName = Literal[
    "laptop", "laptop_cpn", "laptop_hourglass", "hrnet_w32", "hrnet_w48", "simple_baseline_18",
    "simple_baseline_34", "simple_baseline_50", "simple_baseline_101", "simple_baseline_152", "cpn_50",
    "cpn_101", "hourglass_2", "hourglass_8",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class HRNetConfig:
    """HRNet's ablations (arXiv 1902.09212, section 4.4).

    Attributes:
      fusion: where the branches exchange: after every module, only across stages, or only at the very end.
      parallel_from_start: all four resolutions from the start, not one more in each stage.
      heatmap_branch: 0 reads heatmaps from the highest resolution, 3 from the lowest.
    """

    fusion: Literal["all", "across", "final"] = "all"
    parallel_from_start: bool = False
    heatmap_branch: int = 0


def make_model(
    name: ModelName, num_keypoints: int, *, dtype: str, axis_name: str | None, hrnet: HRNetConfig
) -> nn.Module:
    """The network of that name; `laptop` is an HRNet, and the laptops are small enough for two CPU cores."""
    common = dict(num_keypoints=num_keypoints, dtype=jnp.dtype(dtype), axis_name=axis_name)
    kind, number = split(name)
    if kind == "hrnet":
        small = dict(width=32, stem_features=16, stem_blocks=0, modules=(1, 1, 1), blocks=1)
        size = dict(width=number) if number else small
        return models.HRNet(**size, **dataclasses.asdict(hrnet), **common)
    if kind == "cpn":
        size = dict(depth=number) if number else dict(depth=18, width=16, features=64)
        return models.CPN(**size, **common)
    if kind == "hourglass":
        size = dict(stacks=number) if number else dict(stacks=2, features=64, depth=3)
        return models.Hourglass(**size, **common)
    return models.SimpleBaseline(depth=number, **common)


def split(name: ModelName) -> tuple[str, int | None]:
    """Kind and number, which the laptops have not.

    >>> split("hrnet_w48"), split("simple_baseline_50"), split("laptop"), split("laptop_cpn")
    (('hrnet', 48), ('simple_baseline', 50), ('hrnet', None), ('cpn', None))
    """
    if name.startswith("laptop"):
        return name.removeprefix("laptop").removeprefix("_") or "hrnet", None
    kind, _, number = name.rpartition("_")
    return kind, int(number.removeprefix("w"))


def side_multiple(name: ModelName) -> int:
    """What height and width of the crops must be multiples of."""
    return 64 if name in ("hourglass_2", "hourglass_8") else 32


class Early(NamedTuple):
    """How the heatmaps before the last are supervised.

    Attributes:
      sigmas: of their target Gaussians, heatmap pixels, in the order of the heatmaps.
      weight: of the mean of their losses beside the last one's.
      visible_only: occluded keypoints do not count where these are not mined.
    """

    sigmas: tuple[float, ...] = ()
    weight: float = 0.0
    visible_only: bool = False


NO_EARLY = Early()


def early_heatmaps(name: ModelName, *, sigma: float) -> Early:
    """As published; `sigma` is that of the last heatmaps.

    CPN: Gaussians that shrink from GlobalNet's coarsest level to the finest, which has RefineNet's, visible
    keypoints only, and half their mean (see `models.cpn.target_sigmas`). Hourglass: all stacks alike.
    """
    kind, number = split(name)
    if kind == "cpn":
        published = cpn.target_sigmas()
        return Early(tuple(sigma * one / published[-1] for one in published), 0.5, True)
    if kind == "hourglass":
        stacks = number or 2
        return Early((sigma,) * (stacks - 1), float(stacks - 1))
    return NO_EARLY


def published_weights(name: ModelName) -> Callable[[dict, dict], WarmStart] | None:
    """`(state_dict, variables) -> WarmStart`; None where nobody published any."""
    files = {"hrnet": hrnet, "simple_baseline": simple_baseline, "cpn": cpn}
    kind, number = split(name)
    return files[kind].warm_start if number and kind in files else None


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a network takes for the image and its pixels; other people's networks differ from those made here.

    Attributes:
      origin: see `heatmap_to_image`; 0 for networks that the released code of SimpleBaseline, HRNet or
        Hourglass trained, by default the middle of the pixels that a heatmap pixel covers.
      flip_shift: of the flip test, see `flip_heatmaps`; 1 for those.
      channels: order of the colours; SimpleBaseline's released networks take bgr.
    """

    origin: float | None = None
    flip_shift: int = 0
    channels: Literal["rgb", "bgr"] = "rgb"


OWN_INPUTS = Inputs()


def to_network(images: jax.Array, inputs: Inputs) -> jax.Array:
    """uint8 [B, H, W, 3] RGB -> what the network takes, float32."""
    # The released code keeps the means in the order of RGB, whatever the image's is.
    return normalise_images(images[..., ::-1] if inputs.channels == "bgr" else images)
