"""`python -m zoo.resnet ...` is `zoo run resnet ...`."""

import sys

from zoo.__main__ import main

sys.exit(main(["run", "resnet", *sys.argv[1:]]))
