"""The program with a real file of torch.save, as somebody finds one on the web."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from zoo.hub.formats import read

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
DIGITS = DATA / "mnist-cnn-weights" / "mnist_cnn_20_50_fc500.pt"


@pytest.fixture
def digits() -> str:
    if not DIGITS.exists():
        pytest.skip(f"no {DIGITS} (ZOO_TEST_DATA)")
    return str(DIGITS)


def test_digits_are_recognised(zoo, digits):
    code, out, err = zoo("run", "mnist_cnn", "--weights", digits, "--json", "--device", "numpy")
    results = json.loads(out)["results"]
    assert code == 0 and len(results) == 10 and digits in err
    assert all(int(Path(r["file"]).name[0]) == r["digit"] for r in results)


def test_info_names_every_tensor(zoo, digits):
    document = json.loads(zoo("info", digits, "--json")[1])
    assert document["model"] == "mnist_cnn" and document["parameters"] == 431_080
    assert all(tensor["becomes"] for tensor in document["tensors"])


def test_pulled_run_and_exported_it_is_byte_for_byte_what_it_was(zoo, digits, hub, weights):
    hub.revisions["main"] = {"mnist_cnn.pt": Path(digits).read_bytes()}
    assert zoo("pull", "owner/name", "-q")[0] == 0
    code, out, _ = zoo("run", "mnist_cnn", "--weights", "owner/name", "--json", "-q", "--device", "numpy")
    assert code == 0 and [r["digit"] for r in json.loads(out)["results"]] == list(range(10))
    assert zoo("export", "owner/name", "back", "-q")[0] == 0
    with read(digits) as published, read("back/model.safetensors") as back:
        assert sorted(published) == sorted(back) and all(published[n].tobytes() == back[n].tobytes() for n in back)
