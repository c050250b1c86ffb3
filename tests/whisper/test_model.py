"""Against transformers: random models of each family of configs, and a real encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.core.errors import ShapeError
from zoo.core.tensor import Tensor
from zoo.hub import load
from zoo.nn import quantize
from zoo.whisper.cache import Cache
from zoo.whisper.config import WhisperConfig
from zoo.whisper.model import Whisper
from zoo.whisper.reference import FAMILIES, SHAPE, config_of, features_of, ids_of

CLOSE = 1e-4
"""Of the largest number: two layers of float32 sums in another order differ by about 1e-6 of it; gelu and the
softmax add the rounding of an exponential."""


def model_of(family: str = "tiny to large-v2", device: str = "cpu") -> Whisper:
    return Whisper(config_of(family)).init(0, device).eval()


def place(model: Whisper, array) -> Tensor:
    array = np.ascontiguousarray(array, np.int32 if np.asarray(array).dtype.kind == "i" else np.float32)
    return Tensor(model.device.from_host(array), model.device)


def off(ours, expected) -> float:
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    return np.abs(ours - expected).max() / np.abs(expected).max()


def reference(family: str, directory: Path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    torch.manual_seed(0)
    settings = {**SHAPE, **FAMILIES[family], "init_std": 0.3}
    theirs = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**settings)).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "norm" in name or name.endswith("bias"):
                p.add_(torch.randn_like(p) * 0.1)
    theirs.save_pretrained(directory)
    return theirs, torch


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_and_logits(tmp_path, family, device, port):
    theirs, torch = reference(family, tmp_path)
    config = config_of(family)
    features, ids = features_of(config), ids_of(config)
    with torch.no_grad():
        expected = theirs(
            input_features=torch.tensor(features.transpose(0, 2, 1)), decoder_input_ids=torch.tensor(ids).long()
        )
    model = load(tmp_path, port=port, device=device)
    assert off(model.encode(place(model, features)), expected.encoder_last_hidden_state) < CLOSE
    assert off(model(place(model, features), place(model, ids)), expected.logits) < CLOSE


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stored_values(family, device):
    """The same, against values that zoo/whisper/reference.py stored, so neither torch nor transformers is needed."""
    stored = np.load(Path(__file__).parent / "reference.npz")
    model = model_of(family, device).prepare()
    features, ids = place(model, features_of(model.config)), place(model, ids_of(model.config))
    assert off(model.encode(features).numpy()[:, ::7], stored[f"{family}/encoded"]) < CLOSE
    assert off(model(features, ids).numpy()[:, ::3], stored[f"{family}/logits"]) < CLOSE


@pytest.mark.parametrize("capacity", [0, 3, 24])
@pytest.mark.parametrize("family", ["tiny to large-v2", "odd sizes"])
def test_tokens_one_by_one_give_the_logits_of_all_at_once(family, capacity):
    model = model_of(family).prepare()
    features, ids = place(model, features_of(model.config)), ids_of(model.config)
    expected = model(features, place(model, ids)).numpy()
    cache = Cache(model, model.encode(features), capacity=capacity)
    found = [model.decode(place(model, ids[:, a:b]), cache).numpy() for a, b in [(0, 4), (4, 5), (5, 6), (6, 11)]]
    assert cache.length == 11 and off(np.concatenate(found, axis=1), expected) < CLOSE
    cache.truncate(5)
    again = model.decode(place(model, ids[:, 5:7]), cache)
    assert cache.length == 7 and off(again, expected[:, 5:7]) < CLOSE


def test_hypotheses_share_what_was_heard():
    """Two windows, three hypotheses each, then two, reordered: each row is what it would be alone."""
    model = model_of().prepare()
    features = features_of(model.config)
    texts = [[[5, 6, 7], [5, 9, 2], [8, 6, 3]], [[4, 4, 4], [11, 12, 13], [4, 90, 1]]]

    def alone(window: int, text: list[int]) -> np.ndarray:
        return model(place(model, features[window : window + 1]), place(model, [text])).numpy()[0]

    cache = Cache(model, model.encode(place(model, features)), capacity=8)
    model.decode(place(model, [[1], [2]]), cache)
    cache.reorder([0, 0, 0, 1, 1, 1])
    rows = [text for window in texts for text in window]
    logits = model.decode(place(model, rows), cache).numpy()
    for row, text in enumerate(rows):
        assert off(logits[row], alone(row // 3, [1 + row // 3, *text])[1:]) < CLOSE
    assert cache.layers[0].cross.keys.shape[0] == 2
    kept = [2, 0, 5, 5]
    cache.reorder(kept)
    logits = model.decode(place(model, [[20], [21], [22], [23]]), cache).numpy()
    for row, old in enumerate(kept):
        assert off(logits[row], alone(row // 2, [1 + row // 2, *rows[old], 20 + row])[-1:]) < CLOSE


def test_cross_weights_are_those_of_transformers(tmp_path, port):
    theirs, torch = reference("turbo and distil: fewer decoder layers", tmp_path)
    config = config_of("turbo and distil: fewer decoder layers")
    features, ids = features_of(config, 1), ids_of(config)[:1]
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        expected = theirs(input_features=torch.tensor(features.transpose(0, 2, 1)),
                          decoder_input_ids=torch.tensor(ids).long(), output_attentions=True)  # fmt: skip
    model = load(tmp_path, port=port, device="cpu")
    encoded = model.encode(place(model, features))
    heads = [(0, 3), (0, 0), (0, 2)]
    found = model.cross_weights(place(model, ids), encoded, heads).numpy()
    assert off(found, np.stack([expected.cross_attentions[layer][0, head] for layer, head in heads])) < CLOSE
    part = model.cross_weights(place(model, ids), encoded, heads, frames=9).numpy()
    assert off(part, found[:, :, :9] / found[:, :, :9].sum(-1, keepdims=True)) < CLOSE


@pytest.mark.parametrize(
    ("kind", "close"),
    [
        ("float16", 2e-3),  # 2^-11 for each weight, averaged over a sum
        ("bfloat16", 1.5e-2),  # 2^-8
        ("int8", 5e-2),  # weights of 127 steps, and activations of each row: about 1 % a layer
    ],
)
def test_narrow_weights(kind, close):
    wide, narrow = model_of(), model_of()
    narrow = quantize(narrow, kind) if kind == "int8" else narrow.astype(kind)
    narrow.prepare()
    features, ids = place(wide, features_of(wide.config)), place(wide, ids_of(wide.config))
    expected, found = wide.encode(features).numpy(), narrow.encode(features).numpy()
    assert 0 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < close
    expected, found = wide(features, ids).numpy(), narrow(features, ids).numpy()
    assert 0 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < close
    cache = Cache(narrow, narrow.encode(features))
    steps = [narrow.decode(ids[:, i : i + 1], cache).numpy() for i in range(ids.shape[1])]
    # one token at a time takes other sums, whose last places decide how rows are rounded to 127 steps
    assert np.abs(np.concatenate(steps, axis=1) - found).max() < close * np.abs(found).max()


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_a_real_encoder_gives_what_was_recorded(device, data):
    """Whisper-base's. The run recorded is that of torch in float32, whose sums are in another order; in 6 layers of
    numbers up to 30 that makes 4.8e-5 with transformers' own code."""
    from safetensors.numpy import load_file

    directory = data / "whisper-base-encoder"
    tensors = load_file(directory / "whisper-base-encoder-fp16.safetensors")
    config = WhisperConfig(vocab_size=2, decoder_layers=1, encoder_layers=6, d_model=512, encoder_attention_heads=8,
                           decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=8)  # fmt: skip
    model = Whisper(config)
    published = {name.removeprefix("model.encoder."): a.astype(np.float32) for name, a in tensors.items()}
    for name in ("conv1.weight", "conv2.weight"):
        published[name] = np.ascontiguousarray(published[name].transpose(0, 2, 1))
    encoder = model.model.encoder.load(published, device=device).prepare()
    x = Tensor(encoder.device.from_host(np.load(directory / "ref_input.npy")[None]), encoder.device)
    x = encoder.layer_norm(x)
    for layer in encoder.layers:
        x = layer(x)
    expected = np.load(directory / "ref_output_pytorch.npy")
    assert np.abs(x.numpy()[0] - expected).max() < 2e-4


@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_is_that_of_transformers(tmp_path, port, recompute):
    theirs, torch = reference("tiny to large-v2", tmp_path)
    config = config_of("tiny to large-v2")
    features, ids = features_of(config), ids_of(config)
    loss = theirs(input_features=torch.tensor(features.transpose(0, 2, 1)), decoder_input_ids=torch.tensor(ids).long(),
                  labels=torch.tensor(ids).long()).loss  # fmt: skip
    loss.backward()
    model = load(tmp_path, port=port, device="cpu")
    live = model.to(zoo.Autodiff(model.device))
    live.recompute = recompute
    logits = live(place(model, features), place(model, ids))
    ours = zoo.nn.losses.cross_entropy(logits, place(model, ids))
    assert abs(ours.item() - loss.item()) < 1e-5 * loss.item()
    grads = ours.backward()
    for path, parameter in live.parameters().items():
        theirs_grad = theirs.get_parameter(path).grad
        if theirs_grad is None:
            assert path == "model.encoder.embed_positions.weight"  # fixed there
            continue
        expected = theirs_grad.numpy()
        expected = expected.transpose(0, 2, 1) if ".conv" in path and expected.ndim == 3 else expected
        assert off(grads[parameter].numpy(), expected) < 1e-3, path  # sums of 600 terms that nearly cancel


def test_what_cannot_be_heard_or_written():
    model = model_of()
    features = features_of(model.config)
    with pytest.raises(ShapeError, match="up to 60 frames, 80"):
        model.encode(place(model, features.transpose(0, 2, 1)))
    with pytest.raises(ShapeError, match="up to 60 frames"):
        model.encode(place(model, np.concatenate([features, features], axis=1)))
    with pytest.raises(ShapeError, match="25 tokens; the model has positions for 24"):
        model(place(model, features), place(model, np.ones((2, 25), np.int32)))
