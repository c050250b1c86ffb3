"""The same model with the same weights for `zoo bench whisper --peers`: transformers and CTranslate2.

Imported in the peers' own processes alone.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from zoo.bench.case import Run
from zoo.bench.inputs import threads
from zoo.whisper.bench import END, NO_TIMESTAMPS, PROMPT, SHAPES, Weights, features
from zoo.whisper.config import WhisperConfig

FIELDS = ("vocab_size", "num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim",
          "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "max_source_positions",
          "max_target_positions", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")  # fmt: skip

# --- transformers -----------------------------------------------------------------------------------------------------


def _transformers(shape: WhisperConfig) -> Any:
    import torch
    import transformers

    torch.set_num_threads(threads())
    config: Any = transformers.WhisperConfig.from_dict({name: getattr(shape, name) for name in FIELDS})
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, array in Weights(shape).items():
            model.get_parameter(name).copy_(torch.from_numpy(np.array(array)))
    return model


def _rounded(model: Any, format: str) -> Any:
    """For int8 torch's dynamic quantisation of the linear layers, the head among them."""
    import torch

    if format == "f32":
        return model
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def encoder_transformers(model: str, format: str) -> Run:
    import torch

    network = _rounded(_transformers(SHAPES[model]), format)
    heard = torch.from_numpy(np.ascontiguousarray(features(SHAPES[model]).T[None]))

    def run() -> Any:
        with torch.inference_mode():
            return network.model.encoder(heard).last_hidden_state[:, :, :8]

    return run


def decoder_transformers(model: str, format: str) -> Run:
    import torch
    from transformers import DynamicCache, EncoderDecoderCache

    network = _rounded(_transformers(SHAPES[model]), format)
    heard = torch.from_numpy(np.ascontiguousarray(features(SHAPES[model]).T[None]))
    with torch.inference_mode():
        encoded = (network.model.encoder(heard).last_hidden_state,)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        network(encoder_outputs=encoded, decoder_input_ids=torch.tensor([PROMPT]), past_key_values=cache)

    def run() -> Any:
        written: list[int] = []
        given = PROMPT
        cache.self_attention_cache.crop(-cache.get_seq_length())
        with torch.inference_mode():
            while given[-1] != END:
                ids = torch.tensor([given])
                logits = network(encoder_outputs=encoded, decoder_input_ids=ids, past_key_values=cache).logits
                given = [int(logits[0, -1].argmax())]
                written += given
        return written

    return run


# --- CTranslate2 ------------------------------------------------------------------------------------------------------


def tokenizer() -> Any:
    """A vocabulary of made-up words with Whisper's special tokens at their places."""
    import tokenizers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {f"\u0120w{i}": i for i in range(len(letters), END)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(letters)} | words, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    languages = ["en", *(f"l{i}" for i in range(1, 99))]
    names = ["endoftext", "startoftranscript", *languages, "translate", "transcribe", "startoflm", "startofprev",
             "nospeech", "notimestamps"]  # fmt: skip
    made.add_special_tokens([f"<|{name}|>" for name in names])
    assert made.token_to_id("<|notimestamps|>") == NO_TIMESTAMPS
    return made


def converted(shape: WhisperConfig, directory: Path) -> Path:
    """Our weights as CTranslate2's converter makes them of a directory of transformers."""
    import ctranslate2

    source = directory / "transformers"
    _transformers(shape).save_pretrained(source)
    tokenizer().save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    ctranslate2.converters.TransformersConverter(str(source)).convert(str(directory / "made"))
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
