"""Fetching a file so that it is either whole and right, or not there.

`fetch` tries mirrors in turn, continues a broken download by byte ranges (also one that an earlier process left),
retries with back-off, checks size and sha256, and renames into place. Beside `dest` it keeps, while under way:
`.NAME.HASH.part` (the bytes so far), `.NAME.HASH.part.etag` (what the server called them) and `.NAME.lock`.

Standard library only: huggingface_hub deletes a broken file instead of continuing it (1.29, file_download.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zoo.core.errors import DownloadError
from zoo.hub.files import DISK_FULL
from zoo.hub.request import CONTINUES, PATIENCE, Again, Failed, Patience, broken, open_url, told

Progress = Callable[[int, "int | None", str], None]
"""progress(bytes so far, bytes in all or None, what)."""

CHUNK = 1 << 16


def fetch(
    urls: str | Sequence[str],
    dest: str | os.PathLike[str],
    *,
    sha256: str = "",
    git_blob: str = "",
    size: int | None = None,
    token: str = "",
    progress: Progress | None = None,
    patience: Patience = PATIENCE,
) -> Path:
    """Downloads to `dest` from the first of `urls` (http or https) that has the file; returns `dest`.

    A `dest` that is already right is left as it is, without a connection. Two processes may fetch the same file: the
    second waits for the first and uses its file. The file's hash is its `sha256`, or its `git_blob`: the SHA-1 under
    which git stores it. `token` is sent to the address's own host, and never to one that it redirects to.

    Raises DownloadError, and leaves `dest` untouched: no network, refused (401, 403: the subclass Forbidden), not there
    (404), a server that fails, another size or hash than asked for, no space, a directory that cannot be written.
    """
    dest = Path(dest)
    mirrors = [urls] if isinstance(urls, str) else list(urls)
    for url in mirrors:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise DownloadError(
                f"cannot fetch {dest.name}", f"{url} is not an http or https address", "Correct the address."
            )
    if not (sha256 or git_blob):
        raise ValueError("fetch needs the hash of the file")
    job = _Job(dest, _Hash(sha256, git_blob), size, progress or (lambda done, total, what: None), patience, token)
    with job.writing():
        dest.parent.mkdir(parents=True, exist_ok=True)
    with job.locked():
        if not job.is_right(dest):
            job.run(mirrors)
    return dest


class _Hash:
    """What the file's bytes must come to."""

    def __init__(self, sha256: str, git_blob: str):
        self.is_git, self.expected = not sha256, (sha256 or git_blob).lower()

    def of(self, path: Path) -> str:
        digest = hashlib.sha1(usedforsecurity=False) if self.is_git else hashlib.sha256()
        if self.is_git:
            digest.update(f"blob {path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()


class _Job:
    """One file on its way."""

    def __init__(self, dest: Path, hash: _Hash, size: int | None, progress: Progress, patience: Patience, token: str):
        self.dest, self.hash, self.size, self.progress, self.patience = dest, hash, size, progress, patience
        self.token = token
        # The hash is in the name: the rest of another version is never continued.
        self.part = dest.parent / f".{dest.name}.{hash.expected[:12]}.part"
        self.tag = self.part.with_name(self.part.name + ".etag")

    # --- mirrors and attempts

    def run(self, mirrors: list[str]) -> None:
        failures: list[tuple[str, Failed]] = []
        for mirror in mirrors:
            try:
                self._from(mirror)
                return
            except Failed as failed:
                failures.append((mirror, failed))
        what = f"cannot fetch {self.dest.name}"
        if len(failures) == 1:
            url, failure = failures[0]
            raise told(what, f"{url}: {failure.why}", failure)
        why = "\n".join(f"{url}: {failure.why}" for url, failure in failures)
        raise DownloadError(what, why, failures[-1][1].fix if failures else "Give an address.")

    def _from(self, url: str) -> None:
        """The whole file from one mirror, in as many attempts as it takes, checked and in place."""
        inherited = self.have() > 0  # bytes of an earlier run: if the hash is wrong, they may be why
        fruitless = 0
        while True:
            before = self.have()
            try:
                self._attempt(url)
                if self._finish():
                    return
                if not inherited:
                    raise Failed(
                        "what arrived is not the file that was asked for (another hash); it was removed",
                        "The copy there is damaged, or was replaced: report it, or use another source.",
                    )
                inherited = False
            except Again as broke:
                fruitless = 0 if self.have() > before else fruitless + 1
                if fruitless >= self.patience.attempts:
                    raise Failed(broke.why, broke.fix) from broke
                time.sleep(max(broke.wait, self.patience.backoff * 2 ** max(fruitless - 1, 0)))

    def _finish(self) -> bool:
        """Checks the part and puts it in place. False, and the part is gone, if it is not the file."""
        if not self.is_right(self.part):
            self.forget()
            return False
        with self.writing():
            with self.part.open("rb+") as file:
                os.fsync(file.fileno())
            self.part.replace(self.dest)
            self.tag.unlink(missing_ok=True)
        return True

    # --- one request

    def _attempt(self, url: str) -> None:
        have = self.have()
        if self.size is not None and have == self.size:
            return
        headers = {}
        if have:
            headers["Range"] = f"bytes={have}-"
            if etag := self._etag_from(url):
                headers["If-Range"] = etag
        response = open_url(url, headers, self.token, self.patience)
        if response.status == 416:  # nothing after what we have: it is whole, or not this file
            response.close()
            return
        with response:
            start = self._start(response, have)
            length = response.headers.get("Content-Length")
            total = start + int(length) if length and length.isdecimal() else None
            if None not in (total, self.size) and total != self.size:
                raise Failed(f"has {total:,} bytes, {self.size:,} were expected", "Use another source.")
            self._make_room(total, start)
            self._remember_etag(url, response.headers.get("ETag"))
            self._receive(response, start, total)

    @staticmethod
    def _start(response: Any, have: int) -> int:
        """The offset at which this body begins: 0 where the server sends the file from its start."""
        if response.status != 206:
            return 0
        unit, _, spec = (response.headers.get("Content-Range") or "").partition(" ")
        if unit != "bytes" or spec.partition("-")[0] != str(have):
            raise Failed(f"answered with another range than asked for ({spec or 'none'})", "Use another source.")
        return have

    def _receive(self, response: Any, start: int, total: int | None) -> None:
        # Network errors are told apart below, so an OSError that leaves this block is the disk's.
        with self.writing(), self.part.open("rb+" if start else "wb") as file:
            file.seek(start)
            done = start
            window, window_start = done, time.monotonic()
            what = f"downloading {self.dest.name}"
            self.progress(done, total, what)
            while True:
                try:
                    chunk = response.read1(CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise broken(error) from error
                if not chunk:
                    break
                done += len(chunk)
                if self.size is not None and done > self.size:
                    self.forget()
                    raise Failed(f"sent more than the {self.size:,} bytes that were expected", "Use another source.")
                file.write(chunk)
                self.progress(done, total, what)
                now = time.monotonic()
                if now - window_start >= self.patience.timeout:
                    if done - window < self.patience.slowest * (now - window_start):
                        raise Again(f"the connection was too slow to go on, after {done:,} bytes", CONTINUES)
                    window, window_start = done, now
        expected = total if total is not None else self.size
        if expected is not None and done < expected:
            raise Again(f"the connection broke off after {done:,} of {expected:,} bytes", CONTINUES)

    # --- what lies on the disk

    def have(self) -> int:
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0

    def forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)

    def is_right(self, path: Path) -> bool:
        """Whether a file has the size and hash that were asked for."""
        try:
            if self.size is not None and path.stat().st_size != self.size:
                return False
            return self.hash.of(path) == self.hash.expected
        except FileNotFoundError:
            return False
        except IsADirectoryError as error:
            raise DownloadError(f"cannot fetch {path}", "it is a directory here", "Choose another name.") from error

    def _etag_from(self, url: str) -> str | None:
        """The strong ETag under which this address gave the bytes we have."""
        try:
            saved = json.loads(self.tag.read_text(encoding="utf-8"))
            return saved["etag"] if saved["url"] == url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # the final hash decides anyway

    def _remember_etag(self, url: str, etag: str | None) -> None:
        with self.writing():
            if etag and not etag.startswith("W/"):  # If-Range takes strong ones only (RFC 9110, 13.1.5)
                self.tag.write_text(json.dumps({"url": url, "etag": etag}), encoding="utf-8")
            else:
                self.tag.unlink(missing_ok=True)

    def _make_room(self, total: int | None, start: int) -> None:
        needed = (total or self.size or 0) - start
        free = shutil.disk_usage(self.dest.parent).free
        if needed > free:
            raise DownloadError(
                f"cannot fetch {self.dest.name}",
                f"it needs {needed / 1e6:,.1f} MB more, {self.dest.parent} has {free / 1e6:,.1f} MB free",
                "Make space, or choose a place on another disk.",
            )

    @contextlib.contextmanager
    def writing(self) -> Any:
        """Turns what can go wrong on this machine's disk into errors that do not sound like the network."""
        try:
            yield
        except OSError as error:
            what = f"cannot fetch {self.dest.name}"
            if error.errno in DISK_FULL:
                fix = "Make space and run it again: it continues where it stopped."
                raise DownloadError(what, f"the disk of {self.dest.parent} is full", fix) from error
            raise DownloadError(
                what,
                f"{self.dest.parent} cannot be written: {error.strerror or error}",
                "Choose a directory that you may write to.",
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Any:
        """One process at a time. The lock file goes when `dest` is there: who still waits for it finds `dest` right."""
        from filelock import FileLock

        path = self.dest.parent / f".{self.dest.name}.lock"
        with self.writing():
            lock = FileLock(path)
            lock.acquire()
        try:
            yield
            with contextlib.suppress(OSError):  # Windows: somebody waits on it
                path.unlink()
        finally:
            lock.release()
