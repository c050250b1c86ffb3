from __future__ import annotations

import json

import pytest

from zoo.core.errors import WeightsError
from zoo.hub import load
from zoo.llama import tokenizer as tokenizers
from zoo.llama.tokenizer import Tokenizer
from zoo.llama.writer import until

TEXT = "naïve 猫 🦙 e\u0301nd"


def test_text_and_back(tiny):
    tokenizer = Tokenizer(tiny, 258)
    ids = tokenizer.encode(TEXT)
    assert ids[0] == tokenizer.bos == 256 and len(ids) == 1 + len(TEXT.encode()) and tokenizer.decode(ids) == TEXT
    assert tokenizer.encode("") == [256]


def test_a_stream_never_splits_a_character(tiny):
    tokenizer = Tokenizer(tiny, 258)
    ids = tokenizer.encode(TEXT)
    pieces = [piece for _, piece in tokenizer.stream(ids)]
    assert "".join(pieces) == TEXT and "\ufffd" not in "".join(pieces)
    assert pieces[ids.index(ids[1]) :][:1] == ["n"]
    cut = len("naïve ".encode()) + 1
    rest = [piece for _, piece in tokenizer.stream(ids[cut:], after=ids[:cut])]
    assert "".join(rest) == TEXT[len("naïve ") :]


def test_half_a_character_at_the_end_is_not_shown(tiny):
    tokenizer = Tokenizer(tiny, 258)
    assert "".join(piece for _, piece in tokenizer.stream(tokenizer.encode("a🦙")[:-1])) == "a"


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        (["END"], ["one E", "ND two"], "one "),
        (["END"], ["one E", "N", "Q"], "one ENQ"),
        (["\n\n", "#"], ["a\n", "\nb"], "a"),
        (["ab", "b"], ["xa", "b"], "x"),
        ([""], ["x"], "x"),
        ([], ["x", "y"], "xy"),
    ],
)
def test_stop_strings(stops, pieces, shown):
    out, held, ended = "", "", False
    for piece in pieces:
        part, held, ended = until(stops, held + piece)
        out += part
        if ended:
            break
    assert out + ("" if ended else held) == shown


def test_stop_ids_come_from_generation_config_first(tiny):
    model = load(tiny, device="cpu")
    assert tokenizers.of(model).stops == {257}
    (tiny / "generation_config.json").write_text('{"eos_token_id": [257, 10], "do_sample": true}')
    assert tokenizers.of(model).stops == {257, 10}


def test_a_chat_by_the_template_of_the_checkpoint(tiny):
    tokenizer = Tokenizer(tiny, 258)
    ids = tokenizer.chat([{"role": "system", "content": "Be short. "}, {"role": "user", "content": "Hi"}])
    assert ids[0] == 256 and tokenizer.decode(ids) == "[system]Be short.\n[user]Hi\n[assistant]"


def test_templates_are_rendered_as_transformers_does(tiny):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    source = (
        "{%- if messages[0]['role'] == 'system' %}\n  {{- '<sys>' + messages[0]['content'] }}\n{%- endif %}\n"
        "{% for m in messages %}\n    {% if loop.index0 > 3 %}{% break %}{% endif %}\n"
        "    {{ '<' ~ m['role'] ~ '>' }}{{ m | tojson }}\n{% endfor %}\n{% if add_generation_prompt %}go{% endif %}"
    )
    (tiny / "chat_template.jinja").write_text(source)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tiny / "tokenizer.json"))
    theirs.chat_template = source
    messages = [{"role": role, "content": f"ä <{i}>"} for i, role in enumerate(["system", "user", "assistant", "user"])]
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert Tokenizer(tiny, 258).decode(Tokenizer(tiny, 258).chat(messages)) == expected


HOSTILE = [
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ("{{ messages.append(1) }}", "unsafe"),
    ("{% for %}", "Expected"),
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{% include '/etc/passwd' %}", "no loader"),
]


@pytest.mark.parametrize(("source", "why"), HOSTILE)
def test_templates_that_fail(tiny, source, why):
    (tiny / "chat_template.jinja").write_text(source)
    with pytest.raises(WeightsError, match=why):
        Tokenizer(tiny, 258).chat([{"role": "user", "content": "x"}])


def test_without_a_template(tiny):
    (tiny / "tokenizer_config.json").write_text("{}")
    tokenizer = Tokenizer(tiny, 258)
    with pytest.raises(WeightsError, match="no chat template"):
        tokenizer.chat([{"role": "user", "content": "x"}])


def test_several_templates_by_name(tiny):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tiny / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert Tokenizer(tiny, 258).decode(Tokenizer(tiny, 258).chat([])) == "D"


def test_tokenizers_that_cannot_be_used(tiny):
    with pytest.raises(WeightsError, match="258 tokens, the model has embeddings for 100"):
        Tokenizer(tiny, 100)
    (tiny / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(WeightsError, match="cannot read"):
        Tokenizer(tiny, 258)
    (tiny / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"no tokenizer\.json"):
        Tokenizer(tiny, 258)
    with pytest.raises(WeightsError, match=r"no tokenizer\.json"):
        Tokenizer(None, 258)
