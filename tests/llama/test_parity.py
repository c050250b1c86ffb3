"""Against transformers' LlamaForCausalLM: random models of each family of configs, and a real one."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.core.tensor import Tensor
from zoo.hub import load
from zoo.llama.cache import Cache
from zoo.llama.config import LlamaConfig
from zoo.llama.generate import generate
from zoo.llama.model import Llama
from zoo.llama.reference import FAMILIES, IDS, SHAPE
from zoo.llama.reference import model_of as of_family

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data") / "stories260k"
TINY = {**SHAPE, "initializer_range": 0.3}


def reference(config: dict, directory: Path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**copy.deepcopy(config))
    ).eval()  # it edits rope_scaling
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if name.endswith(("norm.weight", ".bias")):
                p.add_(torch.randn_like(p) * 0.1)
    theirs.save_pretrained(directory)
    return theirs, torch


def ids_of(model, array) -> Tensor:
    return Tensor(model.device.from_host(np.asarray(array, np.int32)), model.device)


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits(tmp_path, family, device):
    """1e-4 of the largest logit: two layers of float32 sums in another order differ by about 1e-6 of it; rope angles of
    40 positions add the rounding of a cosine."""
    theirs, torch = reference({**TINY, **FAMILIES[family]}, tmp_path)
    ids = np.random.default_rng(1).integers(0, 97, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    model = load(tmp_path, device=device)
    logits = model(ids_of(model, ids)).numpy()
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stored_logits(family, device):
    """The same, against values that zoo/llama/reference.py stored, so neither torch nor transformers is needed."""
    expected = np.load(Path(__file__).parent / "reference.npz")[family]
    model = of_family(family, device)
    logits = model(ids_of(model, IDS)).numpy()[:, ::13]
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["llama 3.2, SmolLM: tied", "dynamic"])
def test_greedy_tokens_are_theirs_with_a_cache_and_without(tmp_path, family):
    config = {**TINY, **FAMILIES[family], "max_position_embeddings": 160, "bos_token_id": None, "eos_token_id": None}
    theirs, torch = reference(config, tmp_path)
    prompt = [5, 17, 3, 80, 41]
    with torch.no_grad():
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=128, do_sample=False, pad_token_id=0)
    model = load(tmp_path, device="cpu").prepare()
    tokens = list(generate(model, prompt, max_tokens=128))
    assert tokens == expected[0, 5:].tolist() and len(tokens) == 128
    without = list(prompt)
    for _ in range(128):
        without.append(int(model(ids_of(model, [without]), last=True).numpy()[0, -1].argmax()))
    assert without[5:] == tokens


def golden() -> list[dict]:
    if not DATA.exists():
        pytest.skip(f"no {DATA} (ZOO_TEST_DATA)")
    return json.loads((DATA / "expected.json").read_text())["cases"]


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_a_real_model_writes_the_known_ids(device):
    model = load(DATA / "hf", device=device).prepare()
    for case in golden():
        prompt, expected = case["prompt_ids"], case["ids"]
        assert [*prompt, *generate(model, prompt, max_tokens=len(expected) - len(prompt))] == expected
        logits = model(ids_of(model, [prompt]), last=True).numpy()[0, 0]
        assert np.allclose(logits[:16], case["logits_last_prompt_token_first16"], rtol=0, atol=1e-4)


def model_of(**changed) -> Llama:
    return Llama(LlamaConfig(**{**{k: v for k, v in TINY.items() if k != "initializer_range"}, **changed})).init(
        0, "cpu"
    )


def test_a_prompt_in_parts_gives_the_logits_of_the_whole(monkeypatch):
    model = model_of(num_key_value_heads=2)
    prompt = np.random.default_rng(0).integers(0, 97, 50).tolist()
    whole = list(generate(model, prompt, max_tokens=10))
    monkeypatch.setattr("zoo.llama.generate.PREFILL", 7)
    assert list(generate(model, prompt, max_tokens=10)) == whole


def test_texts_of_different_length_in_one_batch():
    model = model_of()
    texts = [[3, 4, 5, 6, 7, 8], [9, 10, 11]]
    batch = [texts[0], [0, 0, 0, *texts[1]]]
    cache = Cache(model.config, batch=2, device=model.device)
    together = model(ids_of(model, batch), cache, last=True, starts=[0, 3]).numpy()
    together_next = model(ids_of(model, [[20], [21]]), cache, last=True, starts=[0, 3]).numpy()
    for i, text in enumerate(texts):
        assert np.allclose(together[i, 0], model(ids_of(model, [text]), last=True).numpy()[0, 0], atol=1e-5)
        alone = model(ids_of(model, [[*text, 20 + i]]), last=True).numpy()[0, 0]
        assert np.allclose(together_next[i, 0], alone, atol=1e-5)


def test_a_cache_that_knows_the_beginning_saves_its_work():
    model = model_of()
    prompt = [5, 6, 7, 8]
    cache = Cache(model.config, device=model.device)
    first = list(generate(model, prompt, max_tokens=6, cache=cache))
    assert cache.length == 9  # all but the last token
    longer = [*prompt, *first, 30, 31]
    cache.truncate(10)
    again = list(generate(model, longer, max_tokens=6, cache=cache))
    assert again == list(generate(model, longer, max_tokens=6))


def test_the_gradient_reaches_every_parameter():
    model = model_of(tie_word_embeddings=True)
    live = model.to(zoo.Autodiff(model.device))
    logits = live(ids_of(model, [[1, 2, 3, 4]]))
    grads = zoo.nn.losses.cross_entropy(logits, zoo.tensor([[2, 3, 4, 5]], device=model.device)).backward()
    for path, parameter in live.parameters().items():
        assert np.abs(grads[parameter].numpy()).max() > 0, path
