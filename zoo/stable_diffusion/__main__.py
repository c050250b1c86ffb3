"""`python -m zoo.stable_diffusion ...` is `zoo run stable_diffusion ...`."""

import sys

from zoo.__main__ import main

sys.exit(main(["run", "stable_diffusion", *sys.argv[1:]]))
