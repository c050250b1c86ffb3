"""The device under test: who takes `device` runs on every device of this machine, cpu once per instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from zoo.core.testing.devices import device_names, opened


@pytest.fixture(params=device_names()[0])
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    with opened(request.param) as found:
        yield found
