"""Makes weights/stable_diffusion: a text-to-image model of handwritten digits, from nothing, on MNIST.

    python scripts/train_stable_diffusion_mnist.py --data DIR      DIR holds the MNIST files

Four stages, each of which goes on where it was stopped: a tokenizer of the captions; an autoencoder between 32 x 32
pixels and 8 x 8 x 4 latents; text encoder and U-Net together on those latents, a tenth of the captions left out; then
200 digits are drawn and shown to the mnist_cnn that ships. The classes are those of the published models, only small.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from zoo import hub
from zoo.core import ops
from zoo.core.random import Generator
from zoo.core.tensor import Tensor
from zoo.data.idx import read_idx
from zoo.data.loader import Loader
from zoo.hub.export import export
from zoo.hub.files import write_json
from zoo.nn import losses
from zoo.stable_diffusion.config import StableDiffusionConfig, TextConfig, UNetConfig, VaeConfig
from zoo.stable_diffusion.model import StableDiffusion
from zoo.stable_diffusion.noising import Noising, squared_error
from zoo.stable_diffusion.pipeline import Picture, Request, generate
from zoo.stable_diffusion.schedulers import from_config
from zoo.stable_diffusion.tokenizer import BEGIN, END, Tokenizer
from zoo.train import AdamW, Learner, RunDirectory, cosine, matrices_only, one_cycle

ROOT = Path(__file__).parents[1]
SEED, TRAIN = 0, 50_000  # the last 10,000 are what mnist_cnn was measured on
VAE_STEPS, STEPS, BATCH = 1_200, 3_600, 64
KL = 1e-6  # of Rombach et al. 2022: just enough to keep the latents together
DROPPED = 0.1
TARGET, DRAWN = 0.95, 200
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = (
    "a handwritten {name}", "a handwritten {digit}", "handwritten {name}", "the digit {digit}", "the digit {name}",
    "the number {name}", "the number {digit}", "a handwritten digit {name}", "a drawing of a {name}", "a {name}",
    "{name}", "{digit}",
)  # fmt: skip
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "algorithm_type": "dpmsolver++",
    "solver_order": 2, "final_sigmas_type": "zero", "lower_order_final": True,
}  # fmt: skip


# --- the tokenizer, and the shape of it all ---------------------------------------------------------------------------


def captions(digit: int) -> list[str]:
    return [text.format(name=NAMES[digit], digit=digit) for text in CAPTIONS]


def make_tokenizer(directory: Path) -> Tokenizer:
    """All bytes, and pairs merged until the captions' words are whole."""
    from tokenizers import Tokenizer as Core
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    core = Core(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1000, min_frequency=1, show_progress=False, initial_alphabet=plain, end_of_word_suffix="</w>"
    )
    words = sorted({word for digit in range(10) for text in captions(digit) for word in text.split()})
    core.train_from_iterator(words, trainer)
    model = json.loads(core.to_str())["model"]
    merged = ["".join(pair) for pair in model["merges"]]
    order = [*plain, *[character + "</w>" for character in plain], *merged, BEGIN, END]
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(order))}
    (directory / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    pairs = ["#version: 0.2", *[" ".join(pair) for pair in model["merges"]]]
    (directory / "merges.txt").write_text("\n".join(pairs) + "\n")
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END}
    (directory / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 24, "do_lower_case": True, **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    return Tokenizer(directory, 24)


def shape(tokens: int) -> StableDiffusionConfig:
    text = TextConfig(
        vocab_size=tokens, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=24, eos_token_id=tokens - 1, projection_dim=64,
    )  # fmt: skip
    unet = UNetConfig(
        sample_size=8, block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2, layers_per_block=1, attention_head_dim=4, cross_attention_dim=64,
        norm_num_groups=8,
    )  # fmt: skip
    vae = VaeConfig(
        block_out_channels=(16, 32, 32), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, norm_num_groups=8, force_upcast=False,
    )  # fmt: skip
    return StableDiffusionConfig(text, unet, vae, scheduler=SCHEDULER)


# --- the autoencoder --------------------------------------------------------------------------------------------------


def to_pixels(pictures: np.ndarray) -> np.ndarray:
    """(B, 28, 28) of 0 ... 255 -> (B, 32, 32, 3) of -1 ... 1, black around."""
    padded = np.pad(pictures, ((0, 0), (2, 2), (2, 2))).astype(np.float32) / 127.5 - 1
    return np.repeat(padded[..., None], 3, axis=-1)


def train_vae(model: StableDiffusion, pictures: np.ndarray, run: Path, steps: int) -> None:
    def with_noise(batch: Any, rng: Generator) -> Any:
        (rows,) = batch
        return to_pixels(rows), rng.normal((len(rows), 8, 8, 4), device="numpy").numpy()

    def loss(vae: Any, batch: Any) -> Tensor:
        pixels, noise = batch
        decoded, moments = vae(pixels, noise)
        variance = ops.exp(moments.log_variance)
        kl = ops.sum(ops.square(moments.mean) + variance - 1.0 - moments.log_variance) * (0.5 / len(pixels))
        return losses.mse(decoded, pixels) + kl * KL

    learner = Learner(
        model.vae, Loader((pictures,), BATCH, seed=SEED, transform=with_noise, drop_last=True), loss=loss,
        optimizer=AdamW(weight_decay=matrices_only(0.01)), schedule=one_cycle(2e-3, steps), clip=1.0, ema=0.99,
        out=run, seed=SEED, settings={"steps": steps},
    )  # fmt: skip
    if RunDirectory(run).checkpoints():
        learner.resume()
    learner.fit(steps=steps)


def moments_of(model: StableDiffusion, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    means, deviations = [], []
    for (rows,) in Loader((pictures,), 250, shuffle=False):
        found = model.vae.encode(zoo.tensor(to_pixels(rows), device=model.device))
        means.append(found.mean.numpy())
        deviations.append(np.exp(found.log_variance.numpy() / 2))
    return np.concatenate(means), np.concatenate(deviations)


# --- text encoder and U-Net -------------------------------------------------------------------------------------------


class Captioned:
    """Latents with a caption each, another one every time."""

    def __init__(self, tokenizer: Tokenizer, noising: Noising):
        self.ids = np.asarray([[tokenizer.encode(text) for text in captions(d)] for d in range(10)], np.int32)
        self.noising = noising

    def __call__(self, batch: Any, rng: Generator) -> Any:
        mean, deviation, digits = batch
        which = rng.integers(0, len(CAPTIONS), len(digits))
        return self.noising((mean, deviation, self.ids[digits, which]), rng)


def loss(model: Any, batch: Any) -> Tensor:
    noisy, times, target, weights, ids = batch
    text, _ = model.encode_text([ids])
    return squared_error(model.unet(noisy, times, text), target, weights)


def train_denoiser(
    model: StableDiffusion, latents: tuple[np.ndarray, ...], tokenizer: Tokenizer, run: Path, steps: int
) -> None:
    model.vae.freeze()
    schedule = from_config(SCHEDULER, "ddim")
    noising = Noising(
        schedule.alphas_cumprod, "v_prediction", model.config.vae.scaling_factor,
        empty=np.asarray(tokenizer.encode("")), drop=DROPPED,
    )  # fmt: skip
    learner = Learner(
        model, Loader(latents, BATCH, seed=SEED, transform=Captioned(tokenizer, noising), drop_last=True), loss=loss,
        optimizer=AdamW(weight_decay=matrices_only(0.01)), schedule=cosine(2e-3, steps, warmup=200, final=2e-5),
        clip=1.0, ema=0.999, out=run, seed=SEED, settings={"steps": steps},
    )  # fmt: skip
    if RunDirectory(run).checkpoints():
        learner.resume()
    learner.fit(steps=steps)
    model.vae.unfreeze()


# --- what ships, and what it draws ------------------------------------------------------------------------------------


def store(model: StableDiffusion, tokenizer: Path, out: Path) -> None:
    """In the layout of diffusers, in float16, with the card of what it draws. Refused below TARGET."""
    with tempfile.TemporaryDirectory() as place:
        ours = hub.save(model, Path(place, "ours"), port="stable_diffusion", dtype=np.float16)
        shutil.copytree(tokenizer, ours / "tokenizer")
        export(ours, Path(place, "published"))
        shutil.copytree(tokenizer, Path(place, "published", "tokenizer"), dirs_exist_ok=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(Path(place, "published"), out)
    share, seconds = recognised(zoo.load(out), DRAWN)
    if share < TARGET:
        raise SystemExit(f"{share:.1%} of {DRAWN} digits recognised, less than the {TARGET:.0%} that ships")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    card = {
        "summary": f"handwritten digits, 32 pixels; mnist_cnn recognises {share:.1%} of {DRAWN}",
        "example": "a handwritten seven",
        "recognised": share,
        "drawn": DRAWN,
        "data": "MNIST (LeCun, Cortes, Burges): the first 50,000 training pictures, with captions made from the labels",
        "recipe": f"scripts/train_stable_diffusion_mnist.py: autoencoder {VAE_STEPS} steps, text encoder and U-Net "
        f"{STEPS} steps of {BATCH}, velocity, zero terminal SNR, {DROPPED:.0%} of captions left out, averaged",
        "seed": SEED,
        "date": datetime.date.today().isoformat(),
        "stored": "float16",
        "licence": "Apache-2.0",
    }
    write_json(out / "card.json", card)
    print(f"{out}: {card['summary']}; {size / 1e6:.2f} MB, {seconds:.3f} s a picture")


def recognised(model: StableDiffusion, count: int, steps: int = 25, guidance: float = 7.5) -> tuple[float, float]:
    """Share of so many drawn digits in which mnist_cnn sees what was asked for, and seconds for each."""
    judge = zoo.load("mnist_cnn").prepare()
    model.prepare()
    right, start = 0, time.perf_counter()
    for digit in range(10):
        seeds = tuple(range(digit * 1000, digit * 1000 + count // 10))
        request = Request(f"a handwritten {NAMES[digit]}", steps=steps, guidance=guidance, seeds=seeds, batch=10)
        found = [event.pixels for event in generate(model, request) if isinstance(event, Picture)]
        grey = (np.stack(found).mean(-1)[:, 2:30, 2:30].clip(-1, 1) + 1) / 2
        logits = judge(zoo.tensor(grey.astype(np.float32), device=judge.device))
        right += int((logits.numpy().argmax(-1) == digit).sum())
    return right / count, (time.perf_counter() - start) / count


# --- all of it --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "stable_diffusion", help="where the run is kept")
    parser.add_argument("--out", type=Path, default=ROOT / "weights" / "stable_diffusion")
    given = parser.parse_args()
    pictures = read_idx(given.data / "train-images-idx3-ubyte.gz")[:TRAIN]
    digits = read_idx(given.data / "train-labels-idx1-ubyte.gz")[:TRAIN].astype(np.int64)

    tokenizer = make_tokenizer(given.run / "tokenizer")
    model = StableDiffusion(shape(tokenizer.end + 1)).init(Generator(SEED), zoo.device("cpu"))
    train_vae(model, pictures, given.run / "vae", VAE_STEPS)
    mean, deviation = moments_of(model, pictures)
    scaling = float(1 / np.sqrt((mean.astype(np.float64) ** 2 + deviation**2).mean() - mean.mean() ** 2))
    print(f"latents: scaling_factor {scaling:.4f}")
    config = StableDiffusionConfig(
        **{**vars(model.config), "vae": VaeConfig(**{**vars(model.config.vae), "scaling_factor": scaling})}
    )
    model.config, model.vae.config = config, config.vae
    train_denoiser(model, (mean, deviation, digits), tokenizer, given.run / "denoiser", STEPS)
    store(model, given.run / "tokenizer", given.out)


if __name__ == "__main__":
    main()
