"""`python -m hardmine_jax` is the command `hardmine`."""

import sys

from hardmine_jax.command import main

if __name__ == "__main__":
    sys.exit(main())
