"""Both published layouts, there and back; what cannot be used says why."""

from __future__ import annotations

import json

import numpy as np
import pytest

from zoo.core.errors import WeightsError
from zoo.core.tensor import Tensor
from zoo.hub import load, save
from zoo.hub.formats import read
from zoo.whisper.config import WhisperConfig
from zoo.whisper.model import Whisper
from zoo.whisper.weights import OPENAI, TRANSFORMERS

DIMS = {"n_mels": 80, "n_audio_ctx": 20, "n_audio_state": 32, "n_audio_head": 4, "n_audio_layer": 2,
        "n_vocab": 51865, "n_text_ctx": 16, "n_text_state": 32, "n_text_head": 2, "n_text_layer": 1}  # fmt: skip


def openai_tensors(torch, dims: dict) -> dict:
    """Names and shapes of whisper/model.py, written down by hand."""
    width, found = dims["n_audio_state"], {}
    torch.manual_seed(4)

    def add(name: str, *shape: int) -> None:
        found[name] = torch.randn(shape, dtype=torch.float32).to(torch.float16) * 0.2

    def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        add(f"{name}.weight", outputs, inputs)
        if bias:
            add(f"{name}.bias", outputs)

    def attention(name: str) -> None:
        for part in ("query", "key", "value", "out"):
            linear(f"{name}.{part}", width, width, bias=part != "key")
        linear_norm(f"{name}_ln")

    def linear_norm(name: str) -> None:
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)

    add("encoder.positional_embedding", dims["n_audio_ctx"], width)
    for name, inputs in (("conv1", dims["n_mels"]), ("conv2", width)):
        add(f"encoder.{name}.weight", width, inputs, 3)
        add(f"encoder.{name}.bias", width)
    add("decoder.token_embedding.weight", dims["n_vocab"], width)
    add("decoder.positional_embedding", dims["n_text_ctx"], width)
    for side, count in (("encoder", dims["n_audio_layer"]), ("decoder", dims["n_text_layer"])):
        for i in range(count):
            block = f"{side}.blocks.{i}"
            attention(f"{block}.attn")
            if side == "decoder":
                attention(f"{block}.cross_attn")
            linear(f"{block}.mlp.0", width, 4 * width)
            linear(f"{block}.mlp.2", 4 * width, width)
            linear_norm(f"{block}.mlp_ln")
    linear_norm("encoder.ln_post")
    linear_norm("decoder.ln")
    return found


def published(path, dims=DIMS, tensors=None):
    torch = pytest.importorskip("torch", reason="torch is not installed; it writes the files")
    tensors = openai_tensors(torch, DIMS) if tensors is None else tensors
    torch.save({"model_state_dict": tensors} if dims is None else {"dims": dims, "model_state_dict": tensors}, path)
    return tensors


def as_transformers(tensors: dict) -> dict:
    """By transformers' own map (convert_openai_to_hf.py)."""
    pairs = [("blocks", "layers"), ("mlp.0", "fc1"), ("mlp.2", "fc2"), ("mlp_ln", "final_layer_norm"),
             ("cross_attn.query", "encoder_attn.q_proj"), ("cross_attn.key", "encoder_attn.k_proj"),
             ("cross_attn.value", "encoder_attn.v_proj"), ("cross_attn_ln", "encoder_attn_layer_norm"),
             ("cross_attn.out", "encoder_attn.out_proj"), (".attn.query", ".self_attn.q_proj"),
             (".attn.key", ".self_attn.k_proj"), (".attn.value", ".self_attn.v_proj"),
             (".attn_ln", ".self_attn_layer_norm"), (".attn.out", ".self_attn.out_proj"),
             ("decoder.ln.", "decoder.layer_norm."), ("encoder.ln_post.", "encoder.layer_norm."),
             ("token_embedding", "embed_tokens"), ("positional_embedding", "embed_positions.weight")]  # fmt: skip
    found = {}
    for name, tensor in tensors.items():
        for theirs, ours in pairs:
            name = name.replace(theirs, ours)
        found[f"model.{name}"] = tensor
    return found


def test_openais_file_says_what_transformers_says(tmp_path, port):
    tensors = published(tmp_path / "small.pt")
    import torch
    import transformers

    theirs = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(
        vocab_size=51865, d_model=32, encoder_layers=2, encoder_attention_heads=4, decoder_layers=1,
        decoder_attention_heads=2, encoder_ffn_dim=128, decoder_ffn_dim=128, max_source_positions=20,
        max_target_positions=16)).eval()  # fmt: skip
    state = {name: tensor.float() for name, tensor in as_transformers(tensors).items()}
    theirs.load_state_dict({**state, "proj_out.weight": state["model.decoder.embed_tokens.weight"]})
    features = np.random.default_rng(0).normal(size=(1, 40, 80)).astype(np.float32)
    ids = np.array([[50258, 50259, 7]], np.int32)
    with torch.no_grad():
        expected = theirs(input_features=torch.tensor(features.transpose(0, 2, 1)),
                          decoder_input_ids=torch.tensor(ids).long()).logits.numpy()  # fmt: skip
    model = load(tmp_path / "small.pt", port=port, device="cpu")
    assert {meta.dtype.name for meta in model.spec().values()} == {"float16"}
    c = model.config
    assert (c.layout, c.decoder_start_token_id, c.eos_token_id, c.frames) == ("openai", 50258, 50257, 40)
    wide = model.astype("float32")
    place = wide.device.from_host
    logits = wide(Tensor(place(features), wide.device), Tensor(place(ids), wide.device)).numpy()
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_there_and_back_is_the_same(tmp_path, port):
    tensors = published(tmp_path / "small.pt")
    model = load(tmp_path / "small.pt", port=port, device="numpy")
    save(model, tmp_path / "kept", port="whisper")
    kept = load(tmp_path / "kept", port=port, device="numpy")
    assert kept.config == model.config
    ours = {name: tensor.numpy() for name, tensor in kept.state().items()}
    back = dict(OPENAI.export(ours, kept.config).translate(ours))
    assert set(back) == set(tensors)
    assert all(np.ascontiguousarray(back[name]).tobytes() == t.numpy().tobytes() for name, t in tensors.items())


@pytest.mark.parametrize("tied", [True, False])
def test_a_directory_of_transformers_there_and_back(tmp_path, port, tied):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it writes the files")
    config = transformers.WhisperConfig(vocab_size=60, d_model=16, encoder_layers=1, encoder_attention_heads=2,
                                        decoder_layers=2, decoder_attention_heads=2, encoder_ffn_dim=24,
                                        decoder_ffn_dim=24, max_source_positions=10, max_target_positions=12,
                                        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
                                        tie_word_embeddings=tied)  # fmt: skip
    theirs = transformers.WhisperForConditionalGeneration(config)
    theirs.save_pretrained(tmp_path / "theirs")
    beside = {"generation_config.json": '{"no_timestamps_token_id": 50}', "normalizer.json": "{}", "merges.txt": "",
              "vocab.json": "{}", "added_tokens.json": "{}", "preprocessor_config.json": "{}"}  # fmt: skip
    for name, text in beside.items():
        (tmp_path / "theirs" / name).write_text(text)
    model = load(tmp_path / "theirs", port=port, device="numpy")
    assert model.config.tie_word_embeddings is tied and model.config.max_source_positions == 10
    save(model, tmp_path / "ours", port="whisper")
    for name, text in beside.items():
        assert (tmp_path / "ours" / name).read_text() == text
    kept = load(tmp_path / "ours", port=port, device="numpy")
    ours = {name: tensor.numpy() for name, tensor in kept.state().items()}
    back = dict(TRANSFORMERS.export(ours, kept.config).translate(ours))
    with read(tmp_path / "theirs" / "model.safetensors") as source:
        assert set(back) == set(source)
        assert all(np.ascontiguousarray(back[name]).tobytes() == source[name].tobytes() for name in source)


@pytest.mark.parametrize(
    ("dims", "why"),
    [
        (None, "no `dims` to say how many heads"),
        ({name: n for name, n in DIMS.items() if name != "n_text_head"}, "its dims lack 'n_text_head'"),
        ({**DIMS, "n_audio_head": 5}, "does not divide among encoder_attention_heads = 5"),
        ({**DIMS, "n_mels": "many"}, "must be a whole number"),
        ({**DIMS, "n_vocab": [1]}, "no `dims`"),
        ({**DIMS, "n_text_state": 64}, "of different width"),
        ({**DIMS, "n_text_layer": 2}, "decoder.blocks.1"),
    ],
)
def test_openai_files_that_cannot_be_used(tmp_path, port, dims, why):
    published(tmp_path / "small.pt", dims)
    with pytest.raises(WeightsError, match=why) as raised:
        load(tmp_path / "small.pt", port=port, device="numpy")
    assert raised.value.why and raised.value.fix


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"encoder_layers": 0}, "encoder_layers = 0"), ({"decoder_attention_heads": 7}, "does not divide"),
     ({"d_model": "x"}, "d_model = 'x'"), ({"num_mel_bins": 128}, "1 tensor does not fit whisper")],
)  # fmt: skip
def test_a_config_that_makes_no_sense(tmp_path, port, changed, why):
    settings = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50, "max_source_positions": 10}
    save(Whisper(WhisperConfig(**settings, encoder_attention_heads=2, decoder_attention_heads=2)).init(0, "numpy"),
         tmp_path, port="whisper")  # fmt: skip
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(WeightsError, match=why):
        load(tmp_path, port=port, device="numpy")


def test_files_of_other_models_are_not_taken_for_it():
    assert WhisperConfig.from_metadata({}, {"conv1.weight": None}) is None
