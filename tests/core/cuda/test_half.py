"""Half precision between layers (docs/cuda.md): with weights in half precision, what goes through a model on the cuda
device is as narrow as they are. Where that is decided, and LLaMA: which ops still see float32, and which casts are
made; how far the answer is from that in float32, beside how far torch's own is in the same dtype. The other ports:
test_half_ports.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from half import CUDA, DTYPES, apart, no_worse, placed, seen

import zoo
from zoo.core.autodiff import Autodiff
from zoo.core.dtype import bfloat16, float16, float32
from zoo.core.fusion import Fusion
from zoo.core.stats import stats
from zoo.core.tensor import Tensor
from zoo.core.testing.emulator import emulated
from zoo.llama.cache import Cache
from zoo.llama.config import LlamaConfig
from zoo.llama.generate import generate
from zoo.llama.model import Llama
from zoo.nn import Conv2d, LayerNorm, Linear, Module, lora, quantize

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data") / "stories260k"

# where it is decided


def test_devices_say_it() -> None:
    for name in DTYPES:
        dtype = zoo.core.dtype.dtype(name)
        assert zoo.device("numpy").activations(dtype) == zoo.device("cpu").activations(dtype) == float32
        assert CUDA.activations(dtype) == Fusion(CUDA).activations(dtype) == dtype
        assert Autodiff(CUDA).activations(dtype) == float32
    assert emulated(75).activations(float16) == float16
    assert emulated(75).activations(bfloat16) == float32  # it would round, and calculate in float32
    assert CUDA.activations(float32) == float32


class Small(Module):
    def __init__(self) -> None:
        self.norm = LayerNorm(16)
        self.first = Linear(16, 16)
        self.conv = Conv2d(16, 16, 1)


def test_a_model_asks_for_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Small().init(0, CUDA).eval()
    assert model.activations == float32
    half = model.astype(float16)
    assert half.activations == float16 and half.to("numpy").activations == float32
    assert half.train().activations == float32  # the optimizer's business: zoo/train/precision.py
    assert half.eval().to(Autodiff(CUDA)).activations == float32
    lora.attach(half, 2)  # the adapter is float32, what it stands beside decides
    assert half.eval().activations == float16
    ids = zoo.tensor([1, 2])
    assert half.entering(ids) is ids
    monkeypatch.setattr(CUDA, "off", {"activations"})
    assert half.activations == float32


# LLaMA


def llama(dtype: str, **changed: Any) -> Llama:
    shape = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return Llama(LlamaConfig(**{**shape, **heads, **changed})).init(0, CUDA).eval().astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_llama_is_narrow_but_for_its_head(dtype: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last row becomes float32, and all behind it: the norm, the head, the logits. The tables of rope, and padding,
    are float32 and widen nothing."""
    model = llama(dtype, tie_word_embeddings=tied).prepare()
    with seen(monkeypatch) as ran:
        logits = model(placed(np.arange(20, dtype=np.int32)[None]), last=1, starts=[3])
    assert logits.dtype == float32
    assert ran.wide == {"linear (96, 64)": 1} and ran.products == 2 * 8 + 1
    assert ran.casts == {"float32 (1, 1, 64)": 1}
    assert ran.other == {"rms_norm (1, 1, 64)": 1}
    counted = stats()
    assert counted["cuda.attention_mma"] == 2 and "cuda.attention_tiles" not in counted
    assert "cuda.gemm_split" not in counted


@pytest.mark.parametrize("kept", [None, "int8"])
def test_llama_writes_with_a_cache_as_narrow(kept: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values come, and lie, in the dtype of the weights. Those of 8 bits are made float32 on the way, as each
    has its scale, and then as narrow as the queries."""
    model = llama("bfloat16")
    cache = Cache(model.config, capacity=32, dtype=kept or model.activations, device=CUDA)
    with seen(monkeypatch) as ran:
        tokens = list(generate(model, [1, 2, 3], max_tokens=3, cache=cache))
    assert len(tokens) == 3
    assert ran.wide == {"linear (96, 64)": 3}
    if kept is None:
        assert cache.layers[0].keys.stored.dtype == bfloat16
        assert ran.casts == {"float32 (1, 1, 64)": 3}
        assert ran.other == {"rms_norm (1, 1, 64)": 3}
    assert stats()["cuda.attention_decode"] == 2 * 3


def test_llama_with_rounded_weights_is_as_narrow_as_the_others() -> None:
    model = quantize(llama("bfloat16"), "int8").prepare()
    assert model.activations == bfloat16
    wide = quantize(llama("bfloat16"), "int8").to("numpy")
    ids = np.arange(12, dtype=np.int32)[None]
    want = wide(Tensor(wide.device.from_host(ids), wide.device)).numpy()
    assert apart(model(placed(ids)).numpy(), want) < 0.03  # both round rows to 8 bits, of values 0.4 % apart


@pytest.mark.parametrize("dtype", DTYPES)
def test_llama_is_as_near_to_float32_as_transformers(dtype: str, tmp_path: Path) -> None:
    """Eight layers, whose residual sums are rounded as theirs are."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = transformers.LlamaConfig(**shape, **heads, initializer_range=0.1)
    theirs = transformers.LlamaForCausalLM(config).eval().to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 96, (2, 24))
    with torch.no_grad():
        narrow = theirs(torch.tensor(ids)).logits.float().numpy()
        wide = theirs.float()(torch.tensor(ids)).logits.numpy()
    model = zoo.load(tmp_path, device=CUDA)
    no_worse(model(placed(ids.astype(np.int32))).numpy(), narrow, wide)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_real_llama_writes_what_transformers_writes_in_the_same_dtype(dtype: str) -> None:
    if not DATA.exists():
        pytest.skip(f"no {DATA} (ZOO_TEST_DATA)")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = zoo.load(DATA / "hf", device=CUDA, dtype=dtype)
    theirs = transformers.LlamaForCausalLM.from_pretrained(DATA / "hf", dtype=getattr(torch, dtype)).eval()
    for case in json.loads((DATA / "expected.json").read_text())["cases"][:2]:
        prompt = case["prompt_ids"]
        with torch.no_grad():
            told = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert list(generate(model, prompt, max_tokens=12)) == told[0, len(prompt) :].tolist()
