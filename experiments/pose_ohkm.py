"""OHKM: keypoint heatmaps trained on each person's k worst keypoints (CPN, arXiv 1711.07319, section 3.2.2).

    python experiments/pose_ohkm.py                                # made-up people, under 5 minutes
    python experiments/pose_ohkm.py --dataset lspet --data-dir DIR # Leeds Sports Pose, 20 minutes
    python experiments/pose_ohkm.py --dataset coco --annotations JSON --images DIR  # keypoints of your own
    python experiments/pose_ohkm.py --preset hrnet_w32 --data-dir COCO --init-from hrnet_w32-36af842e.pth \
        --boxes COCO_val2017_detections_AP_H_56_person.json                         # as published, TPU or GPU

The first two are measured on 2 CPU cores (README has the scores). The other presets carry the schedules of
released code, and `--mining none` but for CPN; with ImageNet weights, the detector's boxes above and the flip
test it gets on COCO val2017 (AP; README of deep-high-resolution-net.pytorch): HRNet-W32 74.4, W48 75.1, at
384x288 75.8 and 76.3; SimpleBaseline-50 70.4, -101 71.4, -152 72.0. CPN-50 69.7, at 384x288 72.3, CPN-101
there 72.9 (README of tf-cpn, boxes of human AP 55.3 on minival). On MPII's validation people (PCKh@0.5;
README of pytorch_stacked_hourglass) Hourglass of two stacks 88.5, of eight 90.1. Stopped or killed, the same
command goes on to the same bits.
"""

import sys

from hardmine_jax.command import script

main = script("pose.train", description=__doc__)

if __name__ == "__main__":
    sys.exit(main())
