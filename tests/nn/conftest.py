"""Devices that the layers are tried on."""

from __future__ import annotations

from typing import Any

import pytest

import zoo


@pytest.fixture(params=["numpy", "cpu"])
def device(request: pytest.FixtureRequest) -> Any:
    try:
        return zoo.device(request.param)
    except zoo.DeviceError as error:
        pytest.skip(f"device {request.param}: {error.why}")
