"""The presets of pose training: a small network for a laptop, and the schedules of released code."""

from collections.abc import Mapping
from typing import Any

from hardmine_jax import training
from hardmine_jax.data.pose.augment import AugmentConfig
from hardmine_jax.models import cpn
from hardmine_jax.tasks.pose import networks
from hardmine_jax.tasks.pose.config import Config, PresetName
from hardmine_jax.tasks.run_config import RunConfig


def _published(
    preset: PresetName,
    model: networks.ModelName,
    *,
    steps: int,
    milestones: tuple[float, ...],
    augment: AugmentConfig,
    image_size: tuple[int, int] = (256, 192),
    heatmap_sigma: float = 2.0,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    factor: float = 0.1,
    weight_decay: float = 0.0,
    **more: Any,
) -> Config:
    """A released training: Adam with steps at the milestones; mining only where it was published with it."""
    optimizer = training.OptimizerConfig(
        name="adam", learning_rate=learning_rate, schedule="step", milestones=milestones, factor=factor,
        weight_decay=weight_decay,
    )  # fmt: skip
    run = RunConfig(
        steps=steps, batch_size=batch_size, optimizer=optimizer, dtype="bfloat16", ema_decay=0.0,
        evaluate_every=11_700, checkpoint_every=1000, log_every=100, num_workers=16,
    )  # fmt: skip
    given: dict[str, Any] = dict(dataset="coco", mining="none") | more
    return Config(
        preset=preset, model=model, augment=augment, image_size=image_size, heatmap_sigma=heatmap_sigma,
        evaluate_people=2000, run=run, **given,
    )  # fmt: skip


# COCO 2017 has 149,813 people with labelled keypoints to train on.
_COCO_PEOPLE = 149_813
_HRNET: dict[str, Any] = dict(
    steps=210 * _COCO_PEOPLE // 128, milestones=(170 / 210, 200 / 210),
    augment=AugmentConfig(scale=0.35, rotation=45.0, half_body_probability=0.3, colour=0.0),
)  # fmt: skip
_SIMPLE_BASELINE: dict[str, Any] = dict(
    steps=140 * _COCO_PEOPLE // 128, milestones=(90 / 140, 120 / 140),
    augment=AugmentConfig(scale=0.3, rotation=40.0, half_body_probability=0.0, colour=0.0),
)  # fmt: skip
# 24 million crops, the rate halved after every 3.6 million.
_CPN: dict[str, Any] = dict(
    steps=24_000_000 // 32, milestones=tuple(0.15 * number for number in range(1, 7)), factor=0.5,
    batch_size=32, learning_rate=5e-4, weight_decay=1e-5, mining="ohkm", k=8,
    augment=AugmentConfig(scale=0.35, rotation=45.0, half_body_probability=0.0, colour=0.0),
)  # fmt: skip
_HOURGLASS: dict[str, Any] = dict(
    steps=200_000, milestones=(0.5,), factor=0.2, batch_size=16, image_size=(256, 256), heatmap_sigma=1.0,
    dataset="mpii", augment=AugmentConfig(scale=0.25, rotation=30.0, half_body_probability=0.0),
)  # fmt: skip
_LARGE: dict[str, Any] = dict(image_size=(384, 288), heatmap_sigma=3.0)
_CPN_SMALL, _CPN_LARGE = cpn.target_sigmas(), cpn.target_sigmas((23, 17, 13, 9))
PRESETS: Mapping[PresetName, Config] = {
    "laptop": Config(),
    "hrnet_w32": _published("hrnet_w32", "hrnet_w32", **_HRNET),
    "hrnet_w48": _published("hrnet_w48", "hrnet_w48", **_HRNET),
    "hrnet_w32_384": _published("hrnet_w32_384", "hrnet_w32", **_HRNET, **_LARGE),
    "hrnet_w48_384": _published("hrnet_w48_384", "hrnet_w48", **_HRNET, **_LARGE),
    "simple_baseline_50": _published("simple_baseline_50", "simple_baseline_50", **_SIMPLE_BASELINE),
    "simple_baseline_101": _published("simple_baseline_101", "simple_baseline_101", **_SIMPLE_BASELINE),
    "simple_baseline_152": _published("simple_baseline_152", "simple_baseline_152", **_SIMPLE_BASELINE),
    "cpn_50": _published(
        "cpn_50", "cpn_50", **_CPN, heatmap_sigma=_CPN_SMALL[-1], global_sigmas=_CPN_SMALL
    ),
    "cpn_50_384": _published(
        "cpn_50_384", "cpn_50", **_CPN, image_size=(384, 288), heatmap_sigma=_CPN_LARGE[-1],
        global_sigmas=_CPN_LARGE,
    ),
    "cpn_101_384": _published(
        "cpn_101_384", "cpn_101", **_CPN, image_size=(384, 288), heatmap_sigma=_CPN_LARGE[-1],
        global_sigmas=_CPN_LARGE,
    ),
    "hourglass_2": _published("hourglass_2", "hourglass_2", **_HOURGLASS),
    "hourglass_8": _published("hourglass_8", "hourglass_8", **_HOURGLASS),
}  # fmt: skip
