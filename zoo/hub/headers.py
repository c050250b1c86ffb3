"""Names, shapes and dtypes of a repository's tensors, from the headers of its safetensors files: some kilobytes."""

from __future__ import annotations

from pathlib import Path

from zoo.core.errors import WeightsError
from zoo.hub import safetensors, sharded
from zoo.hub.mapped import TensorFile, TensorInfo
from zoo.hub.remote import RemoteFile, Repository

FIRST = 64 << 10
"""Bytes of the first request: the header of most checkpoints, in one go."""


def read(repo: Repository, weights: RemoteFile, directory: Path) -> TensorFile:
    """The checkpoint without its data: `.infos` and `.metadata`, no arrays. An index is fetched into `directory`.

    Raises DownloadError; WeightsError if headers are damaged, or do not agree with the index.
    """
    if not weights.name.endswith(".json"):
        return _one(repo, weights)
    index = sharded.parse_index(repo.get(weights.name, directory))
    infos: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for shard in shards(repo, index):
        header = _one(repo, shard)
        for name, info in header.infos.items():
            if index.get(name) != shard.name:
                why = f"{shard.name} holds {name[:80]}, which its index puts into {index.get(name, 'no file')}"
                raise WeightsError(f"cannot use {repo.id}", why, "Tell its owner, or use another checkpoint.")
            infos[name] = info
        metadata.update(header.metadata)
    if absent := [name for name in index if name not in infos]:
        why = f"{index[absent[0]]} lacks {absent[0][:80]}, which its index puts there"
        raise WeightsError(f"cannot use {repo.id}", why, "Tell its owner, or use another checkpoint.")
    return _without_data(weights.name, {name: infos[name] for name in index}, metadata)


def shards(repo: Repository, index: dict[str, str]) -> list[RemoteFile]:
    """The files that an index names. Raises WeightsError if the repository lacks one."""
    names = sorted(set(index.values()))
    if absent := [name for name in names if name not in repo.files]:
        why = f"its index names {absent[0]}, which the repository does not hold"
        raise WeightsError(f"cannot use {repo.id}", why, "Use another revision, or another checkpoint.")
    return [repo.files[name] for name in names]


def _one(repo: Repository, file: RemoteFile) -> TensorFile:
    head = repo.head(file.name, 0, min(FIRST, file.size))
    end = 8 + int.from_bytes(head[:8], "little")
    what = f"cannot use {repo.id}/{file.name}"
    if end > min(file.size, 8 + safetensors.LIMIT_HEADER) or head[8:9] != b"{":
        raise WeightsError(what, "it is not a safetensors file", "Use another checkpoint.")
    if end > len(head):
        head += repo.head(file.name, len(head), end)
    infos, metadata = safetensors.check_header(head[8:end], file.size - end, what)
    return _without_data(file.name, infos, metadata)


def _without_data(name: str, infos: dict[str, TensorInfo], metadata: dict[str, str]) -> TensorFile:
    found = TensorFile(Path(name), {}, metadata)
    found.infos = infos
    return found
