"""Devices to train on, and the directory of the helpers on the path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import zoo

sys.path.insert(0, str(Path(__file__).parent))  # small_run is imported by the tests and by the processes they start


@pytest.fixture(params=["numpy", "cpu"])
def device(request: pytest.FixtureRequest) -> Any:
    try:
        return zoo.device(request.param)
    except zoo.DeviceError as error:
        pytest.skip(f"device {request.param}: {error.why}")
