"""What a process says of its own memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from zoo.core.stats import peak_memory

ASK = "from zoo.core.stats import peak_memory; print(peak_memory())"


def test_a_peak_is_that_of_the_process_and_not_of_its_parent():
    held = np.ones(300 << 20, np.uint8)  # getrusage of a program that was started with this would begin with it
    ours = peak_memory()
    if ours is None:
        pytest.skip("the system does not say what a process has held")
    assert ours > held.nbytes
    theirs = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True).stdout
    assert int(theirs) < held.nbytes
