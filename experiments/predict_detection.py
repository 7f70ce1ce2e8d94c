"""Boxes on your own pictures, from a checkpoint that `detection_ohem.py` trained.

python experiments/predict_detection.py photo.jpg other.jpg --checkpoint WORKDIR --output detections
"""

import sys

from hardmine_jax.command import script

main = script("detection.predict_photos")

if __name__ == "__main__":
    sys.exit(main())
