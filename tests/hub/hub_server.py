"""A local server that speaks the routes of the Hugging Face Hub: model info, and `resolve`, which for large files
redirects to another host, as the Hub does. huggingface_hub finds it by HF_ENDPOINT."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import time
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(http.server.ThreadingHTTPServer):
    """`revisions[name]` = files by name. `plan[part of a path]` = what to do with the next such requests, then: serve.
    What can be done: a status, (status, X-Error-Code), "drop", "stall", "damage", "slow", "moved"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.cdn = f"http://localhost:{self.server_address[1]}/cdn"
        self.revisions: dict[str, dict[str, bytes]] = {}
        self.large = (".safetensors", ".bin")
        self.about: dict[str, Any] = {"gated": False, "cardData": {"license": "apache-2.0"}}
        self.plan: dict[str, list[Any]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    def commit(self, revision: str) -> str:
        files = self.revisions[revision]
        return hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()

    def files(self, revision: str) -> dict[str, bytes] | None:
        for name in self.revisions:
            if revision in (name, self.commit(name)):
                return self.revisions[name]
        return None

    def info(self, revision: str) -> dict[str, Any]:
        siblings = []
        for name, content in self.revisions[revision].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_blob(content)}
            if name.endswith(self.large):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": "owner/name", "sha": self.commit(revision), "private": False, "tags": [], "downloads": 0,
                "likes": 0, "siblings": siblings, **self.about}  # fmt: skip

    def requests(self, part: str = "") -> list[str]:
        return [path for path, _ in self.asked if part in path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client hangs up in these tests


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.asked.append((path, {name.title(): value for name, value in self.headers.items()}))
        act: Any = next((acts.pop(0) for part, acts in hub.plan.items() if part in path and acts), "serve")
        if isinstance(act, int | tuple):
            status, code = act if isinstance(act, tuple) else (act, "")
            return self.answer(status, {"X-Error-Code": code} if code else {})
        if act == "moved":
            return self.answer(307, {"Location": f"{self.path}?moved"})
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            if parts[2:4] != ["owner", "name"]:
                return self.answer(404, {"X-Error-Code": "RepoNotFound"})
            revision = parts[5] if len(parts) > 5 else "main"
            known = next((name for name in hub.revisions if revision in (name, hub.commit(name))), None)
            if known is None:
                return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            return self.answer(200, {"Content-Type": "application/json"}, json.dumps(hub.info(known)).encode())
        name = "/".join(parts[2:] if parts[0] == "cdn" else parts[4:])
        if parts[0] == "cdn":
            content = (hub.files(parts[1]) or {})[name]
        elif parts[2:3] == ["resolve"] and name in (hub.files(parts[3]) or {}):
            if name.endswith(hub.large):
                return self.answer(302, {"Location": f"{hub.cdn}/{parts[3]}/{name}"})
            content = hub.files(parts[3])[name]  # type: ignore[index]
        else:
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        return self.body(content, act)

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def body(self, content: bytes, act: str) -> None:
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        start, stop, status = 0, len(content), 200
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") in (None, etag):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(int(last) + 1 if last else stop, stop), 206
            if start >= len(content):
                return self.answer(416, {})
        self.send_response(status)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(stop - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.end_headers()
        part = content[start:stop]
        if act == "drop":
            self.wfile.write(part[: len(part) // 2])
        elif act == "stall":
            self.wfile.write(part[:1000])
            self.wfile.flush()
            time.sleep(1.0)
        elif act == "damage":
            self.wfile.write(part[:-1] + bytes([part[-1] ^ 1]))
        elif act == "slow":
            for at in range(0, len(part), 1 << 16):
                self.wfile.write(part[at : at + (1 << 16)])
                time.sleep(0.003)
        else:
            self.wfile.write(part)


def serve() -> Hub:
    hub = Hub()
    threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
    return hub
