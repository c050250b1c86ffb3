"""What the tests of Whisper share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zoo.port import Port
from zoo.whisper.config import WhisperConfig
from zoo.whisper.model import Whisper
from zoo.whisper.weights import table


@pytest.fixture(scope="session")
def port() -> Port:
    """The model without its command."""
    return Port(name="whisper", task="", config=WhisperConfig, model=Whisper, weights=table, run=lambda model: [])


@pytest.fixture(scope="session")
def data() -> Path:
    found = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not found.exists():
        pytest.skip(f"no {found} (ZOO_TEST_DATA)")
    return found
