"""Elementwise chains in one pass over memory: `Fusion(device)` is a device, `fused(fn)` uses it for one function."""

from __future__ import annotations

from zoo.core.fusion.device import Fusion
from zoo.core.fusion.fused import fused

__all__ = ["Fusion", "fused"]
