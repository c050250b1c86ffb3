"""The same model with the same weights for `zoo bench whisper --peers`: transformers, CTranslate2, faster-whisper
(which runs on CTranslate2) and whisper.cpp.

Imported in the peers' own processes alone.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import struct
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from zoo.bench.case import ProcessorOnly, Run
from zoo.bench.inputs import threads
from zoo.bench.peers import torch_here
from zoo.whisper.audio import mel_filters
from zoo.whisper.bench import END, PROMPT, SHAPES, Weights, features, samples, tokenizer
from zoo.whisper.config import WhisperConfig
from zoo.whisper.weights import OPENAI

FIELDS = ("vocab_size", "num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim",
          "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "max_source_positions",
          "max_target_positions", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")  # fmt: skip

# --- transformers -----------------------------------------------------------------------------------------------------


def _transformers(shape: WhisperConfig, device: str = "cpu") -> Any:
    import transformers

    torch = torch_here(device)
    config: Any = transformers.WhisperConfig.from_dict({name: getattr(shape, name) for name in FIELDS})
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, array in Weights(shape).items():
            model.get_parameter(name).copy_(torch.from_numpy(np.array(array)))
    return model.to(device)


def _rounded(model: Any, format: str) -> Any:
    """For int8 torch's dynamic quantisation of the linear layers, the head among them."""
    import torch

    if format != "int8":
        return model.half() if format == "f16" else model
    if model.device.type != "cpu":
        raise ProcessorOnly("torch's dynamic int8 is the processor's")
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def _heard(model: str, network: Any) -> Any:
    """The features, as the network takes them."""
    import torch

    # a network rounded to int8 has no weights that tell a dtype, and takes float32
    dtype = next((w.dtype for w in network.parameters()), torch.float32)
    return torch.from_numpy(np.ascontiguousarray(features(SHAPES[model]).T[None])).to(network.device, dtype)


def encoder_transformers(model: str, format: str, device: str = "cpu") -> Run | dict[str, Run]:
    """On a GPU also compiled."""
    import torch

    network = _rounded(_transformers(SHAPES[model], device), format)
    heard = _heard(model, network)

    def variant(encoder: Any) -> Run:
        def run() -> Any:
            with torch.inference_mode():
                return encoder(heard).last_hidden_state[:, :, :8]

        return run

    eager = variant(network.model.encoder)
    return eager if device == "cpu" else {"": eager, "compiled": variant(torch.compile(network.model.encoder))}


def decoder_transformers(model: str, format: str, device: str = "cpu") -> Run:
    """Not compiled: its caches grow with every token."""
    import torch
    from transformers import DynamicCache, EncoderDecoderCache

    network = _rounded(_transformers(SHAPES[model], device), format)
    heard = _heard(model, network)
    with torch.inference_mode():
        encoded = (network.model.encoder(heard).last_hidden_state,)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        network(encoder_outputs=encoded, decoder_input_ids=torch.tensor([PROMPT], device=device), past_key_values=cache)

    def run() -> Any:
        cache.self_attention_cache.crop(-cache.get_seq_length())
        with torch.inference_mode():
            return _greedy(network, encoded, cache, device)

    return run


def _greedy(network: Any, encoded: Any, cache: Any, device: str) -> list[int]:
    """The text's tokens, one by one, up to the one that ends it."""
    import torch

    written: list[int] = []
    given = PROMPT
    while given[-1] != END:
        ids = torch.tensor([given], device=device)
        logits = network(encoder_outputs=encoded, decoder_input_ids=ids, past_key_values=cache).logits
        given = [int(logits[0, -1].argmax())]
        written += given
    return written


def window_transformers(model: str, format: str, device: str = "cpu") -> Run:
    """The samples of a window as tokens, by its own features, on the device if it is a GPU; without what else its
    generate() does, which only costs time. The ends of the text are no part of what it says."""
    import torch
    from transformers import DynamicCache, EncoderDecoderCache, WhisperFeatureExtractor

    shape = SHAPES[model]
    network = _rounded(_transformers(shape, device), format)
    sound, place = samples(shape), _heard(model, network)
    extractor: Any = WhisperFeatureExtractor(feature_size=shape.num_mel_bins)

    def run() -> Any:
        found = extractor(sound, sampling_rate=16000, return_tensors="pt", device=device).input_features.to(place)
        with torch.inference_mode():
            encoded = (network.model.encoder(found).last_hidden_state,)
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            return _greedy(network, encoded, cache, device)[:-1]

    return run


# --- CTranslate2 ------------------------------------------------------------------------------------------------------


def converted(shape: WhisperConfig, directory: Path) -> Path:
    """Our weights as CTranslate2's converter makes them of a directory of transformers."""
    import ctranslate2

    source = directory / "transformers"
    _transformers(shape).save_pretrained(source)
    tokenizer().save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    ctranslate2.converters.TransformersConverter(str(source)).convert(str(directory / "made"))
    shutil.copyfile(source / "tokenizer.json", directory / "made" / "tokenizer.json")
    return directory / "made"


def _ctranslate2(model: str, format: str) -> tuple[Any, Any]:
    """(model, features). Whatever instructions it finds best for this processor."""
    import ctranslate2

    with tempfile.TemporaryDirectory() as directory:
        made = converted(SHAPES[model], Path(directory))
        kind = {"f32": "float32", "int8": "int8"}[format]
        network = ctranslate2.models.Whisper(str(made), compute_type=kind, intra_threads=threads(), inter_threads=1)
    heard = np.ascontiguousarray(features(SHAPES[model]).T[None])
    return network, ctranslate2.StorageView.from_array(heard)


def encoder_ctranslate2(model: str, format: str) -> Run:
    network, heard = _ctranslate2(model, format)
    return lambda: np.asarray(network.encode(heard))[:, :, :8]


def decoder_ctranslate2(model: str, format: str) -> Run:
    network, heard = _ctranslate2(model, format)
    encoded = network.encode(heard)
    settings = {"beam_size": 1, "suppress_blank": False, "suppress_tokens": None, "max_length": 448}

    def run() -> Any:
        return [*network.generate(encoded, [PROMPT], **settings)[0].sequences_ids[0], END]

    return run


# --- faster-whisper ---------------------------------------------------------------------------------------------------


class _Multilingual:
    """A model of CTranslate2's, which takes our vocabulary for one of English alone: its prompt would be another."""

    is_multilingual = True

    def __init__(self, model: Any):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def window_faster_whisper(model: str, format: str) -> Run:
    from faster_whisper import WhisperModel

    with tempfile.TemporaryDirectory() as directory:
        made = converted(SHAPES[model], Path(directory))
        kind = {"f32": "float32", "int8": "int8"}[format]
        network = WhisperModel(str(made), device="cpu", compute_type=kind, cpu_threads=threads(), num_workers=1)
    network.model = _Multilingual(network.model)
    heard = samples(SHAPES[model])
    settings: dict[str, Any] = {"beam_size": 1, "temperature": 0.0, "without_timestamps": True, "suppress_tokens": [],
                                "condition_on_previous_text": False}  # fmt: skip

    def run() -> Any:
        return [token for s in network.transcribe(heard, language="en", **settings)[0] for token in s.tokens]

    return run


# --- whisper.cpp ------------------------------------------------------------------------------------------------------

GGML, F32, F16, Q8_0 = 0x67676D6C, 0, 1, 8
"""Of its files: the magic number, and kinds of tensors."""
FILES = {"f16": 1, "q8_0": 7 + 2 * 1000}
"""Kinds of files; of rounded ones with the version of the rounding."""


def _blocks(array: np.ndarray) -> bytes:
    """Q8_0: a float16 step and 32 numbers of 8 bits, again and again."""
    groups = array.reshape(-1, 32)
    step = np.abs(groups).max(axis=1, keepdims=True) / 127
    made = np.empty(len(groups), [("step", "<f2"), ("codes", "i1", 32)])
    made["step"], made["codes"] = step[:, 0], np.rint(groups / np.where(step > 0, step, 1))
    return made.tobytes()


def _ggml(path: Path, shape: WhisperConfig, kind: str) -> None:
    """Our weights as whisper.cpp's models/convert-pt-to-ggml.py writes them. kind: one of FILES."""
    c = shape
    filters = mel_filters(c.num_mel_bins).astype(np.float32)
    with path.open("wb") as file:
        file.write(struct.pack("<12i", GGML, c.vocab_size, c.max_source_positions, c.d_model,
                               c.encoder_attention_heads, c.encoder_layers, c.max_target_positions, c.d_model,
                               c.decoder_attention_heads, c.decoder_layers, c.num_mel_bins, FILES[kind]))  # fmt: skip
        file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
        file.write(struct.pack("<i", END))
        core = tokenizer()
        for token in range(END):
            word = core.decode([token]).encode()
            file.write(struct.pack("<i", len(word)) + word)
        for name, array in Weights(shape).items():
            published = str(OPENAI.published(name)[0])
            array = array[:, None] if ".conv" in name and array.ndim == 1 else array
            small = array.ndim == 1 or array.shape[1] == 1 or "positions" in name
            stored = F32 if small else Q8_0 if kind == "q8_0" and ".conv" not in name else F16
            file.write(struct.pack(f"<{3 + array.ndim}i", array.ndim, len(published), stored, *array.shape[::-1]))
            file.write(published.encode())
            values = _blocks(array) if stored == Q8_0 else array.astype([np.float32, np.float16][stored]).tobytes()
            file.write(values)


def window_whisper_cpp(model: str, format: str) -> Run:
    """Its own files are of float16 where ours are of float32."""
    for name in ("ggml-base", "ggml-cpu", "ggml", "whisper"):  # compiled here, it looks for them where that was done
        for library in Path(sysconfig.get_path("platlib")).glob(f"lib{name}.so.?"):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    from pywhispercpp.model import Model

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ggml-model.bin"
        _ggml(path, SHAPES[model], {"f32": "f16", "int8": "q8_0"}[format])
        network = Model(str(path), n_threads=threads(), language="en", no_timestamps=True, temperature_inc=0.0,
                        greedy={"best_of": 1}, no_context=True, suppress_blank=True, print_progress=False,
                        print_realtime=False)  # fmt: skip
    heard = samples(SHAPES[model])

    def run() -> Any:
        return [int(word[1:]) for segment in network.transcribe(heard) for word in segment.text.split()]

    return run
