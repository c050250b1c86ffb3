"""`zoo pull`, `export`, `rm`, and what `list` and `info` say of what was pulled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

import zoo as package

TENSORS = {"factors.w": np.array([[2], [3]], np.float32), "bias": np.array([1], np.float32), "steps": np.array(7)}


@pytest.fixture
def repository(hub, weights, site):
    hub.revisions["main"] = {"model.safetensors": save(TENSORS), "LICENSE": b"do"}
    return hub


def test_pull_then_run_offline(zoo, repository, weights, monkeypatch):
    code, out, err = zoo("pull", "owner/name")
    assert (code, out) == (0, f"{weights / 'owner--name'}\n")
    assert "fetching" in err or "downloading model.safetensors" in err
    assert "zoo run scaler --weights owner/name" in err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, out, err = zoo("run", "scaler", "1", "--weights", "owner/name", "--device", "numpy")
    assert (code, out) == (0, "6\n") and err.startswith("scaler · owner/name · ")


def test_json_and_quiet(zoo, repository, weights):
    code, out, err = zoo("pull", "owner/name", "--json", "-q")
    assert (code, err) == (0, "") and json.loads(out)["path"] == str(weights / "owner--name")
    assert not json.loads(zoo("pull", "owner/name", "--json", "-q")[1])["fresh"]


def test_dtype_and_revision(zoo, repository):
    repository.revisions["v2"] = {"model.safetensors": save({**TENSORS, "bias": np.array([2], np.float32)})}
    assert zoo("pull", "owner/name", "--revision", "v2", "--dtype", "bf16")[0] == 0
    _, out, err = zoo("run", "scaler", "1", "--weights", "owner/name@v2", "--device", "numpy")
    assert out == "7\n" and "bf16" in err
    assert "--revision says v1" in zoo("pull", "owner/name@v2", "--revision", "v1")[2]


def test_check_moves_no_tensor(zoo, repository, weights):
    code, out, _ = zoo("pull", "owner/name", "--check")
    assert code == 0 and os.listdir(weights) == []
    text = " ".join(out.split())
    assert "factors.w factors.weight permute(1, 0) (1, 2) float32 8 B" in text
    assert "steps left out: counts training steps" in text and "none: every tensor has its place" in text
    assert "apache-2.0" in text and repository.commit("main") in text
    document = json.loads(zoo("pull", "owner/name", "--check", "--json", "--dtype", "f16")[1])
    assert document["memory_bytes"] == 6 and document["gaps"] == [] and document["model"] == "scaler"


def test_check_tells_every_gap_and_fails(zoo, repository):
    repository.revisions["main"] = {"model.safetensors": save({**TENSORS, "more": np.zeros(2, np.float32)})}
    code, out, err = zoo("pull", "owner/name", "--check")
    assert code == 1 and "gaps" in out and "factors.w" in out
    assert err.strip().splitlines()[-3:] == [
        "zoo: cannot use owner/name: 1 tensor does not fit scaler",
        "  more has no place in the model",
        "  Use a checkpoint of this architecture.",
    ]


def test_list_and_info_know_it(zoo, repository):
    zoo("pull", "owner/name")
    models = {row["name"]: row for row in json.loads(zoo("list", "--json")[1])["models"]}
    entry = models["scaler"]["checkpoints"][0]
    assert entry["name"] == "owner/name" and entry["commit"] == repository.commit("main")
    assert "owner/name (" in zoo("list")[1]
    code, out, _ = zoo("info", "owner/name")
    assert code == 0 and repository.commit("main") in out and "apache-2.0" in out
    assert json.loads(zoo("info", "owner/name", "--json")[1])["source"]["repo"] == "owner/name"


def test_export_and_remove(zoo, repository, weights):
    zoo("pull", "owner/name")
    code, out, _ = zoo("export", "owner/name", "back")
    assert (code, out) == (0, "back\n") and Path("back/LICENSE").read_bytes() == b"do"
    theirs = load_file("back/model.safetensors")
    assert {n: a.tobytes() for n, a in theirs.items()} == {n: TENSORS[n].tobytes() for n in ("factors.w", "bias")}
    assert zoo("run", "scaler", "1", "--weights", "./back", "-q", "--device", "numpy")[1] == "6\n"
    assert "something is there already" in zoo("export", "owner/name", "back")[2]
    code, out, err = zoo("rm", "owner/name")
    assert (code, out) == (0, "") and "removed" in err and not (weights / "owner--name").exists()
    assert "`zoo pull owner/name` fetches it" in zoo("run", "scaler", "--weights", "owner/name")[2]
    assert zoo("rm", "owner/name")[0] == 1


@pytest.mark.parametrize("ref", ["name", "a/b/c", "../x", "https://huggingface.co/a/b", "a--b/c", ""])
def test_what_is_no_repository(zoo, repository, ref):
    code, out, err = zoo("pull", ref)
    assert code == 1 and out == "" and "that is no repository" in err and repository.asked == []


def test_ctrl_c_is_130_and_the_next_pull_goes_on(zoo, repository, weights):
    content = {"factors.w": np.ones((4, 250_000), np.float32), "bias": np.ones(250_000, np.float32)}
    repository.revisions["main"] = {"model.safetensors": save(content)}
    repository.plan["/cdn/"] = ["serve", *["slow"] * 99]
    root = Path(package.__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), str(weights.parent / "site")])
    command = [sys.executable, "-m", "zoo", "pull", "owner/name"]
    pulling = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)
    part = weights / ".owner--name.pull" / "published"
    while not any(p.suffix == ".part" and p.stat().st_size for p in (part.iterdir() if part.is_dir() else ())):
        assert pulling.poll() is None, pulling.communicate()[1]
        time.sleep(0.01)
    pulling.send_signal(signal.SIGINT)
    assert "Traceback" not in pulling.communicate(timeout=30)[1] and pulling.returncode == 130
    repository.asked.clear()
    assert zoo("pull", "owner/name", "-q")[0] == 0
    assert [h["Range"] for p, h in repository.asked if "/cdn/" in p][1] not in (None, "bytes=0-")


def test_a_checkpoint_in_metas_files(zoo, hub, weights, tmp_path):
    """One consolidated file with params.json is pulled; of several nobody says that they belong together."""
    torch = pytest.importorskip("torch", reason="torch is not installed; it writes the files")
    shapes = {"tok_embeddings": (40, 16), "norm": (16,), "output": (40, 16), "layers.0.attention_norm": (16,),
              "layers.0.ffn_norm": (16,), "layers.0.attention.wq": (16, 16), "layers.0.attention.wk": (8, 16),
              "layers.0.attention.wv": (8, 16), "layers.0.attention.wo": (16, 16), "layers.0.feed_forward.w1": (64, 16),
              "layers.0.feed_forward.w2": (16, 64), "layers.0.feed_forward.w3": (64, 16)}  # fmt: skip
    torch.manual_seed(0)
    published = tmp_path / "published"
    published.mkdir()
    torch.save(
        {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}, published / "consolidated.00.pth"
    )
    params = {"dim": 16, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 32, "norm_eps": 1e-5}
    (published / "params.json").write_text(json.dumps(params))
    files = {path.name: path.read_bytes() for path in published.iterdir()}
    hub.revisions["main"] = files
    code, out, _ = zoo("pull", "owner/name", "--check")
    assert code == 0 and "layers.0.attention.wq.weight" in out and "halves(num_attention_heads)" in out
    assert zoo("pull", "owner/name")[0] == 0
    pulled, direct = package.load("owner/name", device="numpy"), package.load(published, device="numpy")
    mine, theirs = pulled.state(), direct.state()
    assert set(mine) == set(theirs) and all(np.array_equal(mine[n].numpy(), theirs[n].numpy()) for n in mine)
    assert zoo("export", "owner/name", str(tmp_path / "back"))[0] == 0
    with torch.no_grad():
        original = torch.load(published / "consolidated.00.pth")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert set(back) == set(original) and all(np.array_equal(back[n], original[n].numpy()) for n in back)
    hub.revisions["main"] = {**files, "consolidated.01.pth": files["consolidated.00.pth"]}
    assert "it holds several: consolidated.00.pth" in zoo("pull", "owner/name", "--check")[2]
