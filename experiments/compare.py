"""Several runs in one table: does mining help, and by how much more than chance?

python experiments/compare.py runs/*                  # of pose_ohkm.py or of detection_ohem.py
"""

import sys

from hardmine_jax.command import script

main = script("compare")

if __name__ == "__main__":
    sys.exit(main())
