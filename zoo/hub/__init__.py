"""Weights: what a REF names, reading and writing files, translation tables, download, `load` and `save`."""

from zoo.hub.load import load, save

__all__ = ["load", "save"]
