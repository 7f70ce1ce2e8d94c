"""HRNet: high resolution kept from the first stage to the last (Sun et al., arXiv 1902.09212, section 3).

Images are `[B, H, W, 3]`, float, normalised, sides multiples of 32; heatmaps are
`[B, H/4, W/4, num_keypoints]`, float32. Branch `i` works at stride `4 * 2**i` with `width * 2**i` channels.

The paper's ablations (section 4.4) are fields: `fusion`, `parallel_from_start` and `heatmap_branch`.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from hardmine_jax.models.layers import Conv, ConvNorm, rematerialised, upsample_nearest
from hardmine_jax.models.resnet import BasicBlock, Bottleneck
from hardmine_jax.models.resnet import torch_name as resnet_name
from hardmine_jax.models.torch_weights import (
    WarmStart,
    count_children,
    fill,
    fill_what_fits,
    init_shapes,
    leading_sizes,
    plain_entries,
)


class Exchange(nn.Module):
    """Every output is the sum of all branches, brought to its resolution and width (figure 3).

    `targets` are the branches whose resolution and width the outputs have.
    """

    targets: tuple[int, ...]
    train: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, branches: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(
            nn.relu(sum(self._bring(branches, source, target) for source in range(len(branches))))
            for target in self.targets
        )

    def _bring(self, branches: Sequence[jax.Array], source: int, target: int) -> jax.Array:
        common: dict[str, Any] = dict(train=self.train, dtype=self.dtype, axis_name=self.axis_name)
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
      fusion: which modules end in an exchange between the branches: "all" (8 exchanges with the published
        modules; COCO AP 73.4 from random weights, W32), "across" only the last of each stage (3; AP 71.9),
        "final" only the last of all (1; AP 70.8).
      parallel_from_start: all branches begin after the first stage, instead of one a stage (AP 72.5).
      heatmap_branch: the branch that heatmaps are read from; they are `2**heatmap_branch` times smaller.
      dtype: type of the computation; parameters and heatmaps stay float32.
      axis_name: mapped axis over which batch statistics are synchronised, or None.
      remat: blocks and exchanges keep nothing for their gradient but their inputs (`rematerialised`).
    """

    width: int = 32
    num_keypoints: int = 17
    stem_features: int = 64
    stem_blocks: int = 4
    modules: tuple[int, ...] = (1, 4, 3)
    blocks: int = 4
    fusion: Literal["all", "across", "final"] = "all"
    parallel_from_start: bool = False
    heatmap_branch: int = 0
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        self._check(images)
        common: dict[str, Any] = dict(train=train, dtype=self.dtype, axis_name=self.axis_name)
        features = ConvNorm(self.stem_features, stride=2, **common, name="stem1")(images)
        features = ConvNorm(self.stem_features, stride=2, **common, name="stem2")(features)
        bottleneck = rematerialised(Bottleneck, self.remat)
        for index in range(self.stem_blocks):
            features = bottleneck(self.stem_features, **common, name=f"layer1_{index}")(features)
        branches, coarsest = [ConvNorm(self.width, **common, name="transition1_0")(features)], features
        for stage, count in enumerate(self.modules, start=2):
            branches = self._add_branches(branches, coarsest, stage, common)
            for module in range(count):
                branches = self._module(branches, stage, module, common)
            coarsest = branches[-1]
        head = Conv(
            self.num_keypoints,
            1,
            use_bias=True,
            kernel_init=nn.initializers.normal(0.001),
            dtype=self.dtype,
            name="final_layer",
        )
        return head(branches[-1]).astype(jnp.float32)

    def _add_branches(
        self, branches: Sequence[jax.Array], coarsest: jax.Array, stage: int, common: dict[str, Any]
    ) -> list[jax.Array]:
        last = len(self.modules) if self.parallel_from_start else stage - 1
        branches = list(branches)
        for index in range(len(branches), last + 1):
            name = f"transition{stage - 1}_{index}"
            coarsest = ConvNorm(self.width * 2**index, stride=2, **common, name=name)(coarsest)
            branches.append(coarsest)
        return branches

    def _module(
        self, branches: Sequence[jax.Array], stage: int, module: int, common: dict[str, Any]
    ) -> list[jax.Array]:
        name = f"stage{stage}_{module}"
        outputs, basic_block = [], rematerialised(BasicBlock, self.remat)
        for index, branch in enumerate(branches):
            for block in range(self.blocks):
                branch = basic_block(branch.shape[-1], **common, name=f"{name}_branch{index}_{block}")(branch)
            outputs.append(branch)
        last_of_stage = module == self.modules[stage - 2] - 1
        last = last_of_stage and stage == len(self.modules) + 1
        if not {"all": True, "across": last_of_stage, "final": last}[self.fusion]:
            return outputs
        # Nothing reads the other branches after the very last exchange.
        targets = (self.heatmap_branch,) if last else tuple(range(len(branches)))
        exchange = rematerialised(Exchange, self.remat)
        return list(exchange(targets, **common, name=f"{name}_exchange")(outputs))

    def _check(self, images: jax.Array) -> None:
        stride = 4 * 2 ** len(self.modules)
        if not 1 <= len(self.modules) <= 3:
            raise ValueError(f"HRNet modules={self.modules}: one to three entries, for stages 2, 3 and 4")
        if self.fusion not in ("all", "across", "final"):
            raise ValueError(f"HRNet fusion={self.fusion!r}: choose all, across or final")
        if not 0 <= self.heatmap_branch <= len(self.modules):
            raise ValueError(
                f"HRNet heatmap_branch={self.heatmap_branch}: with modules={self.modules} there are"
                f" 0 to {len(self.modules)}"
            )
        if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] % stride or images.shape[2] % stride:
            raise ValueError(
                f"HRNet wants images [B, H, W, 3] with sides a multiple of {stride}, got {images.shape}"
            )


def from_torch(state_dict: Mapping[str, Any], *, model: HRNet | None = None) -> dict[str, Any]:
    """The published weights as variables of `HRNet`.

    Args:
      state_dict: `conv1.weight` ... `stage2.0.branches.0.0.conv1.weight` ... `final_layer.bias`; arrays or
        tensors.
      model: the network they are for; None: the one whose sizes they have.

    Returns:
      `{"params", "batch_stats"}`, float32.

    Raises:
      WeightsError: naming all entries that are missing, extra or of another shape.
    """
    return fill(state_dict, init_shapes(model or _model_of(state_dict)), _torch_name)


def warm_start(state_dict: Mapping[str, Any], variables: Mapping[str, Any]) -> WarmStart:
    """`variables` with the weights of an ImageNet HRNet, or of a pose network with other keypoints.

    Args:
      state_dict: as for `from_torch`, or of the classifier; `final_layer` is taken if it fits, and what the
        classifier has besides is not read.
      variables: as `init` made them.

    Raises:
      WeightsError: naming the entries of the trunk that are missing or of another shape, and extra ones.
    """
    branches = re.findall(r"stage(\d)_(\d+)_", " ".join(variables["params"]))
    stage, module = max((int(stage), int(module)) for stage, module in branches)
    classifier = ("incre_modules.", "downsamp_modules.", "classifier.")
    # A classifier's last exchange has an output for every branch.
    unused = (*classifier, f"stage{stage}.{module}.fuse_layers.")
    optional = ("final_layer.",)
    return fill_what_fits(state_dict, variables, _torch_name, optional=optional, unused=unused)


def _model_of(state_dict: Mapping[str, Any]) -> HRNet:
    entries = plain_entries(state_dict)
    modules = [count_children(entries, f"stage{stage}.") for stage in (2, 3, 4)]
    counts: dict[str, Any] = {
        "stem_blocks": count_children(entries, "layer1."),
        "modules": tuple(itertools.takewhile(bool, modules)),
        "blocks": count_children(entries, "stage2.0.branches.0."),
    }
    biases = {"width": "transition1.0.1", "num_keypoints": "final_layer", "stem_features": "bn1"}
    sizes = counts | leading_sizes(entries, {field: f"{name}.bias" for field, name in biases.items()})
    return HRNet(**{field: size for field, size in sizes.items() if size})


def _torch_name(path: tuple[str, ...]) -> str:
    """As in ("stage4_2_exchange", "from0_to2_1", "conv") -> "stage4.2.fuse_layers.2.0.1.0"."""
    top, *rest = path
    if top.startswith("stem"):
        return f"{rest[0]}{top.removeprefix('stem')}"
    top = re.sub(r"^stage(\d)_(\d+)_branch(\d)_(\d+)$", r"stage\1.\2.branches.\3.\4", top)
    top = re.sub(r"^stage(\d)_(\d+)_exchange$", r"stage\1.\2.fuse_layers", top)
    # The first branch keeps its resolution, the others begin with a chain of strided convolutions there.
    top = re.sub(r"^transition(\d)_0$", r"transition\1.0", top)
    top = re.sub(r"^transition(\d)_(\d)$", r"transition\1.\2.0", top)
    if rest and rest[0].startswith("from"):
        source, target, *step = (int(digit) for digit in re.findall(r"\d", rest[0]))
        # Steps are numbered by the branch that is left here, from 0 there.
        rest[0] = ".".join(str(place) for place in (target, source, *(one - source for one in step)))
    if rest and rest[-1] in ("conv", "bn"):
        rest[-1] = str(("conv", "bn").index(rest[-1]))
    return resnet_name((top, *rest))
