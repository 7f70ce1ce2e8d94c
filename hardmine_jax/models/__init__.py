"""Networks in flax.linen: `model.apply({"params", "batch_stats"}, images [B, H, W, 3], train=False)`.

One file a network; none knows a task, a dataset or a configuration.
"""

from hardmine_jax.models.fast_rcnn import FastRCNN, ResNetTrunk
from hardmine_jax.models.hrnet import HRNet
from hardmine_jax.models.images import normalise_images
from hardmine_jax.models.resnet import ResNet
from hardmine_jax.models.simple_baseline import SimpleBaseline
from hardmine_jax.models.vgg import VGG16, VGGTrunk

__all__ = [
    "FastRCNN",
    "HRNet",
    "ResNet",
    "ResNetTrunk",
    "SimpleBaseline",
    "VGG16",
    "VGGTrunk",
    "normalise_images",
]
