"""Fetching a file so that it is either whole and right, or not there.

`fetch` tries mirrors in turn, continues a broken download by byte ranges (also one that an earlier process left),
retries with back-off, checks size and sha256, and renames into place. Beside `dest` it keeps, while under way:
`.NAME.HASH.part` (the bytes so far), `.NAME.HASH.part.etag` (what the server called them) and `.NAME.lock`.

Standard library only: huggingface_hub deletes a broken file instead of continuing it (1.29, file_download.py).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.core.errors import DownloadError
from zoo.hub.files import DISK_FULL

Progress = Callable[[int, "int | None", str], None]
"""progress(bytes so far, bytes in all or None, what)."""

CHUNK = 1 << 16
RETRY_AFTER_LIMIT = 60.0
"""Seconds that a server may ask us to wait; one that asks for more is treated as failing."""


@dataclass(frozen=True)
class Patience:
    """When to give up. Seconds, and attempts that bring no new byte."""

    attempts: int = 5
    backoff: float = 0.5
    """Before the second attempt; doubles with each."""
    timeout: float = 20.0
    """Without any answer or byte."""
    slowest: float = 1024.0
    """Bytes per second, on average over `timeout`; a slower body is dropped and continued on a new connection."""


PATIENCE = Patience()


def fetch(
    urls: str | Sequence[str],
    dest: str | os.PathLike[str],
    *,
    sha256: str,
    size: int | None = None,
    progress: Progress | None = None,
    patience: Patience = PATIENCE,
) -> Path:
    """Downloads to `dest` from the first of `urls` (http or https) that has the file; returns `dest`.

    A `dest` that is already right is left as it is, without a connection. Two processes may fetch the same file: the
    second waits for the first and uses its file.

    Raises DownloadError, and leaves `dest` untouched: no network, refused (401, 403), not there (404), a server that
    fails, another size or sha256 than asked for, no space, a directory that cannot be written.
    """
    dest = Path(dest)
    mirrors = [urls] if isinstance(urls, str) else list(urls)
    for url in mirrors:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise DownloadError(
                f"cannot fetch {dest.name}", f"{url} is not an http or https address", "Correct the address."
            )
    job = _Job(dest, sha256.lower(), size, progress or (lambda done, total, what: None), patience)
    with job.writing():
        dest.parent.mkdir(parents=True, exist_ok=True)
    with job.locked():
        if not job.is_right(dest):
            job.run(mirrors)
    return dest


class _Failed(Exception):
    """This mirror cannot give the file: the next one may."""

    def __init__(self, why: str, fix: str):
        super().__init__(why)
        self.why, self.fix = why, fix


class _Again(Exception):
    """This attempt broke off: the same mirror may go on."""

    def __init__(self, why: str, fix: str, wait: float = 0.0):
        super().__init__(why)
        self.why, self.fix, self.wait = why, fix, wait


_CONTINUES = "Run it again: it continues where it stopped."
_NO_NETWORK = "Check the network connection (and HTTPS_PROXY, if you need one), then run it again."


class _Job:
    """One file on its way."""

    def __init__(self, dest: Path, sha256: str, size: int | None, progress: Progress, patience: Patience):
        self.dest, self.sha256, self.size, self.progress, self.patience = dest, sha256, size, progress, patience
        # The hash is in the name: the rest of another version is never continued.
        self.part = dest.parent / f".{dest.name}.{sha256[:12]}.part"
        self.tag = self.part.with_name(self.part.name + ".etag")

    # --- mirrors and attempts

    def run(self, mirrors: list[str]) -> None:
        failures: list[tuple[str, _Failed]] = []
        for mirror in mirrors:
            try:
                self._from(mirror)
                return
            except _Failed as failed:
                failures.append((mirror, failed))
        what = f"cannot fetch {self.dest.name}"
        if len(failures) == 1:
            url, failure = failures[0]
            raise DownloadError(what, f"{url}: {failure.why}", failure.fix)
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
                    raise _Failed(
                        "what arrived is not the file that was asked for (another sha256); it was removed",
                        "The copy there is damaged, or was replaced: report it, or use another source.",
                    )
                inherited = False
            except _Again as broke:
                fruitless = 0 if self.have() > before else fruitless + 1
                if fruitless >= self.patience.attempts:
                    raise _Failed(broke.why, broke.fix) from broke
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
        headers = {"User-Agent": "zoo", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if etag := self._etag_from(url):
                headers["If-Range"] = etag
        try:
            response = _OPENER.open(urllib.request.Request(url, headers=headers), timeout=self.patience.timeout)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416:  # nothing after what we have: it is whole, or not this file
                    return
                _refused(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _broken(error) from error
        with response:
            start = self._start(response, have)
            length = response.headers.get("Content-Length")
            total = start + int(length) if length and length.isdecimal() else None
            if None not in (total, self.size) and total != self.size:
                raise _Failed(f"has {total:,} bytes, {self.size:,} were expected", "Use another source.")
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
            raise _Failed(f"answered with another range than asked for ({spec or 'none'})", "Use another source.")
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
                    raise _broken(error) from error
                if not chunk:
                    break
                done += len(chunk)
                if self.size is not None and done > self.size:
                    self.forget()
                    raise _Failed(f"sent more than the {self.size:,} bytes that were expected", "Use another source.")
                file.write(chunk)
                self.progress(done, total, what)
                now = time.monotonic()
                if now - window_start >= self.patience.timeout:
                    if done - window < self.patience.slowest * (now - window_start):
                        raise _Again(f"the connection was too slow to go on, after {done:,} bytes", _CONTINUES)
                    window, window_start = done, now
        expected = total if total is not None else self.size
        if expected is not None and done < expected:
            raise _Again(f"the connection broke off after {done:,} of {expected:,} bytes", _CONTINUES)

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
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except FileNotFoundError:
            return False
        except IsADirectoryError as error:
            raise DownloadError(f"cannot fetch {path}", "it is a directory here", "Choose another name.") from error
        return digest.hexdigest() == self.sha256

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


def _refused(error: urllib.error.HTTPError) -> None:
    """Raises what an HTTP error status means."""
    code = error.code
    if code == 401:
        raise _Failed("wants you to log in (401)", "Log in there, accept the model's terms, then run it again.")
    if code == 403:
        raise _Failed("does not let you have it (403)", "Ask for access there, or use another source.")
    if code in (404, 410):
        raise _Failed(f"has no such file ({code})", "Check the name and the revision.")
    if code in (408, 429) or code >= 500:
        asked = error.headers.get("Retry-After") or ""
        wait = float(asked) if asked.isdecimal() else 0.0
        why = f"too many requests ({code})" if code == 429 else f"the server fails ({code})"
        fix = "Try again later: it continues where it stopped."
        if wait > RETRY_AFTER_LIMIT:
            raise _Failed(f"{why}; it asks to wait {wait:.0f} s", fix)
        raise _Again(why, fix, wait)
    raise _Failed(f"answered {code} {error.reason}", "Use another source.")


def _broken(error: Exception) -> Exception:
    """What a failure on the way to the server, or while it talks, means."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return _Failed(
            f"its certificate cannot be trusted ({reason.verify_message})",
            "Check this machine's clock and certificates.",
        )
    if isinstance(reason, socket.gaierror):
        return _Again("no network, or no such server (its name cannot be resolved)", _NO_NETWORK)
    if isinstance(reason, TimeoutError):
        return _Again("the server does not answer", _NO_NETWORK)
    if isinstance(reason, ConnectionRefusedError):
        return _Again("the connection was refused", _NO_NETWORK)
    if isinstance(reason, OSError) and reason.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return _Again("no network", _NO_NETWORK)
    if isinstance(error, ValueError) or isinstance(
        reason, str
    ):  # an address that cannot be asked for, or a redirect to one
        return _Failed(f"cannot be asked for: {reason}", "Check the address.")
    return _Again(f"the connection broke off ({reason or type(reason).__name__})", _CONTINUES)


def _opener() -> urllib.request.OpenerDirector:
    """http and https, through the proxies of the environment, following redirects; no file:, ftp: or data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


_OPENER = _opener()
