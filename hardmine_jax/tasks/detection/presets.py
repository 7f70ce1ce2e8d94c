"""The presets of detection training: a small network for a laptop, and Fast R-CNN on VGG16 as published."""

from hardmine_jax import training
from hardmine_jax.data.detection.augment import DetectionAugmentConfig
from hardmine_jax.data.detection.proposals import SearchConfig
from hardmine_jax.tasks.config_json import change
from hardmine_jax.tasks.detection.config import Config, PresetName

# The laptop preset on photographs: half a VGA picture.
_PHOTOGRAPHS = change(
    Config(),
    image_size=(240, 320),
    k=64,
    steps=1000,
    evaluate_every=200,
    evaluate_images=40,
    search=SearchConfig(max_proposals=600, scale=0.5),
)
_VGG16 = change(
    Config(),
    preset="vgg16",
    model="vgg16",
    image_size=(1024, 1024),
    k=64,
    batch_size=2,
    steps=40_000,
    ema_decay=0.0,
    evaluate_every=5000,
    evaluate_images=500,
    checkpoint_every=1000,
    log_every=100,
    num_workers=8,
    optimizer=training.OptimizerConfig(
        name="sgd", learning_rate=1e-3, schedule="step", milestones=(0.75,), momentum=0.9, weight_decay=5e-4
    ),
    search=SearchConfig(max_proposals=2000),
    augment=DetectionAugmentConfig(short_sides=(600,), colour=0.0),
)

# The first is the default.
PRESETS: tuple[PresetName, ...] = ("laptop", "vgg16")


def defaults(preset: PresetName, dataset: str) -> Config:
    """What flags that are not given are."""
    if preset == "vgg16":
        return _VGG16
    return Config() if dataset == "synthetic" else _PHOTOGRAPHS
