"""Tokens against transformers' `generate` and openai/whisper's `decode`, on small random models; and what must hold of
them without either."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

import zoo
from zoo.core.errors import WeightsError, ZooError
from zoo.whisper.cache import Cache
from zoo.whisper.decoding import DecodingOptions, compression_ratio, decode, detect_language
from zoo.whisper.generation import Generation
from zoo.whisper.hypothesis import Hypothesis, best
from zoo.whisper.sampling import Sampling
from zoo.whisper.tokenizer import Tokenizer
from zoo.whisper.window import encode

OPTIONS = {
    "greedy": {},
    "the language is found": {"language": None},
    "no timestamps": {"without_timestamps": True},
    "translate": {"language": "de", "task": "translate"},
    "beam": {"beam_size": 3},
    "patience and length": {"beam_size": 4, "patience": 2.0, "length_penalty": 0.6},
    "impatience": {"beam_size": 4, "patience": 0.5},
    "blanks, short": {"suppress_blank": False, "beam_size": 2, "max_initial_timestamp": None, "max_tokens": 9},
    "context": {"prompt": [268, 97, 98, 280], "prefix": [269, 100], "beam_size": 2},
}


lengths: set[int] = set()


def features(count, seed=0):
    return np.random.default_rng(seed).normal(0, 0.5, (count, 200, 80)).astype(np.float32)


@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_are_those_of_openai_whisper(openai, name):
    theirs, reference, model, _ = openai
    heard, names = features(6), {"max_tokens": "sample_len"}
    given = {"language": "en", **OPTIONS[name]}
    options = {names.get(key, key): value for key, value in given.items()}
    encoded = encode(model, list(heard))
    found = decode(model, encoded, DecodingOptions(**given))
    texts = set()
    for window, ours in zip(heard, found, strict=True):
        torch = pytest.importorskip("torch")
        expected = reference.decode(torch.tensor(window.T.copy()), theirs.DecodingOptions(fp16=False, **options))
        assert ours.tokens == expected.tokens and ours.language == expected.language
        # float32 sums of up to 24 tokens in another order
        assert ours.avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-4)
        assert ours.no_speech_prob == pytest.approx(expected.no_speech_prob, rel=1e-3)
        texts.add(tuple(ours.tokens))
    assert len(texts) > 3
    lengths.update(map(len, texts))


def test_some_of_those_texts_ended_and_some_were_cut(openai):
    assert len(lengths) > 2 and 24 in lengths


@pytest.mark.parametrize(
    ("language", "task", "stamps"), [("en", "transcribe", True), ("ja", "translate", True), ("de", "transcribe", False)]
)
def test_greedy_tokens_are_those_of_transformers(hugging_face, language, task, stamps):
    """One window by its `generate` with its own processors. Whisper's own `generate` would go on behind the last
    timestamp, window after window; that loop is compared with openai's in test_transcribe.py."""
    torch, theirs, directory = hugging_face
    from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
    from transformers import SuppressTokensAtBeginLogitsProcessor as AtBegin
    from transformers import SuppressTokensLogitsProcessor as Never
    from transformers import WhisperTimeStampLogitsProcessor as Stamps

    heard = features(6)
    said = json.loads((directory / "generation_config.json").read_text())
    config = GenerationConfig(
        eos_token_id=256, pad_token_id=256, bos_token_id=256, decoder_start_token_id=257, max_new_tokens=24,
        no_timestamps_token_id=266, max_initial_timestamp_index=50,
    )  # fmt: skip
    tokens = [257, 258 + ["en", "de", "ja"].index(language), 262 if task == "transcribe" else 261, *[266][stamps:]]
    processors = [AtBegin(said["begin_suppress_tokens"], len(tokens)), Never(said["suppress_tokens"])]
    processors += [Stamps(config, begin_index=len(tokens))] if stamps else []
    with torch.no_grad():
        expected = GenerationMixin.generate(
            theirs, torch.tensor(heard.transpose(0, 2, 1).copy()), generation_config=config,
            decoder_input_ids=torch.tensor([tokens] * len(heard)), logits_processor=LogitsProcessorList(processors),
        )  # fmt: skip
    expected = [[t for t in row[len(tokens) :].tolist() if t != 256] for row in expected]
    assert len(set(map(tuple, expected))) > 3
    for device in ("numpy", "cpu"):
        model = zoo.load(str(directory), device=device)
        options = DecodingOptions(language=language, task=task, without_timestamps=not stamps)
        assert [one.tokens for one in decode(model, encode(model, list(heard)), options)] == expected


# --- without either ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny):
    return zoo.load(str(tiny), device="numpy")


@pytest.fixture(scope="module")
def heard(model):
    return encode(model, list(features(4, seed=1)))


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}, {"temperature": 0.8, "best_of": 3}], ids=str)
def test_windows_that_are_decoded_together_are_as_each_alone(model, heard, options):
    options = DecodingOptions(language="en", **options)
    together = decode(model, heard, options, places=[7, 8, 9, 10])
    for i, one in enumerate(together):
        alone = decode(model, heard[i : i + 1], options, places=[7 + i])[0]
        assert alone.tokens == one.tokens and alone.avg_logprob == pytest.approx(one.avg_logprob, abs=1e-4)


def test_what_is_drawn_depends_on_seed_place_and_temperature(model, heard):
    def drawn(seed, place, temperature):
        options = DecodingOptions(language="en", temperature=temperature, seed=seed)
        return decode(model, heard[:1], options, places=[place])[0].tokens

    same = drawn(0, 0, 1.0)
    assert same == drawn(0, 0, 1.0)
    assert same != drawn(1, 0, 1.0) and same != drawn(0, 1, 1.0) and same != drawn(0, 0, 0.99)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    shares = np.array([0.5, 0.25, 0.2, 0.05, 0.0])
    with np.errstate(divide="ignore"):
        logits = np.log(shares, dtype=np.float32)[None]
    search = Sampling(range(4000), 1, 1.0, 0, seed=3)
    search.step(np.repeat(logits, 4000, axis=0))
    counts = np.bincount([row[0] for row in search.written], minlength=5) / 4000
    assert counts[4] == 0 and np.abs(counts - shares).max() < 4 * np.sqrt(0.25 / 4000)  # four standard deviations
    cold = Sampling(range(4000), 1, 0.5, 0, seed=3)
    cold.step(np.repeat(logits, 4000, axis=0))
    sharper = np.square(shares) / np.square(shares).sum()
    counts = np.bincount([row[0] for row in cold.written], minlength=5) / 4000
    assert np.abs(counts - sharper).max() < 4 * np.sqrt(0.25 / 4000)


def test_the_best_of_more_draws_is_no_worse(model, heard):
    scores = {
        count: [one.avg_logprob for one in decode(model, heard, DecodingOptions(
            language="en", temperature=0.9, best_of=count, length_penalty=None))]
        for count in (1, 6)
    }  # fmt: skip
    assert all(six >= one - 0.1 for one, six in zip(scores[1], scores[6], strict=True))
    assert sum(scores[6]) > sum(scores[1])


def test_an_old_cache_gives_the_same(model, heard):
    cache = Cache(model, heard)
    beam, plain = DecodingOptions(language="en", beam_size=3), DecodingOptions(language="en")
    first = decode(model, heard, plain)
    assert [one.tokens for one in decode(model, heard, beam, cache=cache)] != [one.tokens for one in first]
    assert detect_language(model, cache, Tokenizer.of(model)) == detect_language(model, heard, Tokenizer.of(model))
    assert decode(model, heard, plain, cache=cache) == first


def test_hypotheses_are_compared_by_length():
    short, long = Hypothesis([1, 2], -2.0), Hypothesis([1, 2, 3, 4, 5, 6], -4.0)
    assert best([short, long], None) is long  # -1 and -0.67 a token
    assert best([short, long], 0.0) is short
    assert best([short, long], 1.0) is short  # -2 / (7/6) = -1.71 and -4 / (11/6) = -2.18


def test_compression_of_a_text_that_repeats_itself():
    assert compression_ratio("ha " * 100) == 300 / len(zlib.compress(b"ha " * 100)) > 10
    assert compression_ratio("") == 0


NONSENSE = [{"beam_size": 0}, {"best_of": 0}, {"temperature": -0.1}, {"task": "sing"}, {"length_penalty": 2.0},
            {"patience": 0.1}, {"max_tokens": 0}]  # fmt: skip


@pytest.mark.parametrize("options", NONSENSE, ids=str)
def test_options_that_make_no_sense(options):
    with pytest.raises(ZooError, match="cannot decode like that"):
        DecodingOptions(**options)


def test_a_model_of_english_alone(model, heard):
    tokenizer = Tokenizer.of(zoo.load(str(model.source.directory), device="numpy"))
    tokenizer.multilingual = False
    found = decode(model, heard, DecodingOptions(), tokenizer=tokenizer)
    assert [one.language for one in found] == [None] * 4
    for options, what in (({"task": "translate"}, "cannot translate"), ({"language": "de"}, "cannot transcribe this")):
        with pytest.raises(ZooError, match=what):
            decode(model, heard, DecodingOptions(**options), tokenizer=tokenizer)
    with pytest.raises(ZooError, match="cannot tell the language"):
        detect_language(model, heard, tokenizer)


def test_damaged_weights_are_named(tiny):
    model = zoo.load(str(tiny), device="numpy")
    broken = {name: value.numpy() for name, value in model.state().items()}
    broken["model.decoder.layer_norm.weight"] = broken["model.decoder.layer_norm.weight"] * np.nan
    source = model.source
    model.load(broken, device="numpy").source = source
    with pytest.raises(WeightsError, match="computed NaN"), np.errstate(invalid="ignore"):
        decode(model, encode(model, list(features(1))), DecodingOptions(language="en"))


def test_generation_config_is_checked(tiny):
    model = zoo.load(str(tiny), device="numpy")
    assert 35 in Generation.of(model).suppress_tokens
    for fields in ({"suppress_tokens": [400]}, {"suppress_tokens": "no"}, {"alignment_heads": [[2, 0]]},
                   {"alignment_heads": [[0]]}, {"begin_suppress_tokens": [-5]}):  # fmt: skip
        with pytest.raises(WeightsError, match="cannot use generation_config"):
            Generation.from_dict(json.loads(json.dumps(fields)), model.config)
    assert Generation.from_dict({"suppress_tokens": [-1]}, model.config).suppress_tokens is None
