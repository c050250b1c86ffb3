"""Guessed tokens: the text is what it is without them, whatever is guessed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from zoo.cli.main import main
from zoo.core.errors import ZooError
from zoo.hub import load, save
from zoo.llama.cache import Cache
from zoo.llama.config import LlamaConfig
from zoo.llama.generate import generate
from zoo.llama.model import Llama
from zoo.llama.sampling import Sampling
from zoo.llama.speculative import Draft, Lookup, Proposer

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data") / "stories260k"


def model_of(seed: int, **changed) -> Llama:
    shape = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 160}  # fmt: skip
    return Llama(LlamaConfig(**{**shape, **changed})).init(seed, "cpu").prepare()


class Oracle(Proposer):
    """Guesses the truth, spoilt in every `wrong`-th place."""

    def __init__(self, truth: list[int], wrong: int):
        super().__init__()
        self.truth, self.wrong = truth, wrong

    def _guess(self, text, most):
        at = len(text)
        return [(t + (i % self.wrong == 0)) % 40 for i, t in enumerate(self.truth[at : at + min(most, 6)], at)]


PROMPT = [5, 17, 3, 30, 5, 17, 3, 30, 5]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, top_k=12, presence_penalty=0.3)])
def test_the_tokens_are_those_without_guesses(seed, sampling):
    model = model_of(seed)
    settings = {"sampling": sampling, "max_tokens": 120, "seed": 7}
    plain = list(generate(model, PROMPT, **settings))
    assert len(plain) == 120
    truth = [*PROMPT, *plain]
    small = model_of(seed + 50, hidden_size=16, num_hidden_layers=1)
    for proposer in (Lookup(4), Draft(small, 40), Draft(model, 40), Oracle(truth, 3), Oracle(truth, 999)):
        cache = Cache(model.config, device=model.device)
        assert list(generate(model, PROMPT, **settings, cache=cache, proposer=proposer)) == plain
        assert cache.tokens == truth[:-1] and cache.length == len(truth) - 1
        assert 0 <= proposer.right <= proposer.offered
    assert proposer.right == proposer.offered > 90  # the truth is always right, and most tokens were guessed


def test_a_model_that_drafts_for_itself_is_always_right():
    model = model_of(1)
    draft = Draft(model, 40)
    list(generate(model, PROMPT, max_tokens=60, proposer=draft))
    assert draft.right == draft.offered == 49  # five of six tokens, behind the first


def test_stops_and_limits_among_the_guesses():
    model = model_of(2)
    plain = list(generate(model, PROMPT, max_tokens=40))
    for stop in set(plain):
        cut = list(generate(model, PROMPT, max_tokens=40, stops=frozenset([stop])))
        guessed = generate(
            model, PROMPT, max_tokens=40, stops=frozenset([stop]), proposer=Oracle([*PROMPT, *plain], 99)
        )
        assert list(guessed) == cut == plain[: plain.index(stop)]
    for most in (1, 2, 7):
        assert list(generate(model, PROMPT, max_tokens=most, proposer=Oracle([*PROMPT, *plain], 99))) == plain[:most]


def test_who_breaks_off_leaves_a_cache_that_can_be_used():
    model = model_of(3)
    plain = list(generate(model, PROMPT, max_tokens=30))
    cache = Cache(model.config, device=model.device)
    tokens = generate(model, PROMPT, max_tokens=30, cache=cache, proposer=Oracle([*PROMPT, *plain], 4))
    first = [next(tokens) for _ in range(9)]
    tokens.close()
    assert cache.tokens == [*PROMPT, *first][:-1]
    assert list(generate(model, [*PROMPT, *first], max_tokens=21, cache=cache)) == plain[9:]


def test_lookup_finds_what_followed_the_longest_end():
    lookup = Lookup(3)
    assert lookup.guess([1, 2, 3, 9, 8, 7, 5, 2, 3, 6, 1, 2, 3], 10) == [9, 8, 7]  # three tokens are surer than two
    assert lookup.guess([2, 3, 9, 2, 3, 6, 4, 2, 3], 2) == [6, 4]  # the latest, and no more than asked for
    assert lookup.guess([1, 2, 3], 5) == [] and lookup.guess([1], 5) == []
    assert lookup.offered == 5


def test_a_real_model_with_guesses_writes_the_known_ids():
    if not DATA.exists():
        pytest.skip(f"no {DATA} (ZOO_TEST_DATA)")
    model = load(DATA / "hf", device="cpu").prepare()
    case = json.loads((DATA / "expected.json").read_text())["cases"][0]
    prompt, ids = case["prompt_ids"], case["ids"]
    lookup = Lookup(5)
    assert [*prompt, *generate(model, prompt, max_tokens=len(ids) - len(prompt), proposer=lookup)] == ids
    assert lookup.right > 20


def test_commands(tiny, tmp_path, capsys):
    def run(*options: str) -> tuple[int, str, str]:
        code = main(["run", "llama", "abcabcabc", "--weights", str(tiny), "--max-tokens", "20", *options])
        return code, *capsys.readouterr()

    plain = run()[1]
    _, out, err = run("--lookup", "4")
    assert out == plain and "guesses right" in err
    _, out, err = run("--draft", str(tiny))
    assert out == plain and " of " in err
    document = json.loads(run("--draft", str(tiny), "--json")[1])
    assert document["guesses"]["offered"] == document["guesses"]["right"] > 0
    other = tmp_path / "other"
    save(load(tiny, device="cpu"), other, port="llama")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"!":', '"~~":'))
    for options, why in [
        (("--draft", str(other)), "its tokenizer is another one"),
        (("--draft", str(tiny), "--lookup", "3"), "--lookup and --draft are both given"),
        (("--lookup", "-1"), "cannot guess -1 tokens"),
    ]:
        code, _, err = run(*options)
        assert code == 1 and why in err and "Traceback" not in err


def test_a_draft_with_less_context_stops_guessing():
    model, small = model_of(4), model_of(9, max_position_embeddings=24)
    draft = Draft(small, 40)
    assert list(generate(model, PROMPT, max_tokens=60, proposer=draft)) == list(generate(model, PROMPT, max_tokens=60))
    assert 0 < draft.offered <= 5 * 15


def test_guesses_beyond_the_vocabulary_are_none():
    model = model_of(4)
    padded = model_of(4, vocab_size=64)
    truth = np.array(list(generate(padded, PROMPT, max_tokens=50)))
    assert (truth >= 40).any()  # it does say such tokens
    assert list(generate(model, PROMPT, max_tokens=50, proposer=Draft(padded, 40))) == list(
        generate(model, PROMPT, max_tokens=50)
    )
    with pytest.raises(ZooError, match="nothing to write"):
        next(generate(model, PROMPT, max_tokens=0))
