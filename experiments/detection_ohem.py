"""OHEM: Fast R-CNN trained on each image's k hardest regions (Shrivastava and others, arXiv 1604.03540).

    python experiments/detection_ohem.py                                # made-up shapes, under 5 minutes
    python experiments/detection_ohem.py --dataset voc --data-dir DIR   # any folder in PASCAL VOC's layout
    python experiments/detection_ohem.py --dataset coco --annotations JSON --images DIR  # any COCO boxes
    python experiments/detection_ohem.py --preset vgg16 --dataset voc --data-dir VOC2007 \
        --train-split trainval --validation-split test --init-from vgg16.pth  # as published, GPU or TPU

The first two are measured on 2 CPU cores (README has the scores). The last is the paper's VOC 2007 model:
VGG16 with ImageNet weights, selective search, short side 600, 2 images and 128 regions a step, SGD at 0.001
for 30,000 steps and at 0.0001 for 10,000; table 1 there gives mAP 69.9 with OHEM, 67.2 with random regions.
Stopped or killed, the same command goes on to the same bits.
"""

import sys

from hardmine_jax.command import script

main = script("detection.train", description=__doc__)

if __name__ == "__main__":
    sys.exit(main())
