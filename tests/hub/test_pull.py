"""Pulling through the real huggingface_hub from a local Hub: complete, continued, refused, interrupted."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save
from torch_files import legacy, tensor, zipped

from zoo.core.errors import DownloadError, WeightsError, ZooError
from zoo.hub import load, pull, refs, store
from zoo.hub.export import export
from zoo.hub.pull import preview
from zoo.hub.pull import pull as pull_repository
from zoo.hub.remote import find
from zoo.hub.request import Patience
from zoo.hub.safetensors import read

HASTY = Patience(attempts=2, backoff=0.01, timeout=0.5)
W, B = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([10, 20], np.float32)
TENSORS = {"factors.w": W, "bias": B, "steps": np.array(7)}
CONFIG = b'{"model_type": "scaler", "inputs": 3, "outputs": 2, "architectures": ["Scaler"]}'


def files(tensors=TENSORS, **more: bytes) -> dict[str, bytes]:
    return {"model.safetensors": save(tensors), "config.json": CONFIG, "tokenizer.json": b"{}", "README.md": b"#",
            "onnx/model.onnx": b"0" * 99, "run.py": b"raise SystemExit", **more}  # fmt: skip


@pytest.fixture
def scaler(hub, weights, site):
    hub.revisions["main"] = files()
    return hub


def get(revision=None, repo="owner/name", **keywords):
    return pull_repository(repo, revision, patience=HASTY, **keywords)


def refused(revision=None, repo="owner/name", **keywords) -> ZooError:
    with pytest.raises(ZooError) as raised:
        get(revision, repo, **keywords)
    error = raised.value
    assert error.why and error.fix and "Traceback" not in str(error)
    return error


def factors(ref="owner/name") -> np.ndarray:
    return np.asarray(load(ref, device="numpy").factors.weight)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_repository_becomes_a_checkpoint_of_ours(scaler, weights):
    made = get()
    assert made.directory == weights / "owner--name" and made.port == "scaler" and made.fresh
    assert sorted(os.listdir(made.directory)) == [
        "config.json", "model.safetensors", "provenance.json", "tokenizer.json"]  # fmt: skip
    assert (made.directory / "config.json").read_bytes() == CONFIG
    with read(made.directory / "model.safetensors") as tensors:
        assert sorted(tensors) == ["factors.bias", "factors.weight"]
        assert tensors["factors.weight"].tobytes() == W.T.tobytes()
        assert json.loads(tensors.metadata["zoo.source"])["commit"] == scaler.commit("main")
    assert np.array_equal(factors(), W.T)
    assert sorted(os.listdir(weights)) == [".owner--name.lock", "owner--name"]


def test_provenance(scaler, weights):
    source = refs.Checkpoint(Path(), get("main").directory).provenance()
    content = scaler.revisions["main"]["model.safetensors"]
    assert source["repo"] == "owner/name" and source["revision"] == "main" and source["licence"] == "apache-2.0"
    assert source["commit"] == scaler.commit("main") and source["translator"] == pull.TRANSLATOR
    assert source["files"]["model.safetensors"] == {
        "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}  # fmt: skip
    assert source["files"]["config.json"]["git_blob"]


def test_what_is_here_is_not_fetched_again(scaler):
    get()
    scaler.asked.clear()
    assert not get().fresh and len(scaler.asked) == 1  # which commit main is
    assert not get(scaler.commit("main")).fresh and len(scaler.asked) == 1  # a commit never changes


def test_another_commit_dtype_or_translator_is(scaler, monkeypatch):
    get()
    scaler.revisions["main"] = files({**TENSORS, "factors.w": W + 1})
    assert get().fresh and np.array_equal(factors(), W.T + 1)
    assert get(dtype="bf16").fresh and factors().dtype.name == "bfloat16"
    monkeypatch.setattr(pull, "TRANSLATOR", 2)
    assert get(dtype="bf16").fresh


def test_revisions(scaler):
    scaler.revisions["v2"] = files({**TENSORS, "factors.w": W * 2})
    get("v2")
    assert np.array_equal(factors("owner/name@v2"), 2 * W.T)
    assert np.array_equal(factors(f"owner/name@{scaler.commit('v2')}"), 2 * W.T)
    with pytest.raises(WeightsError, match="owner/name is here at v2"):
        refs.resolve("owner/name@main")


def test_a_file_in_our_own_layout_is_kept_as_it_is(scaler, weights):
    content = save({"factors.weight": W.T.copy(), "factors.bias": B}, {"zoo.layout": "zoo", "zoo.port": "scaler"})
    scaler.revisions["main"] = files(**{"model.safetensors": content})
    made = get()
    assert (made.directory / "model.safetensors").read_bytes() == content and np.array_equal(factors(), W.T)
    assert refs.resolve("owner/name").provenance()["layout"] == "published"
    assert get(dtype="f16").fresh and factors().dtype == np.float16


@pytest.mark.parametrize("kind", ["shards", "torch", "torch shards", "one file of another name"])
def test_every_kind_of_file(scaler, tmp_path, kind):
    published = files()
    del published["model.safetensors"]
    halves = {"part-1": {"factors.w": W, "steps": np.array(7)}, "part-2": {"bias": B}}
    if kind.startswith("torch"):
        torch = pytest.importorskip("torch", reason="torch is not installed; it writes the files of this test")

        def pack(tensors) -> bytes:
            torch.save({k: torch.from_numpy(np.asarray(v)) for k, v in tensors.items()}, tmp_path / "t")
            return (tmp_path / "t").read_bytes()
    else:
        pack = save
    suffix = ".bin" if kind.startswith("torch") else ".safetensors"
    whole = "pytorch_model.bin" if suffix == ".bin" else "model.safetensors"
    if kind.endswith("shards"):
        index = {"weight_map": {name: part + suffix for part, tensors in halves.items() for name in tensors}}
        published[whole + ".index.json"] = json.dumps(index).encode()
        published |= {part + suffix: pack(tensors) for part, tensors in halves.items()}
    else:
        published["another.safetensors" if kind.startswith("one") else whole] = pack(TENSORS)
    scaler.revisions["main"] = published
    get()
    assert np.array_equal(factors(), W.T)


def test_export_gives_back_what_was_published(scaler, tmp_path):
    get()
    made = export("owner/name", tmp_path / "out" / "back")
    theirs, ours = load_file(made.directory / "model.safetensors"), TENSORS
    assert theirs.keys() == ours.keys() - {"steps"}  # dropped, with its reason, when it came
    assert all(theirs[name].tobytes() == ours[name].tobytes() for name in theirs)
    assert (made.directory / "config.json").read_bytes() == CONFIG
    assert sorted(os.listdir(made.directory)) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert os.listdir(tmp_path / "out") == ["back"]
    with pytest.raises(WeightsError, match="something is there already"):
        export("owner/name", made.directory)


def test_export_of_the_shipped_checkpoint_and_back(tmp_path, weights):
    """Ours -> published -> ours: the same bytes."""
    shipped = Path(__file__).parents[2] / "weights" / "mnist_cnn"
    export(shipped, tmp_path / "published")
    assert load_file(tmp_path / "published" / "model.safetensors")["conv1.weight"].shape[1] == 1  # channels first
    before, after = (load(d, device="numpy").state() for d in (shipped, tmp_path / "published"))
    assert all(np.asarray(before[k]).tobytes() == np.asarray(after[k]).tobytes() for k in before)


def test_remove(scaler, weights):
    get()
    store.remove("owner/name")
    assert [name for name in os.listdir(weights) if not name.endswith(".lock")] == []
    for ref, why in (("owner/name", "it is not in"), ("mnist_cnn", "only what `zoo pull`"), ("./x", "only what")):
        with pytest.raises(WeightsError, match=why):
            store.remove(ref)
    (weights / "owner--name").mkdir()
    with pytest.raises(WeightsError, match="not pulled"):
        store.remove("owner/name")
    assert "not pulled" in refused().why  # and a pull does not replace it


# --- looking before fetching ------------------------------------------------------------------------------------------


def test_a_preview_reads_headers_only(scaler, tmp_path):
    big = {**TENSORS, "factors.w": np.zeros((3000, 100), np.float32), "bias": np.zeros(100, np.float32)}
    config = b'{"model_type": "scaler", "inputs": 3000, "outputs": 100}'
    scaler.revisions["main"] = files(big, **{"config.json": config})
    seen = preview(find("owner/name"), tmp_path)
    assert seen.plan.gaps == 0 and seen.memory == (300_000 + 100) * 4
    assert dict(seen.plan.dropped) == {"steps": "counts training steps"}
    assert [h.get("Range") for p, h in scaler.asked if "/cdn/" in p] == ["bytes=0-65535"]
    assert preview(find("owner/name"), tmp_path, "f16").memory == seen.memory // 2


def test_a_long_header_takes_a_second_request(scaler, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.hub.headers.PIECE", 20)
    assert preview(find("owner/name"), tmp_path).plan.gaps == 0 and len(scaler.requests("/cdn/")) == 2


@pytest.mark.parametrize("write", [zipped, legacy])
def test_a_preview_of_a_file_of_torch_reads_its_description_only(scaler, tmp_path, write):
    sizes = {"factors.w": (3000, 100), "bias": (100,)}
    value, contents = {}, []
    for name, shape in sizes.items():
        size = math.prod(shape)
        value[name] = tensor(shape, (100, 1)[-len(shape) :], key=name, size=size)
        contents.append((name, size, bytes(4 * size)))
    if write is zipped:
        zipped(tmp_path / "a", value, {f"data/{name}": content for name, _, content in contents})
    else:
        legacy(tmp_path / "a", value, contents)
    published = files(**{"config.json": b'{"model_type": "scaler", "inputs": 3000, "outputs": 100}'})
    del published["model.safetensors"]
    scaler.revisions["main"] = {**published, "pytorch_model.bin": (tmp_path / "a").read_bytes()}
    seen = preview(find("owner/name"), tmp_path)
    assert seen.plan.gaps == 0 and seen.memory == (300_000 + 100) * 4
    asked = sorted(h["Range"] for p, h in scaler.asked if "/cdn/" in p)
    end = len(scaler.revisions["main"]["pytorch_model.bin"])
    assert asked == (["bytes=0-65535"] if write is legacy else ["bytes=0-65535", f"bytes=1114112-{end - 1}"])
    assert get().fresh and factors().shape == (100, 3000)


def test_what_does_not_fit_is_told_before_the_weights_are_fetched(scaler, weights):
    scaler.revisions["main"] = files({"factors.w": np.zeros((3, 200_000), np.float32), "bais": B})
    error = refused()
    assert "bias is missing (did you mean bais?)" in error.why and "(3, 2) was expected" in error.why
    assert [h.get("Range") for p, h in scaler.asked if "/cdn/" in p] == ["bytes=0-65535"]
    assert not (weights / "owner--name").exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model.safetensors": b"<html>"}, "neither a safetensors"),
        ({"model.safetensors": (2**60).to_bytes(8, "little") + b"{}"}, "neither a safetensors"),
        ({"model.safetensors": save(TENSORS)[:-1]}, "truncated"),
        ({"model.safetensors": None}, "no safetensors"),
        ({"model.safetensors": None, "a.pt": b"1", "b.pt": b"2"}, "several: a.pt, b.pt"),
        ({"config.json": b"{"}, "not valid JSON"),
        ({"config.json": b'{"model_type": "scaler", "inputs": 4, "outputs": 2}'}, "(4, 2) was expected"),
        ({"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": {"bias": "../x"}}'}, "no file"),
        ({"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": {"bias": "gone"}}'}, "not hold"),
        ({"model.safetensors": save({**TENSORS, "bias": np.array([1, np.nan], np.float32)})}, "holds NaN"),
        ({"model.safetensors": save({**TENSORS, "bias": np.array([1, 2])})}, "needs floating point"),
        ({"model.safetensors": None, "a.bin": b"\x80\x02cos\nsystem\n."}, "nothing was run"),
        ({"model.safetensors": None, "a.bin": b"PK\x03\x04"}, "truncated"),
    ],
)  # fmt: skip
def test_repositories_that_cannot_be_used(scaler, weights, change, why):
    published = {name: content for name, content in {**files(), **change}.items() if content is not None}
    scaler.revisions["main"] = published
    assert why in refused().why
    assert not (weights / "owner--name").exists()


def test_numbers_too_large_for_the_dtype(scaler):
    scaler.revisions["main"] = files({**TENSORS, "bias": np.array([1, 1e6], np.float32)})
    assert "too large for float16" in refused(dtype="f16").why


def test_names_that_lead_out_of_the_repository(scaler, weights, tmp_path):
    """A listing is data of strangers: only plain names at the top are ever written."""
    more = {"../../evil.json": b"{}", "/tmp/evil_config.json": b"{}", "..": b"", ".hidden.json": b"{}"}
    scaler.revisions["main"] = files(**more)
    assert set(find("owner/name").files) == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
        "run.py",
    }
    get()
    assert not list(tmp_path.rglob("*evil*"))


# --- what goes wrong on the way ---------------------------------------------------------------------------------------


def test_a_broken_download_is_continued(scaler):
    content = save({**TENSORS, "factors.w": np.ones((3, 100_000), np.float32), "bias": np.ones(100_000, np.float32)})
    config = b'{"model_type": "scaler", "inputs": 3, "outputs": 100000}'
    scaler.revisions["main"] = files(**{"model.safetensors": content, "config.json": config})
    scaler.plan["/cdn/"] = ["serve", "drop", 500, 500]
    assert "fails (500)" in refused().why
    scaler.asked.clear()
    get()
    ranges = [h.get("Range") for p, h in scaler.asked if "/cdn/" in p]
    assert ranges[1] == f"bytes={len(content) // 2}-" and factors().shape == (100_000, 3)


def test_a_damaged_file_is_not_kept(scaler, weights):
    for name, acts in (("config.json", ["damage"]), ("/cdn/", ["serve", "damage"])):
        scaler.plan[name] = acts
        assert "not the file that was asked for" in refused().why and not (weights / "owner--name").exists()
    assert get().fresh


def test_a_slow_body_is_dropped_and_continued(scaler):
    scaler.plan["/cdn/"] = ["serve", "stall"]
    scaler.revisions["main"] = files({**TENSORS, "more": np.zeros(9000)})
    assert "more has no place" in refused().why
    scaler.revisions["main"] = files()
    assert get().fresh


@pytest.mark.parametrize(
    ("acts", "why", "fix"),
    [
        ([(401, "GatedRepo")], "gated", "hf auth login"),
        ([(403, "GatedRepo")], "gated", "hf auth login"),
        ([401], "no such repository, or it is private", "hf auth login"),
        ([403], "(403)", "Ask for access"),
        ([404], "no such repository", "Check the name"),
        ([(404, "RevisionNotFound")], "no revision", "branches"),
        ([429, 429], "too many requests", "Try again"),
        ([500, 503], "fails (503)", "Try again"),
        ([418], "fails (418)", "Try again"),
    ],
)  # fmt: skip
def test_answers_of_the_api_are_told_apart(scaler, acts, why, fix):
    scaler.plan["/api/"] = list(acts)
    error = refused()
    assert isinstance(error, DownloadError) and why in error.why and fix in error.fix
    assert get().fresh


def test_a_passing_failure_is_not_even_told(scaler):
    scaler.plan = {"/api/": [503], "/resolve/": [429], "/cdn/": [500]}
    assert get().fresh


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_whose_listing_is_public(scaler, status):
    scaler.about["gated"] = "manual"
    scaler.plan["/resolve/"] = [status] * 2
    error = refused()
    assert "gated" in error.why and f"{scaler.url}/owner/name" in error.fix and "login" in error.fix


def test_the_token_goes_to_the_hub_and_nowhere_else(scaler, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    scaler.plan["/resolve/"] = ["moved"]  # on the same host, where the token goes along
    get()
    sent = {(path.split("/")[1], headers.get("Authorization")) for path, headers in scaler.asked}
    assert sent == {("api", "Bearer hf_secret"), ("owner", "Bearer hf_secret"), ("cdn", None)}


def test_unknown_names_and_revisions(scaler):
    assert "no such repository" in refused(repo="owner/nothing").why
    assert "no revision 'v9'" in refused("v9").why


def test_without_a_network_what_is_here_still_loads(scaler, monkeypatch):
    get()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused().why and "network" in refused().fix
    assert np.array_equal(factors(), W.T)
    pulling = [sys.executable, "-m", "zoo", "pull", "owner/name"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    told = subprocess.run(pulling, env=environment, capture_output=True, text=True)
    assert told.returncode == 1 and "offline mode is on (HF_HUB_OFFLINE)" in told.stderr


def test_something_that_is_no_hub(scaler):
    scaler.about = {"siblings": 3}
    assert "not that of a Hub" in refused().why


def test_a_full_disk(scaler, weights, monkeypatch):
    class Full:
        free = 150  # enough for the config, not for the weights

    get()
    scaler.revisions["main"] = files({**TENSORS, "factors.w": W + 1})
    with monkeypatch.context() as patch:
        patch.setattr(pull.shutil, "disk_usage", lambda path: Full)
        error = refused()
    assert "MB free" in error.why and "ZOO_WEIGHTS" in error.fix
    assert np.array_equal(factors(), W.T)  # the older one is untouched
    assert get().fresh and np.array_equal(factors(), W.T + 1)


def test_a_disk_that_fills_while_translating(scaler, weights, monkeypatch):
    import errno

    from zoo.hub import files as writers

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writers.os, "fsync", full)
        assert "is full" in str(refused())
    assert not (weights / "owner--name").exists()
    assert get().fresh


FULL = """
import os, subprocess, sys
from zoo.cli.main import main
from zoo.hub import load
home = os.environ["ZOO_WEIGHTS"]
for inodes in range(2, 20):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=4m,nr_inodes={inodes}", "tmpfs", home], check=True)
    code = main(["pull", "owner/name", "-q"])
    there = os.path.exists(home + "/owner--name")
    assert there == (code == 0), (inodes, code)
    if there:
        load("owner/name", device="numpy")
    print(code)
    subprocess.run(["umount", "-l", home], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", home], check=True)
print(main(["pull", "owner/name", "-q"]))
"""


def test_a_disk_that_is_really_full(scaler, weights):
    """Small file systems in memory, with room for more and more files: a pull is refused at each of its steps, until it
    succeeds; and one with too little room for bytes."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system of his own (unshare -rm)")
    tensors = {"factors.w": np.ones((3, 20_000), np.float32), "bias": np.ones(20_000, np.float32)}
    config = b'{"model_type": "scaler", "inputs": 3, "outputs": 20000}'
    scaler.revisions["main"] = files(tensors, **{"config.json": config})
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(weights.parent / "site")])
    command = ["unshare", "-rm", sys.executable, "-c", FULL]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *codes, last = (line for line in done.stdout.splitlines() if line in ("0", "1"))
    assert codes == sorted(codes, reverse=True) and (codes[0], codes[-1], last) == ("1", "0", "1")
    told = done.stderr.split("zoo: ")[1:]
    assert len(told) == codes.count("1") + 1 and all(len(text.strip().splitlines()) == 3 for text in told)
    assert all("full" in text for text in told[:-1]) and "MB free" in told[-1]


# --- several processes, and processes that die ------------------------------------------------------------------------

FORK = multiprocessing.get_context("fork")  # a child at once: no second start of Python
BIG = np.arange(400_000, dtype=np.float32).reshape(4, 100_000)


@pytest.fixture
def big(scaler):
    config = b'{"model_type": "scaler", "inputs": 4, "outputs": 100000}'
    for number in (1, 2):
        tensors = {"factors.w": BIG * number, "bias": np.full(100_000, number, np.float32)}
        scaler.revisions[f"v{number}"] = files(tensors, **{"config.json": config})
    scaler.revisions["main"] = scaler.revisions["v1"]
    return scaler


def started(*arguments) -> multiprocessing.Process:
    process = FORK.Process(target=pull_repository, args=("owner/name", *arguments))
    process.start()
    return process


def test_two_processes_pull_once(big):
    processes = [started("v1"), started("v1")]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert np.array_equal(factors(), BIG.T)
    bodies = [h.get("Range") for p, h in big.asked if "/cdn/" in p]
    assert bodies.count(None) == 1


def test_killed_at_any_moment_never_a_checkpoint_that_loads_wrong(big, weights):
    """SIGKILL, at moments spread over a whole pull, while one revision replaces another."""
    chance = random.Random(4)
    big.plan["/cdn/"] = ["slow"] * 10_000
    start = time.monotonic()
    get("v1")
    whole = time.monotonic() - start
    killed, seen = 0, set()
    for turn in range(int(os.environ.get("ZOO_TEST_KILLS", "12"))):
        revision = f"v{turn % 2 + 1}"
        process = started(revision)
        time.sleep(chance.uniform(0, 1.2) * whole)
        killed += process.is_alive()
        process.kill()
        process.join()
        if (weights / "owner--name").exists():
            found = load("owner/name", device="numpy")
            number = 2 if found.factors.bias.numpy()[0] == 2 else 1
            seen.add(number)
            assert np.array_equal(np.asarray(found.factors.weight), BIG.T * number)
            assert refs.resolve("owner/name").provenance()["commit"] == big.commit(f"v{number}")
    assert killed >= 3 and seen
    get("v2")
    assert np.array_equal(factors(), BIG.T * 2)
    assert sorted(os.listdir(weights)) == [".owner--name.lock", "owner--name"]


def test_killed_between_the_two_renames(scaler, weights):
    get()
    (weights / ".owner--name.pull").mkdir()
    (weights / "owner--name").rename(weights / ".owner--name.pull" / "old")
    assert not get().fresh and np.array_equal(factors(), W.T)
    assert sorted(os.listdir(weights)) == [".owner--name.lock", "owner--name"]


@pytest.mark.parametrize("name", ["model.safetensors", "provenance.json"])
def test_what_somebody_damaged_is_fetched_anew(scaler, weights, name):
    get()
    (weights / "owner--name" / name).unlink()
    (weights / "owner--name" / "provenance.json").open("a").write(" " if name != "provenance.json" else "{")
    assert get().fresh and np.array_equal(factors(), W.T)


def test_killed_before_it_cleared_up(scaler, weights):
    get()
    (weights / ".owner--name.pull" / "old").mkdir(parents=True)
    assert not get().fresh and sorted(os.listdir(weights)) == [".owner--name.lock", "owner--name"]
