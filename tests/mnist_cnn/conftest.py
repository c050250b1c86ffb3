"""Where real MNIST is, and digits to draw on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zoo.mnist_cnn.data import Split, load

REAL = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data") / "mnist"


@pytest.fixture(scope="session")
def unseen() -> Split:
    """The 10,000 real digits that are held out of training."""
    if not REAL.is_dir():
        pytest.skip(f"no real MNIST: {REAL} does not exist (set ZOO_TEST_DATA)")
    return load(REAL).validation
