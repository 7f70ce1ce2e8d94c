"""A trained pose network as one file that runs with jax and numpy alone.

python experiments/export_pose.py WORKDIR --output pose.jaxexport              # any batch, for here
"""

import sys

from hardmine_jax.tasks.pose.export import main

if __name__ == "__main__":
    sys.exit(main())
