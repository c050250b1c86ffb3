"""Prompts: CLIP's tokens as transformers gives them, weights, and texts longer than the window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core.errors import WeightsError
from zoo.stable_diffusion.prompt import MORE, parse, tell
from zoo.stable_diffusion.reference import model_of
from zoo.stable_diffusion.tokenizer import END, Tokenizer

TEXTS = (
    "a red bicycle", "", "  A  photograph\n of an astronaut, riding a horse!!  ", "don't it's we're I'm 2023 1,000.50",
    "café naïve Ünïcödé ñ 東京 🚲🎨 \u0301e", "<|endoftext|> hi <|startoftext|>", "under_score (x:1.3) [y]  ~~ --",
    "x" * 300, "a\u200bb\u00a0c\t", "I’m “quoted” … — ½ ①", " ".join(["word"] * 100), "ＦＵＬＬ ﬁ İstanbul ẞ",
)  # fmt: skip


def test_tokens_are_transformers(real: Any) -> None:
    transformers = pytest.importorskip("transformers")
    directory = real("clip-tokenizer", "vocab.json").parent
    known, mine = transformers.CLIPTokenizer.from_pretrained(directory), Tokenizer(directory)
    for text in TEXTS:
        ids = known(text, padding="max_length", truncation=True, max_length=77).input_ids
        assert mine.encode(text) == ids, text


def test_tokens_of_clip(real: Any) -> None:
    """As OpenAI's code gives them, and "!" where SD 2 fills up."""
    tokenizer = Tokenizer(real("clip-tokenizer", "vocab.json").parent)
    assert tokenizer.encode("a red bicycle")[:6] == [49406, 320, 736, 11652, 49407, 49407]
    assert len(tokenizer.encode("a " * 200)) == 77 and tokenizer.encode("a " * 200)[-1] == 49407
    assert tokenizer.decode(tokenizer.tokens("Café 東京, 🚲!")) == "café 東京 , 🚲!"


def test_another_padding_and_a_single_file(write_tokenizer: Any, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "two", pad="!")
    tokenizer = Tokenizer(tmp_path / "two", length=10)
    row = tokenizer.encode("the red")
    assert row[0] == tokenizer.begin and row[3] == tokenizer.end and len(set(row[4:])) == 1 and row[4] != tokenizer.end
    core = tokenizer._core
    (tmp_path / "one").mkdir()
    core.save(str(tmp_path / "one" / "tokenizer.json"))
    assert Tokenizer(tmp_path / "one", length=10).tokens("the red") == tokenizer.tokens("the red")


def test_a_tokenizer_that_cannot_be_used_is_named(write_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="tokenizer folder"):
        Tokenizer(tmp_path)
    write_tokenizer(tmp_path / "t")
    with pytest.raises(WeightsError, match="99 tokens, the text encoder 50"):
        Tokenizer(tmp_path / "t", vocab_size=50)
    vocabulary = json.loads((tmp_path / "t" / "vocab.json").read_text())
    (tmp_path / "t" / "vocab.json").write_text(json.dumps({k: v for k, v in vocabulary.items() if k != END}))
    with pytest.raises(WeightsError, match="cannot use the tokenizer"):
        Tokenizer(tmp_path / "t")
    (tmp_path / "t" / "vocab.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot use the tokenizer"):
        Tokenizer(tmp_path / "t")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("plain, text", [("plain, text", 1.0)]),
        ("", [("", 1.0)]),
        ("a (red:1.4) bike", [("a ", 1.0), ("red", 1.4), (" bike", 1.0)]),
        ("a (red) [bike]", [("a ", 1.0), ("red", MORE), (" ", 1.0), ("bike", 1 / MORE)]),
        ("((red))", [("red", MORE * MORE)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        (r"\(a\) \[b\] \\", [(r"(a) [b] \ ".strip(), 1.0)]),
        (r"(a\:1.3)", [("a:1.3", MORE)]),
        ("smile :) and ( so", [("smile :) and ( so", 1.0)]),
        ("(a [b)", [("(a [b)", 1.0)]),
        ("(x:.5) 12:30", [("x", 0.5), (" 12:30", 1.0)]),
    ],
)
def test_weights_in_a_text(text: str, pieces: list[tuple[str, float]]) -> None:
    found = parse(text)
    assert [piece for piece, _ in found] == [piece for piece, _ in pieces]
    np.testing.assert_allclose([weight for _, weight in found], [weight for _, weight in pieces])


@pytest.fixture
def teller(write_tokenizer: Any, tmp_path: Path) -> Any:
    write_tokenizer(tmp_path / "t")
    tokenizer, model = Tokenizer(tmp_path / "t"), model_of("1", "cpu")

    def told(*texts: str, **options: Any) -> Any:
        return tell(model, [tokenizer], texts, **options)

    told.tokenizer, told.model = tokenizer, model  # type: ignore[attr-defined]
    return told


def test_long_texts_are_told_in_chunks(teller: Any) -> None:
    long = "a " * 80 + "red"
    both = teller("the red", long)
    assert both.hidden.shape == (2, 154, 24)
    chunks = [teller.tokenizer.row(part) for part in ([*teller.tokenizer.tokens("a " * 75)],
              [*teller.tokenizer.tokens("a " * 5 + "red")])]  # fmt: skip
    known = [teller.model.encode_text([zoo.tensor(np.asarray([row], np.int32), device="cpu")])[0] for row in chunks]
    for i, part in enumerate(known):
        np.testing.assert_allclose(both.hidden.numpy()[1, i * 77 : i * 77 + 77], part.numpy()[0], atol=1e-5)


def test_what_is_cut_off_is_said(teller: Any) -> None:
    told = teller("the red", "a " * 75 + "red the", cut=True)
    assert told.hidden.shape == (2, 77, 24) and told.lost == ("", "red the")


def test_weights_change_what_is_told_and_keep_its_mean(teller: Any) -> None:
    plain, weighted = (teller(text).hidden.numpy() for text in ("the red one", "the (red:1.5) one"))
    np.testing.assert_allclose(plain.mean(), weighted.mean(), rtol=1e-3)
    scaled = plain.copy()
    scaled[:, 2] *= 1.5
    np.testing.assert_allclose(weighted, scaled * plain.mean() / scaled.mean(), rtol=1e-3, atol=1e-5)
    both = teller("the red one", "the (red:1.5) one").hidden.numpy()
    np.testing.assert_allclose(both[0], plain[0], atol=1e-5)
