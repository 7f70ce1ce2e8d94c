"""The pose networks by name: how each is built, what of it is supervised, whose weights it can start from.

A network gives heatmaps [B, H, W, K], or a tuple of such that are supervised one after another, of which the
last are the prediction.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

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


_Published: TypeAlias = Callable[[dict, dict], WarmStart]


class Network(NamedTuple):
    """A row of NETWORKS.

    Attributes:
      make: the module, of `num_keypoints`, `dtype`, `axis_name` and `remat`.
      early: sigma of the last heatmaps -> how those before it are supervised, as published.
      published: `(state_dict, variables) -> WarmStart` of published weights; None where there are none.
      side_multiple: what height and width of the crops must be multiples of.
      is_hrnet: takes HRNetConfig's fields.
    """

    make: Callable[..., nn.Module]
    early: Callable[[float], Early] = lambda sigma: NO_EARLY
    published: _Published | None = None
    side_multiple: int = 32
    is_hrnet: bool = False


def _hrnet(published: _Published | None = hrnet.warm_start, **size: Any) -> Network:
    return Network(functools.partial(models.HRNet, **size), published=published, is_hrnet=True)


def _cpn(published: _Published | None = cpn.warm_start, **size: Any) -> Network:
    """GlobalNet's Gaussians shrink from its coarsest level to the finest, which has RefineNet's; visible
    keypoints only, and half their mean (see `models.cpn.target_sigmas`)."""

    def early(sigma: float) -> Early:
        sigmas = cpn.target_sigmas()
        return Early(tuple(sigma * one / sigmas[-1] for one in sigmas), 0.5, True)

    return Network(functools.partial(models.CPN, **size), early, published)


def _hourglass(side_multiple: int = 64, *, stacks: int, **size: Any) -> Network:
    """All stacks alike."""

    def early(sigma: float) -> Early:
        return Early((sigma,) * (stacks - 1), float(stacks - 1))

    make = functools.partial(models.Hourglass, stacks=stacks, **size)
    return Network(make, early, side_multiple=side_multiple)


def _simple_baseline(depth: int) -> Network:
    make = functools.partial(models.SimpleBaseline, depth=depth)
    return Network(make, published=simple_baseline.warm_start)


# The laptops are small enough for two CPU cores.
NETWORKS: Mapping[ModelName, Network] = {
    "laptop": _hrnet(None, width=32, stem_features=16, stem_blocks=0, modules=(1, 1, 1), blocks=1),
    "laptop_cpn": _cpn(None, depth=18, width=16, features=64),
    "laptop_hourglass": _hourglass(32, stacks=2, features=64, depth=3),
    "hrnet_w32": _hrnet(width=32),
    "hrnet_w48": _hrnet(width=48),
    "simple_baseline_18": _simple_baseline(18),
    "simple_baseline_34": _simple_baseline(34),
    "simple_baseline_50": _simple_baseline(50),
    "simple_baseline_101": _simple_baseline(101),
    "simple_baseline_152": _simple_baseline(152),
    "cpn_50": _cpn(depth=50),
    "cpn_101": _cpn(depth=101),
    "hourglass_2": _hourglass(stacks=2),
    "hourglass_8": _hourglass(stacks=8),
}


def make_model(
    name: ModelName,
    num_keypoints: int,
    *,
    dtype: str,
    axis_name: str | None,
    ablations: HRNetConfig,
    remat: bool = False,
) -> nn.Module:
    """The network of that name; `ablations` are for an HRNet; `remat` computes blocks again for gradients."""
    network = NETWORKS[name]
    more = dataclasses.asdict(ablations) if network.is_hrnet else {}
    common: dict[str, Any] = dict(dtype=jnp.dtype(dtype), axis_name=axis_name, remat=remat)
    return network.make(num_keypoints=num_keypoints, **common, **more)


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
