"""The same model with the same weights for `zoo bench llama --peers`: transformers and llama.cpp.

Imported in the peers' own processes alone.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.bench.case import Run, Variants
from zoo.bench.inputs import threads
from zoo.bench.peers import torch_here, ways
from zoo.llama.bench import BETAS, CLIP, DECAY, RATE, SEEN, SHAPES, WRITTEN, Weights, ids, texts
from zoo.llama.config import LlamaConfig

# --- transformers -----------------------------------------------------------------------------------------------------


def _transformers(shape: LlamaConfig, kind: str, device: str = "cpu") -> Any:
    """kind: f32, bf16, or "int8": torch's dynamic quantisation of the linear layers."""
    import transformers

    torch = torch_here(device)
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "rms_norm_eps", "max_position_embeddings")  # fmt: skip
    settings = {name: getattr(shape, name) for name in fields}
    config: Any = transformers.LlamaConfig.from_dict(settings | {"attn_implementation": "sdpa"})
    with torch.device("meta"):
        model: Any = transformers.LlamaForCausalLM(config)
    model = model.to(torch.bfloat16 if kind == "bf16" else torch.float32).to_empty(device=device).eval()
    with torch.no_grad():
        for name, array in Weights(shape).items():
            model.get_parameter(name).copy_(torch.from_numpy(np.array(array)))
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)  # its table was on "meta"
    if kind == "int8":
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return model


def _kinds(format: str, device: str) -> tuple[str, ...]:
    """What transformers may take for our format: of the rounded ones, whichever it is fastest with."""
    if device != "cpu" and format in ("int8", "int4"):
        return ("bf16",)  # torch's dynamic int8 is the processor's
    return {"f32": ("f32",), "bf16": ("bf16", "f32")}.get(format, ("int8", "bf16"))


def decode_transformers(model: str, format: str, device: str = "cpu") -> dict[str, Run]:
    """On a GPU also with a static cache and compiled: then a step is a graph of CUDA's."""
    import torch
    from transformers import DynamicCache

    text = torch.tensor([ids(SEEN + WRITTEN)], device=device)

    def variant(kind: str) -> Run:
        network, cache = _transformers(SHAPES[model], kind, device), DynamicCache()
        with torch.inference_mode():
            network(text[:, :SEEN], past_key_values=cache, logits_to_keep=1)

        def run() -> Any:
            with torch.inference_mode():
                for i in range(SEEN, SEEN + WRITTEN):
                    logits = network(text[:, i : i + 1], past_key_values=cache).logits[0, -1]
                cache.crop(-WRITTEN)
            return logits

        return run

    found = {kind: variant(kind) for kind in _kinds(format, device)}
    if device != "cpu":
        network = _transformers(SHAPES[model], _kinds(format, device)[0], device)
        step = torch.compile(network, mode="reduce-overhead")
        found["compiled, static cache"] = static_decode(network, step, text)
    return found


def static_decode(network: Any, step: Any, text: Any) -> Run:
    """The same tokens with a cache that stays where it is. `step`: the network, as it is run for one token."""
    import torch
    from transformers import StaticCache

    cache = StaticCache(config=network.config, max_cache_len=SEEN + WRITTEN)
    with torch.inference_mode():
        network(text[:, :SEEN], past_key_values=cache, logits_to_keep=1)
    ends: list[Any] = [layer.cumulative_length for layer in cache.layers]  # type: ignore[union-attr]

    def run() -> Any:
        with torch.inference_mode():
            for end in ends:
                end.fill_(SEEN)
            for i in range(SEEN, SEEN + WRITTEN):
                logits = step(text[:, i : i + 1], past_key_values=cache).logits[0, -1].clone()
        return logits

    return run


def prompt_transformers(model: str, format: str, tokens: int, device: str = "cpu") -> dict[str, Run]:
    import torch

    text = torch.tensor([ids(tokens)], device=device)

    def variant(kind: str, compiled: bool) -> Run:
        network: Any = _transformers(SHAPES[model], kind, device)
        network = torch.compile(network) if compiled else network

        def run() -> Any:
            with torch.inference_mode():
                return network(text, use_cache=True, logits_to_keep=1).logits[0, -1]

        return run

    return {
        kind + ", compiled" * compiled: variant(kind, compiled)
        for kind in _kinds(format, device)
        for compiled in ways(device)
    }


def train_step(model: str, batch: int, tokens: int, device: str = "cpu") -> Variants:
    """With either of torch's optimizers over many tensors. Compiled it was 1 % faster on a processor, after half a
    minute: on a GPU alone it is tried."""
    import torch

    text = torch.from_numpy(texts(SHAPES[model], batch, tokens)).long().to(device)
    inputs, targets = text[:, :-1].contiguous(), text[:, 1:].reshape(-1)

    def variant(how: str, compiled: bool) -> Run:
        network = _transformers(SHAPES[model], "f32", device).train()
        weights = list(network.parameters())
        groups: list[Any] = [{"params": [w for w in weights if w.ndim > 1], "weight_decay": DECAY},
                             {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0}]  # fmt: skip
        adamw: Any = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, **{how: True})

        network = torch.compile(network) if compiled else network

        def run() -> float:
            logits = network(input_ids=inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
            adamw.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, CLIP, foreach=True)
            adamw.step()
            return loss.item()

        return run

    return Variants({
        f"{how} AdamW" + ", compiled" * compiled: partial(variant, how, compiled)
        for compiled in ways(device)
        for how in ("fused", "foreach")
    })  # fmt: skip


# --- llama.cpp --------------------------------------------------------------------------------------------------------

QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)


def _gguf(path: Path, shape: LlamaConfig, dtype: type) -> None:
    """Our weights as GGUF. Its rows of q and k are in the order of Meta's rotary positions: pairs side by side."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    heads, kv_heads = shape.num_attention_heads, int(shape.num_key_value_heads or 0)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_freq_base(float(shape.rope_theta or 10000.0))
    writer.add_rope_dimension_count(int(shape.head_dim or 0))
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.num_hidden_layers)
    for name, array in Weights(shape).items():
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in name:
                halves = array.reshape(count, 2, -1, array.shape[1])
                array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
        place = str(names.get_name(name, try_suffixes=(".weight",)))
        writer.add_tensor(place, array.astype(dtype) if array.ndim > 1 else np.array(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class _LlamaCpp:
    """A context of llama.cpp. Its files are gone as soon as it has mapped them."""

    def __init__(self, shape: LlamaConfig, format: str, room: int):
        import llama_cpp.llama_cpp as api

        self.api, self.shape = api, shape
        api.llama_log_set(QUIET, ctypes.c_void_p(0))
        api.llama_backend_init()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "model.gguf"
            _gguf(path, shape, np.float32 if format == "f32" else np.float16)
            if format != "f32":
                kinds = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
                settings = api.llama_model_quantize_default_params()
                settings.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kinds[format]}")
                settings.nthread = threads()
                path, source = path.with_name("rounded.gguf"), path
                if api.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(settings)):
                    raise RuntimeError("llama.cpp could not quantise its file")
                source.unlink()
            self.model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = room, 512, 512
        settings.n_threads = settings.n_threads_batch = threads()
        self.context = api.llama_init_from_model(self.model, settings)
        if not self.context:
            raise RuntimeError("llama.cpp made no context")
        self.memory = api.llama_get_memory(self.context)

    def read(self, tokens: list[int]) -> None:
        """Adds tokens to its cache, and works out the logits of the last one."""
        numbers = (self.api.llama_token * len(tokens))(*tokens)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(numbers, len(tokens))):
            raise RuntimeError("llama.cpp could not decode")

    def forget(self, length: int) -> None:
        self.api.llama_memory_seq_rm(self.memory, 0, length, -1)

    def logits(self) -> np.ndarray:
        row = self.api.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(row, shape=(self.shape.vocab_size,)).copy()

    def repeated(self, parts: list[list[int]], after: int) -> Callable[[], np.ndarray]:
        """Reads one part after the other, behind the first `after` tokens that it holds."""

        def run() -> np.ndarray:
            self.forget(after)
            for tokens in parts:
                self.read(tokens)
            return self.logits()

        return run


def decode_llama_cpp(model: str, format: str) -> Run:
    context = _LlamaCpp(SHAPES[model], format, 2 * SEEN)
    text = ids(SEEN + WRITTEN)
    context.read(text[:SEEN])
    return context.repeated([[token] for token in text[SEEN:]], SEEN)


def prompt_llama_cpp(model: str, format: str, tokens: int) -> Run:
    return _LlamaCpp(SHAPES[model], format, tokens).repeated([ids(tokens)], 0)
