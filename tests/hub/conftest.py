"""Fixtures: a weights directory of the test's own, and third-party ports on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import hub_server
import pytest
import third_party


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """An empty ZOO_WEIGHTS; the working directory and the cache are elsewhere, and empty too."""
    for name in ("weights", "work", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "weights"


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A directory on the path with the third-party ports `scaler`, `broken` and `odd` installed in it."""
    directory = tmp_path / "site"
    directory.mkdir()
    third_party.install(directory)
    monkeypatch.syspath_prepend(str(directory))
    yield directory
    for name in ("zoo_scaler", "zoo_broken", "zoo_odd"):
        sys.modules.pop(name, None)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of the test's own, which huggingface_hub takes for the real one; nobody is logged in."""
    hub = hub_server.serve()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with hub:
        yield hub
        hub.shutdown()
