"""Half precision between layers, in every port but LLaMA (test_half.py): tiny random models."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from half import CUDA, DTYPES, apart, no_worse, placed, seen

import zoo
from zoo.bert import reference as bert
from zoo.core.dtype import float16, float32
from zoo.core.prim import Meta
from zoo.core.stats import stats
from zoo.hub import load
from zoo.mnist_cnn.config import MnistConfig
from zoo.mnist_cnn.model import MnistCNN
from zoo.port import Port
from zoo.resnet.config import ResNetConfig
from zoo.resnet.model import ResNet
from zoo.resnet.reference import torch_net
from zoo.resnet.weights import TORCHVISION
from zoo.stable_diffusion import reference as sd
from zoo.stable_diffusion.config import StableDiffusionConfig, UNetConfig
from zoo.stable_diffusion.decoding import decode
from zoo.stable_diffusion.model import StableDiffusion
from zoo.stable_diffusion.taesd import TinyVae, TinyVaeConfig
from zoo.stable_diffusion.unet import UNet
from zoo.stable_diffusion.weights import documents, table
from zoo.whisper.cache import Cache
from zoo.whisper.config import WhisperConfig
from zoo.whisper.model import Whisper
from zoo.whisper.reference import SHAPE

SD = Port("stable_diffusion", "", StableDiffusionConfig, StableDiffusion, table, print, documents=documents)


def normal(*shape: int) -> Any:
    return placed(np.random.default_rng(0).normal(size=shape).astype(np.float32))


# Stable Diffusion


@pytest.mark.parametrize("dtype", DTYPES)
def test_unet(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is worked out in float32, in a row; latents, text and that row are made narrow, the prediction wide."""
    config = UNetConfig(block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=16, norm_num_groups=8,
                        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    unet = UNet(config).init(0, CUDA).eval().astype(dtype).prepare()
    with seen(monkeypatch) as ran:
        found = unet(normal(2, 8, 8, 4), placed(np.array([500], np.float32)), normal(2, 20, 16))
    assert found.dtype == float32
    assert ran.wide == {"linear (128, 32)": 1, "linear (128, 128)": 1}
    assert ran.casts == {f"{dtype} (2, 8, 8, 4)": 1, f"{dtype} (2, 20, 16)": 1, f"{dtype} (1, 128)": 1,
                         "float32 (2, 8, 8, 4)": 1}  # fmt: skip
    assert all(shape in ("(16,)", "(1, 1)", "(1, 16)", "(1, 128)") for shape in (k.split(" ", 1)[1] for k in ran.other))
    counted = stats()
    assert counted["cuda.conv_mma"] > 8 and not {"cuda.conv_mixed", "cuda.conv_fma"} & counted.keys()
    assert counted["cuda.attention_mma"] + counted["cuda.attention_decode"] == 8  # of 64 and of 16 pixels


@pytest.mark.parametrize("dtype", DTYPES)
def test_vae_with_a_head_of_512(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one head of the middle is wider than the kernels of attention take: two products in half precision."""
    config = {"block_out_channels": (16, 272), "norm_num_groups": 8, "layers_per_block": 1}
    vae = type(sd.model_of("1", "numpy").vae)(type(sd.VAE)(**{**vars(sd.VAE), **config})).init(0, CUDA).eval()
    narrow = vae.astype(dtype)
    with seen(monkeypatch) as ran:
        found = narrow.decode(normal(1, 5, 4, 4))
    assert found.dtype == float32 and stats()["cuda.attention_wide"] == 1
    scores = "(1, 1, 20, 20)"
    assert ran.casts == {f"{dtype} (1, 5, 4, 4)": 1, f"{dtype} {scores}": 1, "float32 (1, 10, 8, 3)": 1}
    assert not ran.wide and ran.other == {f"softmax {scores}": 1}
    want = narrow.to("numpy").decode(zoo.tensor(normal(1, 5, 4, 4).numpy(), device="numpy")).numpy()
    assert apart(found.numpy(), want) < {"bfloat16": 0.02, "float16": 0.0025}[dtype]  # six roundings of 0.2 or 0.03 %


@pytest.mark.parametrize("dtype", DTYPES)
def test_encoders_and_the_fast_autoencoder(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sd.model_of("xl", CUDA).astype(dtype)
    widths = {f"{half}_block_out_channels": (16, 16) for half in ("encoder", "decoder")}
    depths = {f"num_{half}_blocks": (1, 1) for half in ("encoder", "decoder")}
    tiny = TinyVae(TinyVaeConfig(**widths, **depths)).init(0, CUDA).eval().astype(dtype)  # type: ignore[arg-type]
    ids = placed(sd.IDS[:, :20])
    with seen(monkeypatch) as ran:
        text, pooled = model.encode_text([ids, ids])
        moments = [vae.encode(normal(1, 16, 16, 3)) for vae in (model.vae, tiny)]
        pixels = tiny.decode(normal(1, 4, 4, 4))
    assert {x.dtype for x in (text, pooled, *moments[0], *moments[1], pixels)} == {float32}
    assert not ran.wide
    between = Counter(key.split(" ")[0] for key in ran.casts.elements())
    assert between == {dtype: 3, "float32": 6 + 2 + 1}  # pictures and latents; each encoder's three; what comes out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["1", "xl"])
def test_stable_diffusion_is_as_near_to_float32_as_diffusers(family: str, dtype: str, tmp_path: Path) -> None:
    """Text encoder, U-Net beside its text, autoencoder. SDXL's pooled text is 20 numbers: too few to compare errors."""
    for module in ("torch", "diffusers", "transformers"):
        pytest.importorskip(module)
    directory = sd.save_random(family, tmp_path)
    narrow, wide = sd.theirs(directory, dtype, dtype), sd.theirs(directory, dtype)
    ours = sd.ours(load(directory, port=SD, device=CUDA, dtype=dtype))
    for name in ours:
        if name != "pooled":
            no_worse(ours[name], narrow[name], wide[name])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the emulated cuBLAS
def test_an_autoencoder_that_overflows_decodes_again() -> None:
    """As SDXL's does: in float16 sums pass 65504, in float32 they do not."""
    vae = sd.model_of("1", CUDA).vae
    vae.decoder.conv_in.weight = vae.decoder.conv_in.weight * 3e5
    narrow = vae.astype(float16)
    pixels, warning = decode(narrow, normal(1, 6, 5, 4))
    assert np.isfinite(pixels).all() and "again in float32" in warning
    want, none = decode(narrow.to("numpy"), zoo.tensor(normal(1, 6, 5, 4).numpy(), device="numpy"))
    assert not none and apart(pixels, want) < 1e-4
    assert decode(sd.model_of("1", CUDA).vae.astype(float16), normal(1, 6, 5, 4))[1] == ""


# Whisper


def whisper(dtype: str) -> Whisper:
    return Whisper(WhisperConfig(**{**SHAPE, "d_model": 64})).init(0, CUDA).eval().astype(dtype).prepare()  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
def test_whisper(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are made narrow, the last position wide; keys and values of audio and text are kept as they come."""
    model = whisper(dtype)
    with seen(monkeypatch) as ran:
        encoded = model.encode(normal(1, 60, 80))
        cache = Cache(model, encoded, capacity=24)
        for ids in ([1, 2, 3], [4]):
            logits = model.decode(placed(np.array([ids], np.int32)), cache, last=1)
    assert logits.dtype == float32 and model.activations == encoded.dtype
    assert ran.wide == {"linear (97, 64)": 2}
    assert ran.casts == {f"{dtype} (1, 60, 80)": 1, "float32 (1, 1, 64)": 2}
    assert ran.other == {"layer_norm (1, 1, 64)": 2}
    layer = cache.layers[0]
    assert layer.stored is not None
    assert {x.dtype for x in (*layer.stored, *layer.cross)} == {encoded.dtype}
    counted = stats()
    assert counted["cuda.conv_mma"] == 2 and counted["cuda.attention_mma"] == 2


def test_where_whisper_looks_is_told_in_float32() -> None:
    model = whisper("bfloat16")
    ids = np.array([[1, 2, 3]], np.int32)
    found = model.cross_weights(placed(ids), model.encode(normal(1, 60, 80)), [(0, 1), (1, 0)])
    assert found.dtype == float32
    assert abs(found.numpy().sum(axis=-1) - 1).max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_whisper_is_as_near_to_float32_as_transformers(dtype: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.WhisperConfig(**{**SHAPE, "d_model": 64}, init_std=0.1)
    theirs = transformers.WhisperForConditionalGeneration(config).eval().to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)
    features, ids = normal(2, 60, 80), np.random.default_rng(1).integers(2, 97, (2, 12))

    def told(module: Any, narrow: Any) -> np.ndarray:
        heard = torch.tensor(features.numpy().transpose(0, 2, 1).copy()).to(narrow)
        with torch.no_grad():
            return module(input_features=heard, decoder_input_ids=torch.tensor(ids)).logits.float().numpy()

    narrow, wide = told(theirs, getattr(torch, dtype)), told(theirs.float(), torch.float32)
    model = load(tmp_path, port="whisper", device=CUDA)
    no_worse(model(features, placed(ids.astype(np.int32))).numpy(), narrow, wide)


# pictures, and BERT


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_resnet(kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are made narrow, the last map wide: the mean over it and the classes are float32. Norms that are folded
    leave weights as narrow, worked out in float32. As near to float32 as torch, folded too."""
    torch = pytest.importorskip("torch")
    config = ResNetConfig(embedding_size=16, hidden_sizes=(32, 64), depths=(1, 1), layer_type=kind, num_labels=50)
    torch.manual_seed(0)
    net = torch_net(config).eval()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if "bn" in name or "downsample.1" in name:
                value.uniform_(0.5, 1.5) if value.is_floating_point() else None
    net = net.to(getattr(torch, dtype))
    published = {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in net.state_dict().items()}
    empty = ResNet(config)
    plan = TORCHVISION.load({k: Meta(v.shape, v.dtype) for k, v in published.items()}, empty.spec(), config)
    model = empty.load(dict(plan.translate(published)), device=CUDA, dtype=dtype).eval()
    pictures = normal(2, 32, 32, 3)
    x = torch.tensor(pictures.numpy().transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        narrow, wide = net(x.to(getattr(torch, dtype))).float().numpy(), net.float()(x).numpy()
    for prepared in (False, True):
        model = model.prepare() if prepared else model
        with seen(monkeypatch) as ran:
            logits = model(pictures)
        assert ran.wide == {"linear (50, 64)": 1}
        assert ran.casts == {f"{dtype} (2, 32, 32, 3)": 1, "float32 (2, 4, 4, 64)": 1}
        assert ran.other == {"mean (2, 4, 4, 64)": 1}
        assert "cuda.conv_mixed" not in stats() and "cuda.gemm_split" not in stats()
        no_worse(logits.numpy(), narrow, wide)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mnist_cnn(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MnistCNN(MnistConfig()).init(0, CUDA).eval().astype(dtype).prepare()
    pictures = np.random.default_rng(0).random((1, 28, 28)).astype(np.float32)
    with seen(monkeypatch) as ran:
        logits = model(placed(pictures))
    assert ran.wide == {"linear (10, 128)": 1}
    assert ran.casts == {f"{dtype} (1, 28, 28, 1)": 1, "float32 (1, 128)": 1}
    want = model.to("numpy")(zoo.tensor(pictures, device="numpy")).numpy()
    assert apart(logits.numpy(), want) < {"bfloat16": 0.02, "float16": 0.0025}[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_bert(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.BertModel(transformers.BertConfig(**bert.SHAPE, initializer_range=0.1)).eval()
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    narrow = bert.hidden(theirs, bert.IDS, bert.MASK)
    wide = bert.hidden(theirs.float(), bert.IDS, bert.MASK)
    model = load(tmp_path, port="bert", device=CUDA)
    with seen(monkeypatch) as ran:
        found = model(placed(bert.IDS), placed(bert.MASK)).numpy()
    assert not ran.wide and ran.casts == {"float32 (2, 24, 32)": 1} and ran.other == {"log (2, 24)": 1}
    no_worse(found, narrow, wide)
