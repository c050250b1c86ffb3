"""`fetch` against a local server that behaves, and one that does not."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zoo.core.errors import DownloadError
from zoo.hub import download
from zoo.hub.download import fetch
from zoo.hub.request import Patience

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes
SHA = hashlib.sha256(CONTENT).hexdigest()
HASTY = Patience(attempts=3, backoff=0.01, timeout=0.5)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at every path. `plan` holds what to do with the next requests; after it: behave."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.ranges, self.plan, self.asked = CONTENT, '"v1"', True, [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file.bin"

    def handle_error(self, request, client_address):
        pass  # the client hangs up in these tests


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append(dict(self.headers))
        act = server.plan.pop(0) if server.plan else "serve"
        if isinstance(act, int):
            self.send_response(act)
            self.send_header("Content-Length", "0")
            if act == 302:
                self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        if isinstance(act, tuple):
            self.send_response(act[0])
            self.send_header("Retry-After", act[1])
            self.end_headers()
            return
        start, body = 0, server.content
        wanted = self.headers.get("Range")
        matches = self.headers.get("If-Range") in (None, server.etag)
        if wanted and server.ranges and matches:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.end_headers()
                return
            self.send_response(206)
            shown = start + 1 if act == "wrong range" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        body = body[start:]
        if act != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        if act == "drop":
            self.wfile.write(body[: len(body) // 3])
        elif act == "stall":
            self.wfile.write(body[:1000])
            self.wfile.flush()
            time.sleep(1.5)
        elif act == "trickle":
            for i in range(40):
                self.wfile.write(body[i : i + 1])
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(body)


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def dest(tmp_path) -> Path:
    return tmp_path / "in" / "file.bin"


def refused(urls, dest, **keywords) -> DownloadError:
    with pytest.raises(DownloadError) as raised:
        fetch(urls, dest, **{"sha256": SHA, "patience": HASTY, **keywords})
    assert not dest.exists()
    assert raised.value.what.startswith("cannot fetch") and raised.value.why and raised.value.fix
    return raised.value


def left(dest: Path) -> list[str]:
    return sorted(path.name for path in dest.parent.iterdir())


def ranges(server) -> list[str | None]:
    return [headers.get("Range") for headers in server.asked]


def test_a_whole_file(server, dest):
    seen = []
    assert fetch(server.url, dest, sha256=SHA, size=len(CONTENT), progress=lambda *p: seen.append(p)) == dest
    assert dest.read_bytes() == CONTENT and left(dest) == ["file.bin"]
    assert seen[0] == (0, len(CONTENT), "downloading file.bin") and seen[-1][0] == len(CONTENT)


def test_what_is_there_and_right_is_not_asked_for(server, dest):
    dest.parent.mkdir()
    dest.write_bytes(CONTENT)
    fetch(server.url, dest, sha256=SHA.upper())
    assert server.asked == [] and left(dest) == ["file.bin"]


def test_what_is_there_and_wrong_is_replaced(server, dest):
    dest.parent.mkdir()
    dest.write_bytes(b"old")
    fetch(server.url, dest, sha256=SHA)
    assert dest.read_bytes() == CONTENT


def test_a_body_without_a_length(server, dest):
    server.plan = ["no length"]
    fetch(server.url, dest, sha256=SHA)
    assert dest.read_bytes() == CONTENT


def test_drops_are_continued_where_they_broke(server, dest):
    server.plan = ["drop", "drop"]
    fetch(server.url, dest, sha256=SHA, patience=HASTY)
    assert dest.read_bytes() == CONTENT and left(dest) == ["file.bin"]
    third = len(CONTENT) // 3
    assert ranges(server) == [None, f"bytes={third}-", f"bytes={third + (len(CONTENT) - third) // 3}-"]
    assert server.asked[1]["If-Range"] == '"v1"'


def test_a_run_that_gave_up_is_continued_by_the_next(server, dest):
    server.plan = ["drop", 500, 500, 500]
    assert "the server fails (500)" in refused(server.url, dest).why
    assert any(name.endswith(".part") for name in left(dest))
    server.asked.clear()
    fetch(server.url, dest, sha256=SHA)
    assert ranges(server) == [f"bytes={len(CONTENT) // 3}-"] and dest.read_bytes() == CONTENT
    assert left(dest) == ["file.bin"]


def test_a_file_that_changed_on_the_server_is_started_again(server, dest):
    server.plan = ["drop", 500, 500, 500]
    server.content = bytes(len(CONTENT))
    refused(server.url, dest)
    server.content, server.etag = CONTENT, '"v2"'
    fetch(server.url, dest, sha256=SHA)
    assert dest.read_bytes() == CONTENT


def test_a_rest_of_wrong_bytes_costs_one_fresh_start(server, dest):
    """Somebody damaged the part: the hash says so, and the file is fetched from its start, once."""
    server.plan = ["drop", 500, 500, 500]
    refused(server.url, dest)
    part = next(path for path in dest.parent.iterdir() if path.suffix == ".part")
    part.write_bytes(b"?" * 1000)
    server.asked.clear()
    fetch(server.url, dest, sha256=SHA)
    assert ranges(server) == ["bytes=1000-", None] and dest.read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file(server, dest):
    server.plan = ["drop", 500, 500, 500]
    refused(server.url, dest)
    part = next(path for path in dest.parent.iterdir() if path.suffix == ".part")
    part.write_bytes(CONTENT + b"more")
    fetch(server.url, dest, sha256=SHA)
    assert dest.read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_starts_again(server, dest):
    server.plan, server.ranges = ["drop"], False
    fetch(server.url, dest, sha256=SHA, patience=HASTY)
    assert dest.read_bytes() == CONTENT and len(server.asked) == 2


def test_another_range_than_asked_for_is_refused(server, dest):
    server.plan = ["drop", "wrong range"]
    assert "another range" in refused(server.url, dest).why


def test_a_wrong_hash_is_said_and_removed(server, dest):
    server.content = bytes(len(CONTENT))
    error = refused(server.url, dest)
    assert "another hash" in error.why and "removed" in error.why
    assert not any(name.endswith((".part", ".etag")) for name in left(dest)) and len(server.asked) == 1


def test_a_wrong_size_is_refused_before_the_body(server, dest):
    assert "512,000 bytes, 5 were expected" in refused(server.url, dest, size=5).why


def test_a_body_that_does_not_end_is_cut(server, dest):
    server.plan = ["no length"]
    assert "more than the 5 bytes" in refused(server.url, dest, size=5).why
    assert not any(name.endswith(".part") for name in left(dest))


@pytest.mark.parametrize(
    ("status", "why"), [(401, "log in"), (403, "does not let you"), (404, "no such file"), (418, "418")]
)
def test_refusals_are_told_apart_and_not_repeated(server, dest, status, why):
    server.plan = [status] * 9
    assert why in refused(server.url, dest).why
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_passing_failures_are_tried_again(server, dest, status):
    server.plan = [status, status]
    fetch(server.url, dest, sha256=SHA, patience=HASTY)
    assert dest.read_bytes() == CONTENT and len(server.asked) == 3


def test_retry_after_is_kept_to_and_refused_if_long(server, dest):
    server.plan = [(429, "1")]
    start = time.monotonic()
    fetch(server.url, dest, sha256=SHA, patience=HASTY)
    assert time.monotonic() - start >= 1
    dest.unlink()
    server.plan = [(429, "86400")]
    assert "wait 86400 s" in refused(server.url, dest).why


@pytest.mark.parametrize("act", ["stall", "trickle"])
def test_a_slow_body_is_dropped_and_continued(server, dest, act):
    server.plan = [act]
    fetch(server.url, dest, sha256=SHA, patience=HASTY)
    assert dest.read_bytes() == CONTENT and len(server.asked) == 2 and ranges(server)[1] is not None


def test_mirrors_are_tried_in_turn(server, dest):
    server.plan = [404]
    fetch([server.url + "?1", server.url + "?2"], dest, sha256=SHA)
    assert dest.read_bytes() == CONTENT and len(server.asked) == 2


def test_the_next_mirror_continues_without_the_first_ones_etag(server, dest):
    server.plan = ["drop", 404]
    fetch([server.url + "?1", server.url + "?2"], dest, sha256=SHA, patience=HASTY)
    assert dest.read_bytes() == CONTENT
    assert server.asked[2]["Range"] == f"bytes={len(CONTENT) // 3}-" and "If-Range" not in server.asked[2]


def test_all_mirrors_failing_are_all_told(server, dest):
    server.plan = [404, 403]
    assert [line.rsplit("(", 1)[1] for line in refused([server.url, server.url], dest).why.splitlines()] == [
        "404)",
        "403)",
    ]


def test_no_such_server_and_nobody_there(dest):
    assert "no network, or no such server" in refused("http://no-such-host.invalid/x", dest).why
    assert "refused" in refused("http://127.0.0.1:9/x", dest).why


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "x", ""])
def test_only_http(dest, url):
    assert "not an http" in refused(url, dest).why
    assert not dest.parent.exists()


def test_a_redirect_to_a_file_is_refused(server, dest):
    server.plan = [302] * 9
    assert "302" in refused(server.url, dest).why


def test_a_full_disk_is_not_the_network(server, dest, monkeypatch):
    class Full:
        free = 1000

    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Full)
    assert "0.5 MB more" in refused(server.url, dest).why


def test_a_disk_that_fills_on_the_way(server, dest, monkeypatch):
    real = Path.open

    class Filling:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def seek(self, at):
            self.file.seek(at)

        def write(self, chunk):
            if self.file.tell() > 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.file.write(chunk)

    def opened(self, *arguments, **keywords):
        file = real(self, *arguments, **keywords)
        return Filling(file) if self.suffix == ".part" else file

    monkeypatch.setattr(Path, "open", opened)
    error = refused(server.url, dest)
    assert error.why.endswith("is full") and len(server.asked) == 1
    monkeypatch.undo()
    fetch(server.url, dest, sha256=SHA)
    assert dest.read_bytes() == CONTENT and ranges(server)[1] is not None  # what fitted was kept


def test_a_directory_that_cannot_be_made(server, tmp_path):
    (tmp_path / "in").touch()
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch(server.url, tmp_path / "in" / "file.bin", sha256=SHA)
    assert server.asked == []


def test_a_directory_in_the_place_of_the_file(server, tmp_path):
    (tmp_path / "file.bin").mkdir()
    with pytest.raises(DownloadError, match="it is a directory"):
        fetch(server.url, tmp_path / "file.bin", sha256=SHA)


FETCH = """
import sys
from zoo.hub.download import fetch
fetch(sys.argv[1], sys.argv[2], sha256=sys.argv[3])
"""


def test_two_processes_fetch_once(server, dest):
    server.plan = ["drop", "drop"]
    command = [sys.executable, "-c", FETCH, server.url, str(dest), SHA]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    assert [(p.wait(60), p.stderr.read()) for p in processes] == [(0, b"")] * 2
    assert dest.read_bytes() == CONTENT and left(dest) == ["file.bin"]
    assert len(server.asked) == 3  # one process: two drops and the rest; the other found the file


def test_a_killed_process_leaves_nothing_wrong(server, dest):
    server.plan = ["stall"] * 3
    command = [sys.executable, "-c", FETCH, server.url, str(dest), SHA]
    process = subprocess.Popen(command)
    while not (dest.parent.exists() and any(name.endswith(".part") for name in left(dest))):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not dest.exists()
    server.plan = []
    fetch(server.url, dest, sha256=SHA)
    assert dest.read_bytes() == CONTENT and left(dest) == ["file.bin"]


def test_a_damaged_etag_note_is_not_needed(server, dest):
    server.plan = ["drop", 500, 500, 500]
    refused(server.url, dest)
    note = next(path for path in dest.parent.iterdir() if path.suffix == ".etag")
    assert json.loads(note.read_text())["etag"] == '"v1"'
    note.write_text("[")
    fetch(server.url, dest, sha256=SHA)
    assert dest.read_bytes() == CONTENT
