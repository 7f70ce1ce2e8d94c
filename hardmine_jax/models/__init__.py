"""Networks in flax.linen: `model.apply({"params", "batch_stats"}, images [B, H, W, 3], train=False)`.

One file a network; none knows a task, a dataset or a configuration.
"""

try:
    import flax  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f'hardmine_jax.models needs flax ({error}): pip install "hardmine-jax[models]"'
    ) from error

from hardmine_jax.models.cpn import CPN, CPNHeatmaps, GlobalNet, RefineNet
from hardmine_jax.models.fast_rcnn import FastRCNN, ResNetTrunk
from hardmine_jax.models.hourglass import Hourglass
from hardmine_jax.models.hrnet import HRNet
from hardmine_jax.models.images import normalise_images
from hardmine_jax.models.resnet import ResNet, ResNetClassifier
from hardmine_jax.models.retinanet import RetinaNet
from hardmine_jax.models.simple_baseline import SimpleBaseline
from hardmine_jax.models.vgg import VGG16, VGGTrunk

__all__ = [
    "CPN",
    "CPNHeatmaps",
    "FastRCNN",
    "GlobalNet",
    "HRNet",
    "Hourglass",
    "RefineNet",
    "ResNet",
    "ResNetClassifier",
    "ResNetTrunk",
    "RetinaNet",
    "SimpleBaseline",
    "VGG16",
    "VGGTrunk",
    "normalise_images",
]
