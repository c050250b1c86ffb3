"""`zoo run bert`: tokens, vectors, likeness; what is missing or wrong is told."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.bert import tokenizer
from zoo.bert.reference import model_of
from zoo.bert.run import embed, pool, published_pooling
from zoo.cli.main import main
from zoo.hub.load import save

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "mat", "##s", "un", "##want", "##ed", ",",
         "run", "##ning", "caf", "##e", "on"]  # fmt: skip
TEXTS = ["The cats sat, unwanted", "café running", "mat"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "small"
    save(model_of("bert", "numpy"), directory, port="bert")
    (directory / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return directory


def run(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    code = main(["run", "bert", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_words_are_cut_as_transformers_cuts_them(checkpoint: Path) -> None:
    ids, mask = tokenizer.of(zoo.load(checkpoint, device="numpy"))(TEXTS)
    assert ids.tolist()[0] == [2, 5, 6, 9, 7, 13, 10, 11, 12, 3]
    assert mask.sum(axis=1).tolist() == [10, 6, 3] and ids[2, 3:].tolist() == [0] * 7
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer(str(checkpoint / "vocab.txt"), do_lower_case=True)
    for text, row, real in zip(TEXTS, ids, mask, strict=True):
        assert theirs(text)["input_ids"] == row[: real.sum()].tolist()


def test_lines_are_cosines_and_texts(checkpoint: Path, capsys: Any) -> None:
    code, out, err = run(capsys, *TEXTS, "--weights", checkpoint, "--device", "numpy")
    assert code == 0 and "bert" in err
    lines = out.splitlines()
    assert [line.split("  ", 3)[-1] for line in lines] == TEXTS
    likeness = np.array([[float(n) for n in line.split()[:3]] for line in lines])
    assert np.allclose(np.diag(likeness), 1) and np.allclose(likeness, likeness.T)


def test_the_document_and_the_file_hold_the_vectors(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    code, out, _ = run(capsys, *TEXTS, "--weights", checkpoint, "--json", "--out", tmp_path / "vectors.npy")
    found = json.loads(out)
    vectors = np.load(tmp_path / "vectors.npy")
    assert code == 0 and vectors.shape == (3, 32)
    assert np.allclose([row["embedding"] for row in found["results"]], vectors, atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_standard_input_is_a_text_per_line(checkpoint: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("mat\n\nthe cat\n"))
    code, out, _ = run(capsys, "-", "--weights", checkpoint)
    assert code == 0 and len(out.splitlines()) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    code, out, err = run(capsys, "-", "--weights", checkpoint)
    assert code == 1 and out == "" and "there is no text" in err


def test_a_vector_does_not_depend_on_its_neighbours(checkpoint: Path) -> None:
    """Nor on the size of batches: 1e-6 for sums in another order."""
    model = zoo.load(checkpoint, device="cpu")
    alone = np.concatenate([embed(model, [text]) for text in TEXTS])
    for batch in (1, 2, 32):
        assert np.abs(embed(model, TEXTS, batch=batch) - alone).max() < 1e-6


def test_vectors_are_those_of_torch_and_the_mean(checkpoint: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(checkpoint).eval()
    model = zoo.load(checkpoint, device="cpu")
    ids, mask = (torch.tensor(a.astype(np.int64)) for a in tokenizer.of(model)(TEXTS))
    with torch.no_grad():
        hidden = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    wanted = torch.nn.functional.normalize(mean).numpy()
    assert np.abs(embed(model, TEXTS) - wanted).max() < 1e-5


def test_pooling() -> None:
    hidden = np.array([[[1.0, -5.0], [3.0, -7.0], [99.0, 99.0]]], np.float32)
    mask = np.array([[1, 1, 0]])
    assert pool(hidden, mask, "mean").tolist() == [[2, -6]]
    assert pool(hidden, mask, "cls").tolist() == [[1, -5]]
    assert pool(hidden, mask, "max").tolist() == [[3, -5]]


def test_pooling_as_sentence_transformers_publishes_it(checkpoint: Path) -> None:
    assert published_pooling(zoo.load(checkpoint, device="numpy")) == "mean"
    (checkpoint / "1_Pooling").mkdir()
    (checkpoint / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    model = zoo.load(checkpoint, device="numpy")
    assert published_pooling(model) == "cls"
    assert checkpoint / "1_Pooling/config.json" in model.source.companions()


def test_a_text_that_is_too_long_is_cut_and_that_is_said(checkpoint: Path, capsys: Any) -> None:
    code, _, err = run(capsys, "cat " * 60, "--weights", checkpoint)
    assert code == 0 and "cut to 48 of 62 tokens" in err


def test_without_weights_or_a_tokenizer(checkpoint: Path, capsys: Any) -> None:
    (checkpoint / "vocab.txt").unlink()
    code, out, err = run(capsys, "a", "--weights", checkpoint)
    assert code == 1 and out == "" and "there is no tokenizer" in err
    (checkpoint / "tokenizer.json").write_text("{}")
    code, out, err = run(capsys, "a", "--weights", checkpoint)
    assert code == 1 and out == "" and "cannot read the tokenizer" in err
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "vocab.txt").write_text("\n".join([*WORDS, *map(str, range(99))]))
    code, out, err = run(capsys, "a", "--weights", checkpoint)
    assert code == 1 and out == "" and "another model's" in err
