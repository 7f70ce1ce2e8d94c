"""A trained pose network as one file that runs with jax and numpy alone.

python experiments/export_pose.py WORKDIR --output pose.jaxexport              # any batch, for here
"""

import sys

from hardmine_jax.command import script

main = script("pose.export")

if __name__ == "__main__":
    sys.exit(main())
