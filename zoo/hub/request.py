"""One HTTP request at a time: http and https only, patient, and every failure told apart.

Standard library only. What fails is `Failed` (this address cannot give the file) or `Again` (it may, another time).
"""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from zoo.core.errors import DownloadError

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


class Forbidden(DownloadError):
    """The server has the file, and does not let this user have it."""


class Failed(Exception):
    """This mirror cannot give the file: the next one may."""

    def __init__(self, why: str, fix: str, forbidden: bool = False):
        super().__init__(why)
        self.why, self.fix, self.forbidden = why, fix, forbidden


def told(what: str, why: str, failed: Failed) -> DownloadError:
    return (Forbidden if failed.forbidden else DownloadError)(what, why, failed.fix)


class Again(Exception):
    """This attempt broke off: the same mirror may go on."""

    def __init__(self, why: str, fix: str, wait: float = 0.0):
        super().__init__(why)
        self.why, self.fix, self.wait = why, fix, wait


CONTINUES = "Run it again: it continues where it stopped."
_NO_NETWORK = "Check the network connection (and HTTPS_PROXY, if you need one), then run it again."


def peek(url: str, start: int, stop: int, *, token: str = "", patience: Patience = PATIENCE) -> bytes:
    """The bytes [start, stop) of a file, fewer where it ends before, into memory. Raises DownloadError as `fetch`."""
    for attempt in range(patience.attempts):
        try:
            response = open_url(url, {"Range": f"bytes={start}-{stop - 1}"}, token, patience)
            with response:
                if response.status != 206 and start:
                    raise Failed("sends files only from their start", "Use another source.")
                try:
                    return response.read(stop - start)
                except (OSError, http.client.HTTPException) as error:
                    raise broken(error) from error
        except Failed as failed:
            raise told(f"cannot read {url}", failed.why, failed) from failed
        except Again as broke:
            if attempt + 1 == patience.attempts:
                raise DownloadError(f"cannot read {url}", broke.why, broke.fix) from broke
            time.sleep(max(broke.wait, patience.backoff * 2**attempt))
    raise ValueError("no attempt was allowed")


def open_url(url: str, headers: dict[str, str], token: str, patience: Patience) -> Any:
    """The response to one request: of status 200, 206 or 416. Raises Failed and Again."""
    request = urllib.request.Request(url, headers={"User-Agent": "zoo", "Accept-Encoding": "identity", **headers})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        return _OPENER.open(request, timeout=patience.timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        with error:
            _refused(error)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise broken(error) from error


def _refused(error: urllib.error.HTTPError) -> None:
    """Raises what an HTTP error status means."""
    code = error.code
    if code == 401:
        fix = "Log in there, accept the model's terms, then run it again."
        raise Failed("wants you to log in (401)", fix, forbidden=True)
    if code == 403:
        fix = "Ask for access there, or use another source."
        raise Failed("does not let you have it (403)", fix, forbidden=True)
    if code in (404, 410):
        raise Failed(f"has no such file ({code})", "Check the name and the revision.")
    if code in (408, 429) or code >= 500:
        asked = error.headers.get("Retry-After") or ""
        wait = float(asked) if asked.isdecimal() else 0.0
        why = f"too many requests ({code})" if code == 429 else f"the server fails ({code})"
        fix = "Try again later: it continues where it stopped."
        if wait > RETRY_AFTER_LIMIT:
            raise Failed(f"{why}; it asks to wait {wait:.0f} s", fix)
        raise Again(why, fix, wait)
    raise Failed(f"answered {code} {error.reason}", "Use another source.")


def broken(error: Exception) -> Exception:
    """What a failure on the way to the server, or while it talks, means."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return Failed(
            f"its certificate cannot be trusted ({reason.verify_message})",
            "Check this machine's clock and certificates.",
        )
    if isinstance(reason, socket.gaierror):
        return Again("no network, or no such server (its name cannot be resolved)", _NO_NETWORK)
    if isinstance(reason, TimeoutError):
        return Again("the server does not answer", _NO_NETWORK)
    if isinstance(reason, ConnectionRefusedError):
        return Again("the connection was refused", _NO_NETWORK)
    if isinstance(reason, OSError) and reason.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return Again("no network", _NO_NETWORK)
    if isinstance(error, ValueError) or isinstance(
        reason, str
    ):  # an address that cannot be asked for, or a redirect to one
        return Failed(f"cannot be asked for: {reason}", "Check the address.")
    return Again(f"the connection broke off ({reason or type(reason).__name__})", CONTINUES)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; the user's token goes along to the same host only (the Hub sends on to other ones)."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if new is not None and token and (new.type, new.host) == (req.type, req.host):
            new.add_unredirected_header("Authorization", token)
        return new


def _opener() -> urllib.request.OpenerDirector:
    """http and https, through the proxies of the environment, following redirects; no file:, ftp: or data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


_OPENER = _opener()
