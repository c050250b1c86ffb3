"""The program with a real file of torch.save, as somebody finds one on the web."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

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
