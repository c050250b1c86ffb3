"""`python -m zoo.whisper ...` is `zoo run whisper ...`."""

import sys

from zoo.__main__ import main

sys.exit(main(["run", "whisper", *sys.argv[1:]]))
