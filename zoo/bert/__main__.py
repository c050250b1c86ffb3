"""`python -m zoo.bert ...` is `zoo run bert ...`."""

import sys

from zoo.__main__ import main

sys.exit(main(["run", "bert", *sys.argv[1:]]))
