"""`python -m zoo.llama ...` is `zoo run llama ...`."""

import sys

from zoo.__main__ import main

sys.exit(main(["run", "llama", *sys.argv[1:]]))
