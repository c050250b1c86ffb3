"""A repository of the Hugging Face Hub: what is in it, and how its files are asked for.

huggingface_hub speaks to the Hub's API and knows the user's token; the bytes come through zoo.hub.download, which
continues a broken file. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean there.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from zoo.core.errors import DownloadError, WeightsError
from zoo.hub import components, refs
from zoo.hub.consolidated import FIRST, SECOND
from zoo.hub.download import Progress, fetch
from zoo.hub.request import PATIENCE, Forbidden, Patience, peek

COMPANION_LIMIT = 100 << 20  # bytes; the largest tokenizers take 35 MB
_PLAIN = re.compile(r"([A-Za-z]\w*/)?[\w-][\w.-]*", re.ASCII)
"""A file at the top, or in a folder that can be a component's: no name leads anywhere else."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, with the hash that its bytes must have."""

    name: str
    size: int
    sha256: str
    """Of large files, which git knows by pointers; "" for others."""
    git_blob: str


@dataclass(frozen=True)
class Repository:
    """One commit of a repository."""

    id: str
    revision: str
    """As asked for: a branch, tag or commit."""
    commit: str
    licence: str
    gated: bool
    files: dict[str, RemoteFile]
    """Those at its top, by name; where it has an index of components, "folder/name" too. Nothing deeper is of use
    here."""
    endpoint: str
    token: str
    patience: Patience = PATIENCE

    @property
    def page(self) -> str:
        return f"{self.endpoint}/{self.id}"

    def url(self, name: str) -> str:
        return f"{self.page}/resolve/{self.commit}/{name}"

    def weights(self) -> RemoteFile | None:
        """The file or index that holds the weights; None if there is none, or nothing says which of several. Meta's
        checkpoints in several files are joined where they lie on a disk only."""
        for name in refs.WHOLE:
            if name in self.files and not (name == FIRST and SECOND in self.files):
                return self.files[name]
        for suffix in refs.SUFFIXES:
            named = [file for name, file in self.files.items() if name.endswith(suffix) and "/" not in name]
            if named:
                return named[0] if len(named) == 1 else None
        return None

    def companions(self) -> list[RemoteFile]:
        """The small files that go with the weights: refs.COMPANIONS, in the folders of components too where it has
        some."""
        found = []
        for name, file in self.files.items():
            folder, _, plain = name.rpartition("/")
            used = not folder or (components.INDEX in self.files and folder not in components.LEFT_OUT)
            wanted = name == refs.POOLING or (used and refs.COMPANIONS.fullmatch(plain))
            if wanted and file.size <= COMPANION_LIMIT:
                found.append(file)
        return found

    def within(self, folder: str) -> list[str]:
        """Names of the files in a folder."""
        return [name.removeprefix(f"{folder}/") for name in self.files if name.startswith(f"{folder}/")]

    def head(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of a file. Raises DownloadError."""
        with self._rights():
            return peek(self.url(name), start, stop, token=self.token, patience=self.patience)

    def get(self, name: str, directory: Path, progress: Progress | None = None) -> Path:
        """Fetches a file into a directory, continuing what is there. Raises DownloadError."""
        file = self.files[name]
        with self._rights():
            return fetch(self.url(name), directory / name, sha256=file.sha256, git_blob=file.git_blob, size=file.size,
                         token=self.token, progress=progress, patience=self.patience)  # fmt: skip

    @contextlib.contextmanager
    def _rights(self) -> Iterator[None]:
        try:
            yield
        except Forbidden as error:
            if self.gated:
                raise _gated(self.id, self.page, bool(self.token)) from error
            raise


def find(repo_id: str, revision: str | None = None, patience: Patience = PATIENCE) -> Repository:
    """What the Hub says of a repository at a branch, tag or commit (None: its main branch).

    Raises DownloadError: no network, offline mode, no such repository or revision, gated, a server that fails.
    """
    import huggingface_hub

    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    api = huggingface_hub.HfApi(endpoint=endpoint)
    for attempt in range(patience.attempts):
        try:
            info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=patience.timeout)
            break
        except Exception as error:  # the client's network library has its own, and it has changed
            if attempt + 1 == patience.attempts or not _passing(error):
                _explain(error, repo_id, revision, endpoint)
            time.sleep(patience.backoff * 2**attempt)
    files = {}
    siblings = info.siblings or ()
    deep = any(entry.rfilename == components.INDEX for entry in siblings)
    for entry in siblings:
        name = entry.rfilename
        if (
            (name == refs.POOLING or (_PLAIN.fullmatch(name) and (deep or "/" not in name)))
            and entry.size is not None
            and (entry.blob_id or entry.lfs)
        ):
            sha256 = entry.lfs.sha256 if entry.lfs else ""
            files[name] = RemoteFile(name, entry.size, sha256, entry.blob_id or "")
    licence = info.card_data.get("license") if info.card_data else None
    token = huggingface_hub.get_token() or ""
    return Repository(
        repo_id,
        revision or "main",
        str(info.sha),
        str(licence or "not stated"),
        bool(info.gated),
        files,
        endpoint,
        token,
        patience,
    )


def _status(error: Exception) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", None) or 0)


def _passing(error: Exception) -> bool:
    from huggingface_hub import utils as errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return False
    status = _status(error)
    return status in (408, 429) or status >= 500 or (status == 0 and _is_network(error))


def _is_network(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("httpx", "httpx2", "requests")


def _explain(error: Exception, repo_id: str, revision: str | None, endpoint: str) -> NoReturn:
    """Raises what a failure of the Hub's client means."""
    from huggingface_hub import utils as errors

    what, status, page = f"cannot fetch {repo_id}", _status(error), f"{endpoint}/{repo_id}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        why = "offline mode is on (HF_HUB_OFFLINE), and it is not here"
        raise DownloadError(what, why, "Unset HF_HUB_OFFLINE, or copy the checkpoint here.") from error
    if isinstance(error, errors.GatedRepoError):
        raise _gated(repo_id, page, False) from error
    if isinstance(error, errors.RevisionNotFoundError):
        fix = f"{page}/tree/main shows its branches and tags."
        raise DownloadError(what, f"it has no revision {revision!r}", fix) from error
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        fix = "Check the name; for a private one, `hf auth login` first."
        raise DownloadError(what, f"{endpoint} has no such repository, or it is private", fix) from error
    if isinstance(error, errors.HFValidationError):
        raise DownloadError(what, "that is no repository's name", "Names are owner/name[@revision].") from error
    if status == 403:
        raise DownloadError(what, f"{endpoint} does not let you have it (403)", f"Ask for access at {page}.") from error
    if status == 429:
        raise DownloadError(what, f"too many requests to {endpoint} (429)", "Try again in some minutes.") from error
    if status >= 400:
        raise DownloadError(what, f"{endpoint} fails ({status})", "Try again later.") from error
    if _is_network(error):
        why = f"{endpoint} cannot be reached ({type(error).__name__})"
        fix = "Check the network connection (and HTTPS_PROXY, HF_ENDPOINT); what was pulled before runs without one."
        raise DownloadError(what, why, fix) from error
    raise DownloadError(what, f"the answer of {endpoint} is not that of a Hub ({type(error).__name__})",
                        "Check HF_ENDPOINT.") from error  # fmt: skip


def _gated(repo_id: str, page: str, known: bool) -> DownloadError:
    why = "it is gated: its owner gives it to those who accept the terms" + ("; your account has not yet" * known)
    return DownloadError(f"cannot fetch {repo_id}", why, f"Accept them at {page}, `hf auth login`, then run it again.")


def no_weights(repo: Repository) -> WeightsError:
    """For a repository without a file of weights at its top, or with several."""
    found = [name for name in repo.files if name.endswith(refs.SUFFIXES) and "/" not in name]
    why = f"it holds several: {', '.join(found[:4])}" if found else "it holds no safetensors and no PyTorch file"
    return WeightsError(f"cannot use {repo.id}", why, "Download the one that you mean and name it: --weights FILE.")
