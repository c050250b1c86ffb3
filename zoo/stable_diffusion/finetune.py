"""Training on one's own pictures: data -> loss, in the Learner's terms. A LoRA adapter of the U-Net, or all of it.

The VAE and the text encoders stay; what they make of pictures and captions is worked out once, before.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.errors import DataError, ZooError
from zoo.core.random import Generator
from zoo.core.tensor import Tensor
from zoo.data.bad import BadRow, Skipped
from zoo.stable_diffusion import captioned, pipeline
from zoo.stable_diffusion.captioned import Pair
from zoo.stable_diffusion.noising import Noising, squared_error
from zoo.stable_diffusion.pipeline import Picture, Request
from zoo.stable_diffusion.prompt import tell
from zoo.stable_diffusion.schedulers import from_config
from zoo.stable_diffusion.tokenizer import Tokenizer
from zoo.stable_diffusion.unet import Added
from zoo.train import AdamW, Training
from zoo.train.recipe import recipe

TARGETS = ("to_q", "to_k", "to_v", "to_out")
"""Layers that LoRA goes around: those of every attention, as diffusers' training scripts have it."""
PRIOR_STEPS, PRIOR_GUIDANCE = 50, 7.5
TRAINING = Training(
    epochs=10,
    batch=1,
    schedule="constant",
    warmup=0,
    out=Path("runs/stable_diffusion"),
    without=("patience",),
)


@dataclass(frozen=True)
class Trained:
    """What a run gave: mean losses of its first and its last epoch."""

    out: Path
    pictures: int
    epochs: int
    steps: int
    first_loss: float
    loss: float
    trainable: int

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "out": str(self.out)}

    def __str__(self) -> str:
        return f"{self.out}: loss {self.loss:.4f} after {self.steps} steps, {self.first_loss:.4f} in the first epoch"


def loss(unet: Any, batch: Any) -> Tensor:
    """Mean squared error of what the U-Net says of noisy latents, each picture's times its weight."""
    noisy, times, target, weights, text, *added = batch
    return squared_error(unet(noisy, times, text, Added(*added) if added else None), target, weights)


@dataclass(frozen=True)
class Told:
    """Rows for a Loader: latents' mean and deviation, and the number of what each picture is told."""

    mean: np.ndarray
    deviation: np.ndarray
    which: np.ndarray
    prior: Told | None = None

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, rows: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows; behind them, where there is a prior, as many of it."""
        own = (self.mean[rows], self.deviation[rows], self.which[rows])
        if self.prior is None:
            return own
        other = self.prior[np.asarray(rows) % len(self.prior)]
        return tuple(np.concatenate(pair) for pair in zip(own, other, strict=True))  # type: ignore[return-value]


class Batches:
    """A Loader's transform: noise, and texts in the place of their numbers. The text numbered 0 is the empty one."""

    def __init__(self, noising: Noising, texts: Sequence[np.ndarray], sizes: np.ndarray | None, prior: float | None):
        """texts: hidden states (T, S, D), and SDXL's pooled (T, P). prior: weight of the rows behind the own ones."""
        self.noising, self.texts, self.sizes, self.prior = noising, texts, sizes, prior

    def __call__(self, batch: Any, rng: Generator) -> Any:
        mean, deviation, which = batch
        noisy, times, target, weights, which = self.noising((mean, deviation, which[:, None]), rng)
        if self.prior is not None:  # a mean over own rows plus `prior` times one over the others, as one mean over both
            half = len(weights) // 2
            weights = weights * np.where(np.arange(len(weights)) < half, 2, 2 * self.prior).astype(np.float32)
        told = [part[which[:, 0]] for part in self.texts]
        if self.sizes is not None:
            told.append(np.tile(self.sizes, (len(mean), 1)))
        return noisy, times, target, weights, *told


@recipe("stable_diffusion")
def finetune(
    model: Any,
    *,
    data: Path,
    prompt: str | None = None,
    size: int | None = None,
    mirror: bool = False,
    drop: float = 0.0,
    min_snr: float = 0.0,
    prior: str | None = None,
    prior_data: Path | None = None,
    prior_count: int = 100,
    prior_weight: float = 1.0,
    training: Training = TRAINING,
    quiet: bool = False,
) -> Iterator[Trained]:
    """Train on your own pictures and their captions.

    data: a directory of pictures with a .txt beside each, or rows of file_name and text, as in metadata.jsonl
        (docs/data.md)
    prompt: of pictures without a caption ("a photo of sks dog")
    batch: pictures per step
    lr: highest learning rate; without it, 1e-5, or 1e-4 with --lora
    lora: rank of an adapter, which is trained beside weights that stay; 0 trains the whole U-Net
    size: side of the squares that pictures are cut to; without it, what the model was trained on
    mirror: show each picture mirrored too
    drop: share of the captions left out; 0.1 where guidance must be learned
    min_snr: weigh the loss by min(snr, this) / snr, for faster training; 5 is usual, 0 does not
    ema: decay of a moving average of the weights, which is then what is kept; 0.9999 is usual, 0 does not
    prior: of what kind the pictures are ("a photo of a dog"): pictures of it are learned beside, so that it stays
        what it was
    prior_data: pictures for --prior; without it, the model draws them first
    prior_count: how many it draws
    prior_weight: of their loss
    """
    from zoo import hub
    from zoo.hub import adapter

    if not 0 <= drop < 1 or prior_count < 1:
        why = "--drop lies in 0 to 1, --prior-count is at least 1"
        raise ZooError("cannot train like that", why, "Correct them.")
    if model.unet.config.in_channels != model.vae.config.latent_channels:
        why = "its unet fills holes in pictures, which needs masks"
        raise ZooError("these weights cannot be tuned here", why, "Start from a text-to-image checkpoint.")
    width, _ = pipeline.checked_size(model, size, size)
    skipped = training.skipped()
    pairs = captioned.read(data, prompt, skipped)
    if training.estimate and prior is not None:
        others = pairs  # as many rows to a batch, and nothing to draw
    else:
        others = _prior(model, prior, prior_data, prior_count, width, training.seed, training.out, quiet)
    captions = list(dict.fromkeys(["", *(pair.caption for pair in [*pairs, *others])]))
    texts = _texts(model, captions)
    sizes = None
    if len(texts) > 1:
        sizes = np.asarray([[width, width, 0, 0, width, width]], np.float32)
    number = {caption: i for i, caption in enumerate(captions)}
    behind = _rows(model, others, number, width, skipped) if others else None
    rows = _rows(model, pairs, number, width, skipped, mirror, behind)

    scheduler = from_config(pipeline.scheduler_config(model), "ddpm")
    noising = Noising(
        scheduler.alphas_cumprod, scheduler.config.prediction_type, model.vae.config.scaling_factor,
        empty=np.zeros(1, np.int32), drop=drop, min_snr=min_snr,
    )  # fmt: skip
    out = training.out
    unet = model.unet if training.lora else model.unet.astype("float32")
    lora = training.adapt(unet, TARGETS, alpha=training.lora)
    unet.recompute = training.checkpoint
    training = training.at(1e-4 if lora else 1e-5)
    transform = Batches(noising, texts, sizes, prior_weight if others else None)
    learner = training.learner(
        unet,
        training.loader(rows, transform=transform, skipped=skipped),
        loss=loss,
        optimizer=AdamW(weight_decay=0.01),
        settings={"size": width, "drop": drop, "min_snr": min_snr, "prior": [prior, prior_weight, len(others)],
                  "captions": captions},
        quiet=quiet,
    )  # fmt: skip
    model.unet = training.fit(learner)
    trainable = sum(parameter.size for parameter in unet.parameters().values())
    epochs, last = len(learner.history), learner.mean_loss
    first = learner.history[0].loss if learner.history else last
    base = None if model.source is None else model.source.shown
    if lora:
        adapter.save(model, out, base or "")
    else:
        card = {"summary": f"tuned on {len(pairs)} pictures", "base": base, "epochs": epochs, "seed": training.seed}
        hub.save(model, out, port="stable_diffusion", card=card)
    yield Trained(out, len(pairs), epochs, learner.step, first, last, trainable)


def _texts(model: Any, captions: Sequence[str]) -> list[np.ndarray]:
    """What the U-Net is told of each, cut off at the encoder's length, as training scripts do."""
    tokenizers = Tokenizer.of(model)
    parts = [tell(model, tokenizers, [_plain(caption)], cut=True) for caption in captions]
    told = [np.concatenate([part.hidden.numpy() for part in parts])]
    if parts[0].pooled is not None:
        told.append(np.concatenate([np.asarray(part.pooled) for part in parts]))
    return told


def _plain(caption: str) -> str:
    """A caption whose brackets are signs of the text."""
    return "".join(f"\\{sign}" if sign in "()[]\\" else sign for sign in caption)


def _rows(
    model: Any, pairs: Sequence[Pair], number: dict[str, int], side: int, skipped: Skipped | None,
    mirror: bool = False, prior: Told | None = None,
) -> Told:  # fmt: skip
    """Latents of pictures, one picture at a time; mirrored ones behind."""
    means: list[np.ndarray] = []
    deviations: list[np.ndarray] = []
    which: list[int] = []
    for mirrored in (False, True)[: 1 + mirror]:
        for pair in pairs:
            try:
                array = np.ascontiguousarray(captioned.pixels(pair.path, (side, side), mirrored)[None])
            except DataError as error:
                bad = BadRow(len(which), pair.place, f"{error.what}: {error.why}")
                if skipped is None:
                    raise bad from error
                skipped.add(bad.place, bad.why)
                continue
            moments = model.vae.encode(Tensor(model.device.from_host(array), model.device))
            means.append(moments.mean.numpy())
            deviations.append(np.exp(moments.log_variance.numpy() / 2))
            which.append(number[pair.caption])
    if not which:
        raise DataError("there is nothing to learn", "no picture can be used", "Give other pictures.")
    return Told(np.concatenate(means), np.concatenate(deviations), np.asarray(which, np.int32), prior)


def _prior(
    model: Any, prompt: str | None, directory: Path | None, count: int, side: int, seed: int, out: Path, quiet: bool
) -> list[Pair]:
    """Pictures of the kind, drawn before the model learns where there are none. They are kept for a resumed run."""
    if prompt is None:
        if directory is not None:
            raise DataError("pictures of a kind need its name", "--prior-data is given alone", "Give --prior TEXT too.")
        return []
    if directory is None:
        from zoo.stable_diffusion import picture

        directory = out / "prior"
        absent = [i for i in range(count) if not (directory / f"{i}.png").is_file()]
        if absent and not quiet:
            print(f"drawing {len(absent)} pictures of {prompt!r}", file=sys.stderr)
        for i in absent:
            request = Request(prompt, steps=PRIOR_STEPS, guidance=PRIOR_GUIDANCE, width=side, height=side,
                              seeds=(seed + i,), scheduler="ddim")  # fmt: skip
            for event in pipeline.generate(model, request):
                if isinstance(event, Picture):
                    picture.write(directory / f"{i}.png", picture.to_bytes(event.pixels), {"prompt": prompt})
    return [pair._replace(caption=prompt) for pair in captioned.read(directory, prompt)]
