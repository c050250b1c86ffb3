"""`python -m zoo.mnist_cnn ...` is `zoo run mnist_cnn ...`."""

import sys

from zoo.__main__ import main

sys.exit(main(["run", "mnist_cnn", *sys.argv[1:]]))
