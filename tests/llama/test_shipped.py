"""The checkpoint that ships: what it writes, word for word, and that transformers writes the same."""

from __future__ import annotations

import pytest

import zoo
from zoo.llama import tokenizer as tokenizers
from zoo.llama.generate import generate

PROMPT = "What is"
# transformers 5.23 in float32, greedy, from the same file (the last test here); the closest two of the likeliest tokens
# are 0.030 apart in logits, and kernels differ by 1e-5
WRITTEN = """ a wind of wins,
And I am bid to see the king, and I'll not
To seek the business. What, what's the king?

BUCKINGHAM"""


@pytest.fixture(params=["numpy", "cpu"])
def model(request):
    try:
        return zoo.load("weights/llama", device=request.param)
    except zoo.DeviceError as error:
        pytest.skip(f"device {request.param}: {error.why}")


def written(model, count: int = 48) -> list[int]:
    return list(generate(model, tokenizers.of(model).encode(PROMPT), max_tokens=count))


def test_it_writes_what_it_wrote(model):
    assert tokenizers.of(model).decode(written(model)) == WRITTEN


def test_prepared_in_another_order_it_writes_the_same(model):
    assert tokenizers.of(model).decode(written(model.prepare())) == WRITTEN


def test_transformers_writes_the_same(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    model = zoo.load("weights/llama", device="numpy")
    reference = transformers.LlamaForCausalLM.from_pretrained(model.source.directory, dtype=torch.float32).eval()
    ids = tokenizers.of(model).encode(PROMPT)
    out = reference.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=48, temperature=None, top_p=None)
    assert tokenizers.of(model).decode(out[0, len(ids) :].tolist()) == WRITTEN
