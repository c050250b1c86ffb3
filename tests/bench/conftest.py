from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class FakeMachine:
    """Ceilings that are what the test says; probes come from a list, the last one again and again."""

    def __init__(self, *probes: float):
        self.threads, self.settings = 1, {}
        self.ceiling = {"fma": 100.0, "int8": 400.0, "read": 10.0, "copy": 20.0}
        self.probes = list(probes) or [100.0]
        self.bandwidths = [10.0]
        self.looked: list[str] = []

    def probe(self) -> float:
        return self.probes.pop(0) if len(self.probes) > 1 else self.probes[0]

    def clean(self, probe: float) -> bool:
        return probe >= 0.9 * self.ceiling["fma"]

    def bandwidth(self, kind: str) -> float:
        self.looked.append(kind)
        return self.bandwidths.pop(0) if len(self.bandwidths) > 1 else self.bandwidths[0]


@pytest.fixture
def machine() -> type[FakeMachine]:
    return FakeMachine


@pytest.fixture
def native() -> None:
    if importlib.util.find_spec("zoo.core.backends.cpu._native") is None:
        pytest.skip("the native kernels are not built")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers find the fake candidates."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(ROOT)]))
    monkeypatch.syspath_prepend(str(HERE))
