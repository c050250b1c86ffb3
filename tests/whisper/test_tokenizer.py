"""Tokens against transformers' tokenizer, tiktoken and openai/whisper's own, on the real vocabularies; and a small one
of our own for machines without them."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.core.errors import WeightsError
from zoo.hub.refs import Checkpoint
from zoo.whisper import tokenizer
from zoo.whisper.languages import LANGUAGES, code_of
from zoo.whisper.tokenizer import Tokenizer, shown_bytes

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
HF, ASSETS = DATA / "whisper-hf-tokenizer", DATA / "whisper-assets"
SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

TEXTS = [
    "", " ", "   ", " And so my fellow Americans, ask not", "no space before", " it's we'll I'D they've",
    "\n\n\t x \r\n",
    " 1,234.50 € in 2026", " naïve café — “quoted”", " Добрый день, мир", " 今天天气很好。", " これは日本語です",
    " สวัสดีครับ", " مرحبا بالعالم", " नमस्ते दुनिया", " \U0001f469\u200d\U0001f467 family 🦙", " e\u0301 combined",
    " \u0915\u094d\u0937", " <|endoftext|> in a text", " <|0.00|><|en|>", "♪♪♪ [MUSIC] (laughs)", " \u00a0\u2003 odd",
    " \ufeff\u0000control\x7f\u200b", "a" * 300, " --- ---",
]  # fmt: skip
ANY_TEXT = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=" 'sdtmlvre1290.,-\n\tabcäß猫🦙", max_size=40),
    st.lists(st.sampled_from(TEXTS), max_size=4).map("".join),
)


def real(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"no {path} (ZOO_TEST_DATA)")
    return path


def beside(directory: Path, vocab_size: int) -> Tokenizer:
    return Tokenizer.beside(Checkpoint(directory / "model.safetensors", directory), vocab_size)


def only(tmp_path: Path, *files: Path) -> Path:
    for file in files:
        shutil.copy(file, tmp_path / file.name)
    return tmp_path


def published(tmp_path: Path, kind: str) -> Tokenizer:
    """The real vocabulary in one of the ways in which it is published."""
    if kind == "tokenizer.json":
        return beside(only(tmp_path, real(HF / "tokenizer.json")), 51865)
    if kind == "vocab.json":
        files = [real(HF / name) for name in ("vocab.json", "merges.txt", "added_tokens.json")]
        return beside(only(tmp_path, *files), 51865)
    sizes = {"multilingual": 51865, "large-v3": 51866, "gpt2": 51864}
    table = real(ASSETS / ("gpt2.tiktoken" if kind == "gpt2" else "multilingual.tiktoken"))
    return beside(only(tmp_path, table), sizes[kind])


KINDS = ["tokenizer.json", "vocab.json", "multilingual", "large-v3", "gpt2"]


@pytest.fixture(scope="module", params=KINDS)
def each(request, tmp_path_factory) -> tuple[str, Tokenizer]:
    return request.param, published(tmp_path_factory.mktemp("vocabulary"), request.param)


def encoding(tiktoken: Any, name: str) -> Any:
    """What openai/whisper runs."""
    lines = (ASSETS / f"{name}.tiktoken").read_text().splitlines()
    ranks = {base64.b64decode(text): int(rank) for text, rank in (line.split() for line in lines)}
    return tiktoken.Encoding(name, pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})


@pytest.mark.parametrize("name", ["multilingual", "gpt2"])
def test_ids_are_those_of_tiktoken(tmp_path, name):
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is not installed; it is the reference")
    ours, theirs = published(tmp_path, name), encoding(tiktoken, name)

    @given(ANY_TEXT)
    @settings(max_examples=200)
    def same(text):
        ids = ours.encode(text)
        assert ids == theirs.encode_ordinary(text) and ours.decode(ids) == text

    same()
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode_ordinary(text)
    for ids in ([220, 83, 50000, 33, 33], [50255], [0], list(range(300, 2000))):
        assert ours.decode(ids) == theirs.decode(ids)


def test_merges_are_found_again_in_ranks():
    """Of 50,000 tokens each is made of the two that the published merges make it of. (That fine-tune's file has lost
    the first merge, as happens when a program takes it for the line with the version.)"""
    merges = tokenizer._tiktoken(real(ASSETS / "multilingual.tiktoken"), 51865)[1]
    assert merges[0] == ("Ġ", "t") and len(merges) == 50_000
    assert merges[1:] == tokenizer._tokenizer_json(real(HF / "tokenizer.json"), 51865)[1]


@pytest.mark.parametrize("files", [["tokenizer.json"], ["vocab.json", "merges.txt", "added_tokens.json"]])
def test_ids_are_those_of_transformers(tmp_path, files):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    only(tmp_path, *(real(HF / name) for name in files))
    ours = beside(tmp_path, 51865)
    # the fine-tune's own settings put a space before every text, which OpenAI's do not
    theirs = transformers.WhisperTokenizer.from_pretrained(str(only(tmp_path, *HF.glob("*.*"))), add_prefix_space=False)

    @given(ANY_TEXT)
    @settings(max_examples=200)
    def same(text):
        if "<|" not in text:  # there, a text may hold special tokens; here, it is text
            assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
            assert ours.decode(ours.encode(text)) == theirs.decode(
                ours.encode(text), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )

    same()
    for name in ("transcribe", "translate", "notimestamps", "startoftranscript", "startofprev", "startoflm", "de"):
        assert ours._special[theirs.convert_tokens_to_ids(f"<|{name}|>")] == f"<|{name}|>"
    assert ours.decode([50258, 50259, 50359, 50364, *ours.encode(" Hi"), 50414, 50257]) == " Hi"


IDS = {
    #               eot    sot    translate transcribe lm prev  no_speech no_timestamps 0.00  languages
    "multilingual": (50257, 50258, 50358, 50359, 50360, 50361, 50362, 50363, 50364, 99),
    "large-v3": (50257, 50258, 50359, 50360, 50361, 50362, 50363, 50364, 50365, 100),
    "gpt2": (50256, 50257, 50357, 50358, 50359, 50360, 50361, 50362, 50363, 99),
}


def test_special_tokens(each):
    kind, t = each
    found = (t.eot, t.sot, t.translate, t.transcribe, t.sot_lm, t.sot_prev, t.no_speech, t.no_timestamps,
             t.timestamp_begin, len(t.languages))  # fmt: skip
    assert found == IDS.get(kind, IDS["multilingual"])
    assert t.timestamps == 1501 and t.multilingual == (kind != "gpt2")
    assert list(t.languages) == list(LANGUAGES)[: len(t.languages)] and t.languages["en"] == t.sot + 1
    assert [t.is_timestamp(t.timestamp_begin + i) for i in (-1, 0, 1500, 1501)] == [False, True, True, False]
    assert t.seconds(t.timestamp_begin + 1500) == pytest.approx(30) and t.seconds(t.timestamp_begin) == 0
    if kind == "gpt2":
        assert t.sot_sequence("de", "translate") == [t.sot]
    else:
        assert t.sot_sequence("de", "translate") == [t.sot, 50261, t.translate]
        assert t.sot_sequence(None, "transcribe") == [t.sot, 50259, t.transcribe]


def test_special_ids_are_those_of_generation_config(tmp_path):
    t = published(tmp_path, "tokenizer.json")
    said = json.loads(real(HF / "generation_config.json").read_text())
    assert {f"<|{code}|>": id for code, id in t.languages.items()} == said["lang_to_id"]
    assert (t.transcribe, t.translate) == (said["task_to_id"]["transcribe"], said["task_to_id"]["translate"])
    assert t.no_timestamps == said["no_timestamps_token_id"] and t.sot == said["decoder_start_token_id"]
    # what is suppressed is what is no speech, and the tokens that begin and frame a transcription
    never = {t.sot, t.translate, t.transcribe, t.sot_lm, t.sot_prev, t.no_speech}
    assert set(t.non_speech_tokens) | never == set(said["suppress_tokens"])


def openais(name: str) -> Any:
    """A module of openai-whisper by itself: the package as a whole needs numba."""
    found = importlib.util.find_spec("whisper")
    if found is None or not found.submodule_search_locations:
        pytest.skip("openai-whisper is not installed; it is the reference")
    path = Path(found.submodule_search_locations[0]) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"openai_whisper_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


WORDS = [
    " It's a naïve café, isn't it? ♪ 🦙 la-la",
    " 今天天气很好。我們去",
    " สวัสดี ครับ",
    " 1.5 % of--all",
    "no space. and (more)",
]


def test_words_and_suppressed_tokens_are_openais(each):
    pytest.importorskip("tiktoken", reason="tiktoken is not installed; it is the reference")
    kind, ours = each
    module = openais("tokenizer")
    theirs = module.get_tokenizer(kind != "gpt2", num_languages=len(ours.languages))
    assert theirs.non_speech_tokens == ours.non_speech_tokens
    assert {code: theirs.to_language_token(code) for code in theirs.all_language_codes} == ours.languages
    for language in ("en", "zh", "th"):
        theirs.language = language
        for text in WORDS:
            for ids in (ours.encode(text), [*ours.encode(text), ours.eot], ours.encode(text)[1:]):
                assert ours.words(ids, language) == theirs.split_to_word_tokens(ids), (language, text)
    stamped = [ours.timestamp_begin, *ours.encode(" Hello there"), ours.timestamp_begin + 60]
    theirs.language = "en"
    assert ours.words(stamped) == theirs.split_to_word_tokens(stamped)
    assert ours.words(stamped)[0] == ["<|0.00|>", " Hello", " there", "<|1.20|>"]


def test_words_of_half_a_character(each):
    """Where openai's ends in an IndexError: nothing is lost, and one U+FFFD stands for the half."""
    _, ours = each
    for cut in (1, 2, 3):
        ids = ours.encode(" a 🦙🦙")[:-cut]
        for language in ("en", "zh"):
            words, each_ids = ours.words(ids, language)
            assert "".join(words) == ours.decode(ids) and [id for own in each_ids for id in own] == ids


@given(st.text(max_size=30))
def test_words_join_to_the_text_and_its_ids(text):
    small_one = Tokenizer(*small(), 400)
    ids = small_one.encode(text)
    for language in ("en", "ja"):
        words, each_ids = small_one.words(ids, language)
        assert "".join(words) == text and [id for own in each_ids for id in own] == ids


# --- a small vocabulary -----------------------------------------------------------------------------------------------


def small(times: int = 51) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    """The bytes, one merge, two languages, and times up to a second."""
    vocabulary = {character: i for i, character in enumerate(shown_bytes())} | {"Ġt": 256}
    names = ["endoftext", "startoftranscript", "en", "de", "translate", "transcribe", "startoflm", "startofprev",
             "nospeech", "notimestamps", *(f"{0.02 * i:.2f}" for i in range(times))]  # fmt: skip
    return vocabulary, [("Ġ", "t")], {f"<|{name}|>": 257 + i for i, name in enumerate(names)}


def write_small(directory: Path, **changes: Any) -> Path:
    """As a tokenizer.json with all that a fine-tune left in it: dropout, a space before, tokens around, truncation."""
    vocabulary, merges, special = small()
    fields = {
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "added_tokens": [{"id": id, "content": name, "special": True} for name, id in special.items()],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": 0.9, "vocab": vocabulary, "merges": [" ".join(pair) for pair in merges]},
    }
    (directory / "tokenizer.json").write_text(json.dumps({**fields, **changes}))
    return directory


def test_a_small_vocabulary(tmp_path):
    t = beside(write_small(tmp_path), 318)
    ids = t.encode(" to the äöü <|en|>")
    assert ids == t.encode(" to the äöü <|en|>") and ids[:2] == [256, ord("o")] and 256 in ids[2:] and len(ids) == 19
    assert t.decode([*ids, t.eot]) == " to the äöü <|en|>"
    assert t.timestamps == 51 and t.is_timestamp(317) and t.seconds(317) == pytest.approx(1.0)
    assert t.languages == {"en": 259, "de": 260} and t.multilingual
    assert {ord("("), ord("♪".encode()[:1])} < set(t.non_speech_tokens) and ord("a") not in t.non_speech_tokens


def test_bytes_that_are_no_character_are_shown_as_such(tmp_path):
    t = beside(write_small(tmp_path), 318)
    ids = t.encode("a🦙")
    assert t.decode(ids[:-1]) == "a\ufffd" and t.decode(ids) == "a🦙" and t.decode([]) == ""


def test_whether_it_is_of_many_languages_is_what_generation_config_says(tmp_path):
    write_small(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"is_multilingual": false}')
    t = beside(tmp_path, 318)
    assert not t.multilingual and t.sot_sequence("de", "translate") == [t.sot]


def test_the_tokenizer_of_a_model_is_read_once(tmp_path):
    class Config:
        vocab_size = 318

    class Model:
        source, config = Checkpoint(tmp_path / "model.safetensors", write_small(tmp_path)), Config

    model = Model()
    assert Tokenizer.of(model) is Tokenizer.of(model)


def test_openais_file_beside_a_single_file_of_weights(tmp_path):
    only(tmp_path, real(ASSETS / "multilingual.tiktoken"))
    assert Tokenizer.beside(Checkpoint(tmp_path / "tiny.pt"), 51865).eot == 50257
    with pytest.raises(WeightsError, match=r"no gpt2\.tiktoken beside tiny\.en\.pt") as caught:
        Tokenizer.beside(Checkpoint(tmp_path / "tiny.en.pt"), 51864)
    assert "github.com/openai/whisper" in caught.value.fix


BAD = [
    ({"model": {"type": "Unigram", "vocab": []}}, "no byte-pair encoding"),
    ({"pre_tokenizer": {"type": "Metaspace"}}, "no byte-pair encoding"),
    ({"model": 3}, "cannot use"),
    ({"model": {"vocab": {"猫": 0}, "merges": []}}, "writes bytes in another way"),
    ({"model": {"vocab": {"a": 0}, "merges": ["a b"]}}, "cannot use"),
    ({"added_tokens": [{"id": 300, "content": "<|endoftext|>"}, {"id": 301, "content": "<|x|>"}]}, "not Whisper's"),
    ({"added_tokens": [{"id": 9999, "content": "<|endoftext|>"}, {"id": 301, "content": "<|x|>"}]}, "10,000 tokens"),
    ({"added_tokens": []}, "not made for"),
]


@pytest.mark.parametrize(("changes", "why"), BAD)
def test_what_is_no_whispers(tmp_path, changes, why):
    with pytest.raises(WeightsError, match=why):
        beside(write_small(tmp_path, **changes), 318)


@pytest.mark.parametrize("text", ["", "nonsense", "YQ== 0\nYg== 2\n", "!!!! 0"])
def test_damaged_tables(tmp_path, text):
    (tmp_path / "multilingual.tiktoken").write_text(text)
    with pytest.raises(WeightsError, match="ranks"):
        beside(tmp_path, 51865)


def test_nothing_to_read(tmp_path):
    with pytest.raises(WeightsError, match=r"no tokenizer\.json beside"):
        beside(tmp_path, 51865)
    with pytest.raises(WeightsError, match="this model"):
        Tokenizer.beside(None, 51865)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"no merges\.txt"):
        beside(tmp_path, 51865)


def test_languages_by_name():
    assert [code_of(x) for x in ("de", "German", " MANDARIN ", "haitian creole", "klingon")] == [
        "de", "de", "zh", "ht", None,
    ]  # fmt: skip
    assert len(LANGUAGES) == 100
