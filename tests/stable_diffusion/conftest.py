"""Where the real files are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


@pytest.fixture(scope="session")
def real() -> Any:
    """A file of the real test material; the test is skipped where it is absent."""

    def find(*parts: str) -> Path:
        path = DATA.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"no real data: {path} does not exist (set ZOO_TEST_DATA)")
        return path

    return find
