"""The fixtures of tests/hub, and the program as a function."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

_spec = importlib.util.spec_from_file_location("hub_fixtures", Path(__file__).parents[1] / "hub" / "conftest.py")
assert _spec and _spec.loader
_hub = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_hub)
weights, site, hub = _hub.weights, _hub.site, _hub.hub


@pytest.fixture
def scaler(weights, site) -> Path:
    """The checkpoint `scaler`, as published: two inputs, one output; y = 2 a + 3 b + 1."""
    from zoo.hub.safetensors import write

    tensors = {"factors.w": np.array([[2], [3]], np.float32), "bias": np.array([1], np.float32)}
    write(weights / "scaler" / "model.safetensors", tensors)
    (weights / "scaler" / "card.json").write_text('{"summary": "exact"}')
    return weights / "scaler"


@pytest.fixture
def zoo(capsys):
    """`zoo("run", "scaler")` -> (exit code, stdout, stderr)."""
    from zoo.cli.main import main

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call
