"""Starting a port: what a published checkpoint's headers tell, written down as a port's folder."""

from __future__ import annotations

from zoo.new.source import Source, find
from zoo.new.write import make

__all__ = ["Source", "find", "make"]
