"""The published networks, each at the sizes that papers give its cost for."""

from typing import NamedTuple

import flax.linen as nn

from hardmine_jax.models import CPN, VGG16, Hourglass, HRNet, ResNet, SimpleBaseline


class Network(NamedTuple):
    """A network at a size (height, width), and the GFLOPs that papers quote for it."""

    model: nn.Module
    size: tuple[int, int]
    quoted: float | None = None


# HRNet and SimpleBaseline: 1902.09212, table 1. CPN and Hourglass: 1711.07319, tables 3 and 8, which has 3.54
# for ResNet-50 alone (here 3.73).
NETWORKS = {
    "HRNet-W32 256x192": Network(HRNet(32), (256, 192), 7.10),
    "HRNet-W32 384x288": Network(HRNet(32), (384, 288), 16.0),
    "HRNet-W48 256x192": Network(HRNet(48), (256, 192), 14.6),
    "HRNet-W48 384x288": Network(HRNet(48), (384, 288), 32.9),
    "SimpleBaseline-50 256x192": Network(SimpleBaseline(50), (256, 192), 8.90),
    "SimpleBaseline-101 256x192": Network(SimpleBaseline(101), (256, 192), 12.4),
    "SimpleBaseline-152 256x192": Network(SimpleBaseline(152), (256, 192), 15.7),
    "SimpleBaseline-152 384x288": Network(SimpleBaseline(152), (384, 288), 35.6),
    "CPN-50 256x192": Network(CPN(50), (256, 192), 6.20),
    "CPN-50 384x288": Network(CPN(50), (384, 288), 13.9),
    "CPN-101 384x288": Network(CPN(101), (384, 288)),
    "Hourglass-2 256x192": Network(Hourglass(2, num_keypoints=17), (256, 192), 6.14),
    "Hourglass-8 256x192": Network(Hourglass(8, num_keypoints=17), (256, 192), 19.48),
    "Hourglass-8 256x256": Network(Hourglass(8), (256, 256), 25.9),
    "ResNet-50 224x224, no classifier": Network(ResNet(50), (224, 224)),
    "VGG16 224x224": Network(VGG16(), (224, 224)),
}
