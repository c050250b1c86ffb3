"""`python -m zoo` is the `zoo` program."""

import sys

from zoo.cli.main import main

sys.exit(main())
