"""What a REF names, and where weights live.

REF = name of a checkpoint that is here (shipped with the zoo, or in a weights directory) | repository of the Hub
that was pulled, owner/name[@revision] | directory | single file.
A name wins over a directory of the same name, so that a command means the same wherever it is typed; `./name` is the
directory.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.core.errors import WeightsError
from zoo.hub import components
from zoo.hub.files import read_json

PROJECT = "zoo-models"
WEIGHTS_FILE = "model.safetensors"
WHOLE = (WEIGHTS_FILE, components.INDEX, "model.safetensors.index.json", "pytorch_model.bin",
         "pytorch_model.bin.index.json", "consolidated.00.pth")  # fmt: skip
"""Files that are a directory's checkpoint whatever else lies there, best first."""
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".th")
"""Where none of these is there, the only file of the first of these kinds that is."""
CONFIG_FILE = "config.json"
CARD_FILE = "card.json"
ADAPTER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""Of a directory that holds a change to another checkpoint (zoo/hub/adapter.py): PEFT's name, and diffusers'."""
PROVENANCE_FILE = "provenance.json"
"""Of a checkpoint that was pulled: from where, which commit, the hashes, how it was translated (zoo/hub/pull.py)."""

COMPANIONS = re.compile(
    r"(config|params|model_index|[\w-]+_config|tokenizer|vocab|added_tokens|special_tokens_map|normalizer|labels)\.json"
    r"|merges\.txt|vocab\.txt|[\w-]+\.(model|tiktoken|jinja)|LICEN[CS]E[\w.-]*|NOTICE[\w.-]*",
    re.ASCII,
)
"""Files beside the weights that a model may need, or that must go with it: config, tokenizer, licence."""
POOLING = "1_Pooling/config.json"
"""And one in a folder: how sentence-transformers makes a text's vector of its tokens' ones."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine: its file of tensors, and what lies beside it."""

    file: Path
    directory: Path | None = None
    """None for a single file: nothing beside it is taken to belong to it."""
    name: str | None = None
    """Of a repository, where it is one."""

    @property
    def shown(self) -> str:
        """The checkpoint as a user would write it: relative to the working directory where it is below it."""
        if self.name is not None:
            return self.name
        path = self.directory or self.file
        cwd = Path.cwd()
        return str(path.relative_to(cwd)) if path.is_relative_to(cwd) and path != cwd else str(path)

    def config(self) -> dict[str, Any] | None:
        """config.json, where there is one. Raises WeightsError if it is not a JSON object."""
        return self._json(CONFIG_FILE)

    def card(self) -> dict[str, Any]:
        """card.json: what was measured of these weights, and where they come from; {} without one."""
        return self._json(CARD_FILE) or {}

    def provenance(self) -> dict[str, Any]:
        """provenance.json: where a pulled checkpoint comes from; {} for any other."""
        return self._json(PROVENANCE_FILE) or {}

    @property
    def is_adapter(self) -> bool:
        return self.directory is not None and self.file.name in ADAPTER_FILES

    def companions(self) -> list[Path]:
        """The files beside the weights that go with them wherever they go: COMPANIONS, in the directory itself and in
        the folders of components."""
        if self.directory is None:
            return []
        index, folders = self.directory / components.INDEX, [self.directory]
        if index.is_file():
            folders += [self.directory / name for name in components.parse_index(index)]
        beside = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
        beside = [path for path in beside if COMPANIONS.fullmatch(path.name)] + [self.directory / POOLING]
        return [path for path in beside if path.is_file()]

    def _json(self, name: str) -> dict[str, Any] | None:
        if self.directory is None or not (self.directory / name).exists():
            return None
        return read_json(self.directory / name)


def checkout() -> Path | None:
    """The checkout of this project that one runs from: where this code lies, else the working directory or above."""
    here = Path(__file__).resolve().parents[2]
    for directory in (here, Path.cwd(), *Path.cwd().parents):
        try:
            if f'name = "{PROJECT}"' in (directory / "pyproject.toml").read_text(encoding="utf-8"):
                return directory
        except (OSError, UnicodeDecodeError):
            continue
    return None


def weights_dir() -> Path:
    """Where weights are kept: ZOO_WEIGHTS, else `weights/` of the checkout, else the user's cache directory."""
    if chosen := os.environ.get("ZOO_WEIGHTS"):
        return Path(chosen).expanduser()
    if (root := checkout()) is not None:
        return root / "weights"
    return cache_dir("weights")


def cache_dir(what: str) -> Path:
    """This user's directory for what was fetched: "weights", or the name of a data set."""
    from platformdirs import user_cache_path

    return user_cache_path(PROJECT, appauthor=False) / what


def search_path() -> list[Path]:
    """The directories in which a checkpoint is looked up by name, first match wins; those that exist."""
    candidates = [weights_dir()]
    if (root := checkout()) is not None:
        candidates.append(root / "weights")
    candidates += [cache_dir("weights"), Path(__file__).resolve().parents[1] / "_shipped"]
    return [path for path in dict.fromkeys(candidates) if path.is_dir()]


def available() -> dict[str, Path]:
    """Every checkpoint that can be named, and its directory."""
    found: dict[str, Path] = {}
    for root in search_path():
        for directory in _children(root):
            if (directory / WEIGHTS_FILE).is_file() or (directory / components.INDEX).is_file():
                found.setdefault(directory.name, directory)
    return found


def _children(root: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in root.iterdir() if _NAME.fullmatch(path.name))
    except OSError:  # a directory that may not be listed has nothing to offer
        return


def hub_id(ref: str) -> tuple[str, str | None] | None:
    """(owner/name, revision) of a REF that is written as a repository of the Hub, else None."""
    found = _HUB_ID.fullmatch(ref)
    return (found[1], found[2]) if found else None


def folder(repo_id: str) -> str:
    """The name under which a repository is kept: owner--name."""
    return repo_id.replace("/", "--")


def _pulled(repo_id: str, revision: str | None) -> Checkpoint | None:
    """A repository that was pulled, if it is here. Raises WeightsError if it is here at another revision."""
    directory = available().get(folder(repo_id))
    if directory is None:
        return None
    found = Checkpoint(directory / WEIGHTS_FILE, directory, repo_id)
    source = found.provenance()
    if revision is None or revision in (source.get("revision"), source.get("commit")):
        return found
    raise WeightsError(
        f"there is no {repo_id}@{revision}",
        f"{repo_id} is here at {source.get('revision')} (commit {str(source.get('commit'))[:12]})",
        f"`zoo pull {repo_id}@{revision}` takes that one in its place.",
    )


def resolve(ref: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint that REF names.

    Raises WeightsError if there is none (with the nearest names), or if a directory does not hold exactly one.
    """
    text = os.fspath(ref)
    if not isinstance(ref, Path) and _NAME.fullmatch(text) and (directory := available().get(text)) is not None:
        return Checkpoint(_file_in(directory), directory)
    if not isinstance(ref, Path) and (known := hub_id(text)) and (found := _pulled(*known)) is not None:
        return found
    path = Path(os.path.expanduser(text))
    if os.path.isdir(path):  # os.path says no, where pathlib raises, to a name that the system cannot have
        return Checkpoint(_file_in(path), path)
    if os.path.exists(path):
        return Checkpoint(path)
    raise _not_found(text)


def _file_in(directory: Path) -> Path:
    for name in (*WHOLE, *ADAPTER_FILES):
        if (directory / name).is_file():
            return directory / name
    for suffix in SUFFIXES:
        files = sorted(path for path in directory.glob(f"*{suffix}") if path.is_file())
        if len(files) == 1:
            return files[0]
        if not files:
            continue
        names = ", ".join(file.name for file in files[:4]) + (", ..." if len(files) > 4 else "")
        raise WeightsError(
            f"cannot use {directory}",
            f"it holds {len(files)} {suffix} files: {names}",
            "Name the one that you mean.",
        )
    if any(directory.glob("checkpoints/step-*.safetensors")):
        raise unfinished(str(directory), directory)
    raise WeightsError(
        f"cannot use {directory}", f"it holds no {WEIGHTS_FILE}", "Name a directory or a file that holds a checkpoint."
    )


def unfinished(shown: str, run: Path) -> WeightsError:
    """Of who names a training run's directory, or a checkpoint in it, in the place of weights."""
    why = "it is the state of a training run that has not ended; its weights come when it has"
    fix = f"`zoo finetune MODEL --resume --out {run}`, with the options it was begun with, ends it."
    if (run / "best").is_dir():
        fix = f"{run / 'best'} has the weights that validated best so far; {fix}"
    return WeightsError(f"cannot use {shown}", why, fix)


def _not_found(ref: str) -> WeightsError:
    names = [name.replace("--", "/") for name in sorted(available())]
    close = difflib.get_close_matches(ref, names, n=2, cutoff=0.5)
    if close:
        fix = f"Did you mean {' or '.join(close)}?"
    elif _HUB_ID.fullmatch(ref):
        fix = f"If it is a repository of the Hugging Face Hub, `zoo pull {ref}` fetches it."
    else:
        fix = "`zoo list` shows the checkpoints that are here; a directory or a file of weights will do as well."
    return WeightsError(
        f"there are no weights named {ref!r}",
        f"it is no file or directory here, and no checkpoint's name ({', '.join(names) or 'none is here'})",
        fix,
    )
