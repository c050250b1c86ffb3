"""The device under test: who takes `device` runs on every device of this machine, cpu once per instruction set; who
takes `cpu`, or `isa`, on the native kernels of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from zoo.core.testing.devices import device_names, opened

try:
    from zoo.core.backends.cpu import _native as native
except ImportError:  # then the tests of the kernels skip themselves, and say so
    native = None


@pytest.fixture(params=device_names()[0])
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    with opened(request.param) as found:
        yield found


@pytest.fixture(params=native.isas() if native else [])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine, forced."""
    before = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


@pytest.fixture
def cpu(isa: str) -> Any:
    from zoo.core.backends.cpu import CpuBackend

    return CpuBackend()


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = native.threads()
    yield
    native.set_threads(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
