"""From a repository of the Hub to a checkpoint in the store: look at the headers, fetch, translate, put in place."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from zoo.core.dtype import dtype as dtype_of
from zoo.core.dtype import is_float
from zoo.core.errors import DownloadError, WeightsError
from zoo.hub import components, headers, quantized, refs, remote, sharded, store
from zoo.hub.consolidated import PARAMS
from zoo.hub.download import Progress
from zoo.hub.files import write_json, writing
from zoo.hub.formats import read
from zoo.hub.load import LAYOUT, Identified, check_dtypes, identify
from zoo.hub.mapped import TensorFile, TensorInfo, row_blocks
from zoo.hub.remote import RemoteFile, Repository
from zoo.hub.request import PATIENCE, Patience
from zoo.hub.safetensors import write_each
from zoo.hub.table import Plan, Step
from zoo.nn.quantized import FORMATS, formats, quantize

_CONFIGS = ("config.json", components.INDEX)
TRANSLATOR = 1
"""Version of what `pull` makes of a checkpoint: raised when that changes, so that older ones are made anew."""


@dataclass(frozen=True)
class Preview:
    """What pulling a repository would do, from headers alone."""

    repo: Repository
    weights: list[RemoteFile]
    """The files of tensors, and their index."""
    known: Identified
    plan: Plan
    source: dict[str, TensorInfo]
    target: dict[str, TensorInfo]
    """What is kept, by our names, in the chosen dtype."""
    as_published: bool
    """The published file itself is kept: the table changes nothing in it."""
    rounded: dict[str, str]
    """Path -> format of each layer that is rounded on the way."""
    metadata: dict[str, str]
    """What the kept file says of layers that are rounded, on the way or before."""

    @property
    def to_fetch(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def files(self) -> list[RemoteFile]:
        """All that is fetched, each once: an index of components is a companion too."""
        return list({file.name: file for file in (*self.weights, *self.repo.companions())}.values())

    @property
    def memory(self) -> int:
        return sum(info.nbytes for info in self.target.values())

    @property
    def to_write(self) -> int:
        """Bytes that the checkpoint needs on the disk beside those that are fetched, until these are removed."""
        return 0 if self.as_published else self.memory


@dataclass(frozen=True)
class Pulled:
    directory: Path
    port: str
    fresh: bool
    """False: it was here already."""


def preview(repo: Repository, directory: Path, dtype: Any = None) -> Preview:
    """Reads the headers of a repository's files of weights; small files (config, index) are fetched to `directory`.

    Gaps are in the result's plan, not raised. Raises DownloadError; WeightsError if it holds no weights, or no port
    recognises them.
    """
    weights = repo.weights()
    if weights is None:
        raise remote.no_weights(repo)
    whole = weights.name == components.INDEX
    for file in repo.companions():
        if file.name in (refs.CONFIG_FILE, PARAMS) or (whole and file.name.endswith(_CONFIGS)):
            repo.get(file.name, directory)
    tensors = headers.read(repo, weights, directory)
    return _preview(repo, _files(repo, weights, directory), tensors, directory, dtype)


def _files(repo: Repository, weights: RemoteFile, directory: Path) -> list[RemoteFile]:
    """The weights and, where they are an index that lies in `directory`, what it names."""
    if not weights.name.endswith(".json"):
        return [weights]
    if weights.name == components.INDEX:
        parts = headers.of_components(repo, directory).values()
        return [weights, *(file for part in parts for file in _files(repo, part, directory))]
    return [weights, *headers.shards(repo, weights, sharded.parse_index(directory / weights.name))]


def _preview(repo: Repository, weights: list[RemoteFile], tensors: TensorFile, directory: Path, dtype: Any) -> Preview:
    checkpoint = refs.Checkpoint(directory / weights[0].name, directory, repo.id)
    known = identify(checkpoint, tensors)
    model = quantized.shape(known.port.model(known.config), tensors.metadata, repo.id, dtype)
    spec = model.spec()
    plan = known.table.load(tensors.infos, spec, known.config)
    chosen = None if dtype is None or dtype in FORMATS else dtype_of(dtype)
    exact = {path for path, slot in model.slots().items() if slot.exact}
    target = {}
    for step in plan.steps:
        stored = tensors.infos[step.source].dtype
        kept = chosen if chosen is not None and is_float(stored) and step.target not in exact else stored
        target[step.target] = TensorInfo(tuple(spec[step.target].shape), kept)
    rounded: dict[str, str] = {}
    if dtype in FORMATS and not formats(model):
        rounded = formats(quantize(model, dtype))
        target |= {name: TensorInfo(tuple(p.shape), p.dtype) for name, p in model.spec().items()
                   if quantized.split(name, rounded) is not None}  # fmt: skip
    same = all(
        step.target == step.source and not step.functions and target[step.target] == tensors.infos[step.source]
        for step in plan.steps
    )
    as_published = same and not plan.dropped and len(weights) == 1 and weights[0].name.endswith(".safetensors")
    if not plan.gaps:
        check_dtypes(repo.id, tensors.infos, known, plan, spec)
    about = quantized.metadata(model)
    return Preview(repo, weights, known, plan, dict(tensors.infos), target, as_published, rounded, about)


def pull(
    repo_id: str,
    revision: str | None = None,
    *,
    dtype: Any = None,
    progress: Progress | None = None,
    patience: Patience = PATIENCE,
) -> Pulled:
    """Fetches a repository of the Hub (at a branch, tag or commit), translates it, and keeps it in the store.

    dtype: in which floating-point weights are kept; None: as published; "int8" or "int4": linear layers and
    convolutions are rounded, a block at a time. A pull that broke off is continued; two processes may pull at once.
    Raises DownloadError; WeightsError if it does not fit, exactly, a model of the zoo, or holds a NaN. The store then
    has what it had before.
    """
    kept_as = "published" if dtype is None else dtype if dtype in FORMATS else dtype_of(dtype).name
    with store.locked(repo_id) as work:
        had = store.provenance(repo_id)
        commit, repo = revision, None
        if not _is_current(had, revision, kept_as):  # a commit never changes: where it is here, nobody is asked
            repo = remote.find(repo_id, revision, patience)
            commit = repo.commit
        if repo is None or _is_current(had, commit, kept_as):
            store.remove_tree(work)  # a process killed at its very end leaves it
            return Pulled(store.place(repo_id), had["port"], fresh=False)
        published = work / "published"
        weights = repo.weights()
        if weights is None:
            raise remote.no_weights(repo)
        files = repo.companions()
        for file in files:
            repo.get(file.name, published, progress)
        seen = preview(repo, published, dtype)
        seen.plan.check(repo_id, seen.known.port.name, "Use a checkpoint of this architecture.")
        _make_room(repo, published, seen.to_fetch, seen.to_write)
        for file in _files(repo, weights, published):
            repo.get(file.name, published, progress)
        with read(published / weights.name) as tensors:
            made = _preview(repo, _files(repo, weights, published), tensors, published, dtype)
            made.plan.check(repo_id, made.known.port.name, "Use a checkpoint of this architecture.")
            _write(made, tensors, published, work / "made", kept_as, progress)
        place = store.install(work / "made", work, repo_id)
    return Pulled(place, made.known.port.name, fresh=True)


def _is_current(had: dict[str, Any], commit: str | None, kept_as: str) -> bool:
    return bool(had) and (had.get("commit"), had.get("dtype"), had.get("translator")) == (commit, kept_as, TRANSLATOR)


def _make_room(repo: Repository, published: Path, to_fetch: int, to_write: int) -> None:
    here = sum(path.stat().st_size for path in published.rglob("*") if path.is_file())
    needed = max(to_fetch - here, 0) + to_write
    parent = refs.weights_dir()
    free = shutil.disk_usage(parent).free
    if needed > free:
        why = f"it needs {needed / 1e6:,.1f} MB, {parent} has {free / 1e6:,.1f} MB free"
        raise DownloadError(f"cannot fetch {repo.id}", why, "Make space, or set ZOO_WEIGHTS to a place elsewhere.")


def _write(
    made: Preview, tensors: TensorFile, published: Path, directory: Path, kept_as: str, progress: Progress | None
) -> None:
    """The whole checkpoint, in a directory that nobody looks at yet."""
    repo, port = made.repo, made.known.port.name
    source = {
        "repo": repo.id,
        "revision": repo.revision,
        "commit": repo.commit,
        "licence": repo.licence,
        "files": {f.name: {"size": f.size, **_hash(f)} for f in made.files},
        "port": port,
        "dtype": kept_as,
        "layout": "published" if made.as_published else LAYOUT,
        "translator": TRANSLATOR,
        "zoo": zoo.__version__,
    }
    with writing(directory):
        store.remove_tree(directory)
        directory.mkdir(parents=True)
        for file in repo.companions():
            (directory / file.name).parent.mkdir(exist_ok=True)
            shutil.copyfile(published / file.name, directory / file.name)
    step_to = {step.target: step for step in made.plan.steps}
    done = 0

    def parts(name: str) -> Iterator[np.ndarray]:
        nonlocal done
        step, of = step_to.get(name), quantized.split(name, made.rounded)
        if of is not None:
            step = step_to[f"{of[0]}.weight"]
        assert step is not None
        translated = _translated(made, step, tensors)
        if of is not None:
            translated = quantized.parts(step.source, translated, made.rounded[of[0]], of[1])
        for part in translated:
            yield part
            done += part.nbytes
            if progress is not None:
                progress(done, made.memory, f"translating {repo.id}")
        tensors.forget(step.source)

    weights = directory / refs.WEIGHTS_FILE
    if made.as_published:
        for name in made.target:
            for _ in parts(name):
                pass  # its numbers are looked at
        with writing(weights):
            _link(published / made.weights[0].name, weights)
    else:
        about = {
            "zoo.port": port,
            "zoo.layout": LAYOUT,
            "zoo.version": zoo.__version__,
            "zoo.config": json.dumps(dataclasses.asdict(made.known.config)),
            "zoo.source": json.dumps(source),
            **made.metadata,
        }
        write_each(weights, made.target, parts, about)
    write_json(directory / refs.PROVENANCE_FILE, source)


def _hash(file: RemoteFile) -> dict[str, str]:
    return {"sha256": file.sha256} if file.sha256 else {"git_blob": file.git_blob}


def _translated(made: Preview, step: Step, tensors: TensorFile) -> Iterator[np.ndarray]:
    """One tensor as it is kept, in parts. Raises WeightsError for a NaN, or a number too large for the chosen dtype."""
    what = f"cannot use {made.repo.id}"
    rounded = quantized.split(step.target, made.rounded) is not None
    wanted = made.source[step.source].dtype if rounded else made.target[step.target].dtype
    for part in row_blocks(made.plan.apply(step, tensors[step.source])):
        if is_float(part.dtype) and np.isnan(part).any():
            why = f"{step.source} holds NaN: no answer of this model would be a number"
            raise WeightsError(what, why, "Use another revision, or another checkpoint.")
        with np.errstate(over="ignore"):
            kept = part.astype(wanted, copy=False)
        if kept.dtype != part.dtype and (np.isinf(kept) & ~np.isinf(part)).any():
            why = f"{step.source} holds numbers that are too large for {wanted}"
            raise WeightsError(what, why, "Choose --dtype bf16 or f32, or none.")
        yield kept


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the disk knows no links."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
