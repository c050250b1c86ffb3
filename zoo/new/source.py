"""What a new port is made from: the config and the tensors' names and shapes of a published checkpoint, no weights."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.core.errors import WeightsError
from zoo.hub import headers, refs, remote
from zoo.hub.files import read_json
from zoo.hub.formats import read
from zoo.hub.mapped import TensorInfo


@dataclass(frozen=True)
class Source:
    shown: str
    """What the port's files call it: a directory's name, or the repository and its commit."""
    config: dict[str, Any]
    """config.json, {} without one."""
    infos: Mapping[str, TensorInfo]
    """Empty for a config.json alone."""
    licence: str = ""


def find(ref: str) -> Source:
    """That of a checkpoint here (directory, file, config.json), or of a repository of the Hub, whose headers are read
    over the network.

    Raises WeightsError, DownloadError.
    """
    path = Path(ref)
    if path.suffix == ".json" and path.is_file() and path.name == refs.CONFIG_FILE and not _has_weights(path.parent):
        return Source(ref, read_json(path), {})
    if path.name == refs.CONFIG_FILE and path.is_file():
        path = path.parent
    try:
        checkpoint = refs.resolve(path if path.exists() else ref)
    except WeightsError:
        known = None if path.exists() else refs.hub_id(ref)
        if known is None:
            raise
        return _of_hub(*known)
    with read(checkpoint.file) as tensors:
        infos = dict(tensors.infos)
    return Source((checkpoint.directory or checkpoint.file).name, checkpoint.config() or {}, infos)


def _has_weights(directory: Path) -> bool:
    return any(path.suffix in refs.SUFFIXES for path in directory.iterdir())


def _of_hub(repo_id: str, revision: str | None) -> Source:
    repo = remote.find(repo_id, revision)
    weights = repo.weights()
    if weights is None:
        raise remote.no_weights(repo)
    with tempfile.TemporaryDirectory() as directory:
        infos = dict(headers.read(repo, weights, Path(directory)).infos)
        config = {}
        if refs.CONFIG_FILE in repo.files:
            config = read_json(repo.get(refs.CONFIG_FILE, Path(directory)))
    return Source(f"{repo.id}@{repo.commit}", config, infos, repo.licence)
