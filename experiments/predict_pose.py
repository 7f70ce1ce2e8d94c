"""Skeletons on your own pictures, from a checkpoint that `pose_ohkm.py` trained.

python experiments/predict_pose.py photo.jpg other.jpg --checkpoint WORKDIR --output poses
"""

import sys

from hardmine_jax.command import script

main = script("pose.predict_photos")

if __name__ == "__main__":
    sys.exit(main())
