"""Names, shapes and dtypes of a repository's tensors, from the headers of its files: some kilobytes."""

from __future__ import annotations

from pathlib import Path

from zoo.core.errors import WeightsError
from zoo.hub import components, safetensors, sharded, torch_file
from zoo.hub.mapped import TensorFile, TensorInfo
from zoo.hub.remote import RemoteFile, Repository

PIECE = 64 << 10
"""Bytes of a request: the header of most safetensors files, in one go."""


def read(repo: Repository, weights: RemoteFile, directory: Path) -> TensorFile:
    """The checkpoint without its data: `.infos` and `.metadata`, no arrays. An index is fetched into `directory`.

    Raises DownloadError; WeightsError if headers are damaged, or do not agree with the index.
    """
    if weights.name != components.INDEX:
        return _whole(repo, weights, directory)
    infos = {}
    for component, file in of_components(repo, directory).items():
        part = _whole(repo, file, directory)
        infos.update({f"{component}.{name}": info for name, info in part.infos.items()})
    return _without_data(weights.name, infos, {})


def of_components(repo: Repository, directory: Path) -> dict[str, RemoteFile]:
    """Component -> its file of weights, or their index. The index of components is fetched into `directory`."""
    found = {}
    for component in components.parse_index(repo.get(components.INDEX, directory)):
        if (name := components.chosen(repo.within(component))) is not None:
            found[component] = repo.files[f"{component}/{name}"]
        elif f"{component}/config.json" in repo.files:
            raise components.without_weights(f"cannot use {repo.id}", component)
    return found


def _whole(repo: Repository, weights: RemoteFile, directory: Path) -> TensorFile:
    """One file, or an index and what it names."""
    if not weights.name.endswith(".json"):
        return _one(repo, weights)
    index = sharded.parse_index(repo.get(weights.name, directory))
    infos: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for shard in shards(repo, weights, index):
        header, file = _one(repo, shard), shard.name.rpartition("/")[2]
        for name, info in header.infos.items():
            if index.get(name) != file:
                why = f"{file} holds {name[:80]}, which its index puts into {index.get(name, 'no file')}"
                raise WeightsError(f"cannot use {repo.id}", why, "Tell its owner, or use another checkpoint.")
            infos[name] = info
        metadata.update(header.metadata)
    if absent := [name for name in index if name not in infos]:
        why = f"{index[absent[0]]} lacks {absent[0][:80]}, which its index puts there"
        raise WeightsError(f"cannot use {repo.id}", why, "Tell its owner, or use another checkpoint.")
    return _without_data(weights.name, {name: infos[name] for name in index}, metadata)


def shards(repo: Repository, weights: RemoteFile, index: dict[str, str]) -> list[RemoteFile]:
    """The files that the index `weights` names, beside it. Raises WeightsError if the repository lacks one."""
    folder = weights.name[: weights.name.rfind("/") + 1]
    names = sorted({folder + name for name in index.values()})
    if absent := [name for name in names if name not in repo.files]:
        why = f"its index names {absent[0]}, which the repository does not hold"
        raise WeightsError(f"cannot use {repo.id}", why, "Use another revision, or another checkpoint.")
    return [repo.files[name] for name in names]


class _Fetched:
    """A file of a repository, of which only the pieces that are looked at are fetched."""

    def __init__(self, repo: Repository, file: RemoteFile):
        self.size = file.size
        self._repo, self._name = repo, file.name
        self._pieces: dict[int, bytes] = {}

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self.size)
        if stop <= start:
            return b""
        first, last = start // PIECE, (stop - 1) // PIECE
        absent = [i for i in range(first, last + 1) if i not in self._pieces]
        if absent:
            at = absent[0] * PIECE
            run = self._repo.head(self._name, at, min((absent[-1] + 1) * PIECE, self.size))
            for i in range(absent[0], absent[-1] + 1):
                self._pieces[i] = run[i * PIECE - at :][:PIECE]
        return b"".join(self._pieces[i] for i in range(first, last + 1))[start - first * PIECE :][: stop - start]

    def find_last(self, needle: bytes, start: int) -> int:
        at = self[start:].rfind(needle)
        return at if at < 0 else start + at


def _one(repo: Repository, remote: RemoteFile) -> TensorFile:
    """The content of a file decides what it is, not its name."""
    file, what = _Fetched(repo, remote), f"cannot use {repo.id}/{remote.name}"
    head = file[:16]
    end = 8 + int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and end <= min(file.size, 8 + safetensors.LIMIT_HEADER):
        infos, metadata = safetensors.check_header(file[8:end], file.size - end, what)
        return _without_data(remote.name, infos, metadata)
    if torch_file.is_one(head):
        return _without_data(remote.name, *torch_file.describe(file, what))
    raise WeightsError(what, "it is neither a safetensors file nor one of torch.save", "Use another checkpoint.")


def _without_data(name: str, infos: dict[str, TensorInfo], metadata: dict[str, str]) -> TensorFile:
    found = TensorFile(Path(name), {}, metadata)
    found.infos = infos
    return found
