"""From a prompt to pictures, as a generator: one `Step` for each step of the scheduler, then a `Picture` for each seed.

Each picture has a generator of its own, seeded by its number, so that it is the same alone and in a batch; whatever is
random is drawn from it in the order of diffusers' pipelines, so that a seed means here what it means there.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.errors import ZooError
from zoo.core.tensor import Tensor
from zoo.stable_diffusion import noise as noises
from zoo.stable_diffusion import schedulers
from zoo.stable_diffusion.decoding import decode
from zoo.stable_diffusion.prompt import Told, tell
from zoo.stable_diffusion.tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """What to draw. Sizes in pixels; None where the model knows what it was made for."""

    prompt: str
    negative: str | None = None
    steps: int = 25
    guidance: float = 7.5
    """How far to go beyond the prompt, away from the negative one (Ho & Salimans 2022); 1 and less is without."""
    width: int | None = None
    height: int | None = None
    seeds: tuple[int, ...] = (0,)
    batch: int = 1
    """Pictures that are worked on at once."""
    scheduler: str | None = None
    init: np.ndarray | None = None
    """(1, H, W, 3) in -1 ... 1: begin from this picture."""
    mask: np.ndarray | None = None
    """(1, H, W, 1): 1 where `init` is drawn anew."""
    strength: float | None = None
    """How much of the way is walked from `init`: 1 forgets it. None: 0.8, and 1 with a mask."""
    rescale: float = 0.0
    """Share in which what guidance overdoes in contrast is taken back (Lin et al. 2024, section 3.4)."""
    original: tuple[int, int] | None = None
    """SDXL: width and height that the picture is said to come from; smaller ones make blurred pictures."""
    crop: tuple[int, int] = (0, 0)
    """SDXL: how far from its left and top it is said to be cut."""
    cut: bool = False
    """Cut prompts off at the encoder's length, instead of encoding them in chunks."""
    skip: int = 0
    """So many of the text encoders' last layers are left out."""
    tile: int = 0
    """Decode in tiles of so many latents, for little memory; 0 does not."""
    previews: bool = False
    """Whether steps come with a guess of what the picture will be."""
    release: bool = False
    """Free each network after its last use. The model cannot be used again."""


@dataclass(frozen=True)
class Step:
    """After a step of the scheduler: `done` of `total` in all."""

    done: int
    total: int
    first: int
    """Number of the first picture of this batch."""
    latents: Tensor
    guess: Tensor | None = None
    """Latents without noise, as the model sees them now."""


@dataclass(frozen=True)
class Picture:
    seed: int
    pixels: np.ndarray
    """(H, W, 3) in -1 ... 1."""
    warning: str = ""


def generate(model: Any, request: Request, tokenizers: Sequence[Tokenizer] | None = None) -> Iterator[Step | Picture]:
    """Draws what is asked for.

    Raises ZooError for a size, number of steps, strength or scheduler that cannot be, and for an inpainting model
    without a picture and a mask.
    """
    width, height = checked_size(model, request.width, request.height)
    scheduler = schedulers.from_config(scheduler_config(model), request.scheduler)
    scheduler.set_timesteps(request.steps, _strength(request))
    inpainting = _check_inputs(model, request, (height, width))
    guided = request.guidance > 1
    told = _told(model, request, tokenizers or Tokenizer.of(model), guided)
    if request.release:
        drop(model, "text_encoder", "text_encoder_2")
    scale, channels = model.vae.config.scale, model.vae.config.latent_channels
    shape = (height // scale, width // scale, channels)
    batches = [request.seeds[i : i + request.batch] for i in range(0, len(request.seeds), request.batch)]
    total, done, drawn = len(scheduler.timesteps) * len(batches), 0, []
    for number, seeds in enumerate(batches):
        scheduler.set_timesteps(request.steps, _strength(request))
        walk = _Walk(model, request, scheduler, seeds, shape, told, inpainting)
        for latents, guess in walk.steps():
            done += 1
            yield Step(done, total, number * request.batch, latents, guess)
        drawn.append(latents)
    if request.release:
        drop(model, "unet")
    for seeds, latents in zip(batches, drawn, strict=True):
        for i, seed in enumerate(seeds):  # one at a time: a picture's pixels take 64 times the room of its latents
            pixels, warning = decode(model.vae, latents[i : i + 1], request.tile)
            yield Picture(seed, pixels[0], warning)


class _Walk:
    """One batch, from noise to latents."""

    def __init__(
        self, model: Any, request: Request, scheduler: schedulers.Scheduler, seeds: Sequence[int],
        shape: tuple[int, int, int], told: Told, inpainting: bool,
    ):  # fmt: skip
        self.unet, self.vae, self.device = model.unet, model.vae, model.device
        self.request, self.scheduler, self.shape = request, scheduler, shape
        self.generators = [noises.Generator(seed) for seed in seeds]
        count, guided = len(seeds), told.hidden.shape[0] == 2
        self.guided = guided
        rows = np.repeat(np.arange(1 + guided), count).astype(np.int32)
        place = self._placed(rows)
        # keys and values of the text are worked out once, for each text once
        self.text = [(ops.take(k, place), ops.take(v, place)) for k, v in self.unet.keys_values(told.hidden)]
        self.added = None
        if told.pooled is not None:
            from zoo.stable_diffusion.unet import Added

            sizes = np.tile(np.asarray(_size_ids(request, shape, self.vae.config.scale), np.float32), (len(rows), 1))
            self.added = Added(ops.take(told.pooled, place), self._placed(sizes))
        self.latents, self.known, self.mask = self._start()
        self.beside = self._beside(inpainting)

    def steps(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        scheduler, x = self.scheduler, self.latents
        for i, t in enumerate(scheduler.timesteps.tolist()):
            output = self._output(scheduler.scale_model_input(x, t), t)
            guess = scheduler.guess(output, t, x) if self.request.previews else None
            x = scheduler.step(output, t, x, self._draw)
            if self.known is not None and self.mask is not None and self.beside is None:
                kept = self.known
                if i + 1 < len(scheduler.timesteps):
                    kept = scheduler.add_noise(kept, self.noise, scheduler.timesteps[i + 1])
                x = kept * (1.0 - self.mask) + x * self.mask
            yield x, guess

    def _output(self, x: Tensor, t: float) -> Tensor:
        """The model's prediction, guided."""
        if self.beside is not None:
            x = ops.concat([x, self.beside], axis=-1)
        output = self.unet(x, self._placed(np.asarray([t], np.float32)), self.text, self.added)
        if not self.guided:
            return output
        without, told = ops.split(output, 2, axis=0)
        guided = without + (told - without) * self.request.guidance
        if self.request.rescale:
            ratio = _deviation(told) / _deviation(guided)
            guided = guided * (ratio * self.request.rescale + (1 - self.request.rescale))
        return guided

    def _start(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x to begin with; the picture's latents and the mask at their size, where there are any."""
        request, scheduler = self.request, self.scheduler
        strength, known, mask = _strength(request), None, None
        own = self.unet.config.in_channels == self.shape[2]  # a U-Net for inpainting is shown the picture itself
        if request.init is not None and (request.mask is None or own or strength < 1):
            known = self._encoded(request.init)
        self.noise = self._draw()
        if known is None or (request.mask is not None and strength >= 1):
            x = self.noise * scheduler.init_noise_sigma
        else:
            x = scheduler.add_noise(known, self.noise, scheduler.timesteps[0])
        if request.mask is not None:
            mask = self._placed(_nearest(request.mask, self.shape[:2]))
        return x, known, mask

    def _beside(self, inpainting: bool) -> Tensor | None:
        """What an inpainting U-Net sees beside the latents: the mask, and the latents of what stays."""
        if self.request.mask is None or self.request.init is None:
            return None
        stays = self._encoded(self.request.init * (self.request.mask < 0.5))  # drawn by diffusers in either case
        if not inpainting:
            return None
        assert self.mask is not None
        return ops.concat([ops.expand(self.mask, (*stays.shape[:-1], 1)), stays], axis=-1)

    def _encoded(self, pixels: np.ndarray) -> Tensor:
        """Latents of a picture, a draw of the VAE's distribution for each generator."""
        moments = self.vae.encode(self._placed(pixels))
        wide = [ops.expand(m, (len(self.generators), *m.shape[1:])) for m in moments]
        return type(moments)(*wide).sample(self._draw()) * self.vae.config.scaling_factor

    def _draw(self) -> Tensor:
        return self._placed(noises.latents(self.generators, self.shape))

    def _placed(self, array: np.ndarray) -> Tensor:
        return Tensor(self.device.from_host(np.ascontiguousarray(array)), self.device)


def checked_size(model: Any, width: int | None, height: int | None) -> tuple[int, int]:
    """Width and height, those the model was trained on where None. Raises ZooError for what its latents cannot have."""
    scale = model.vae.config.scale
    own = (model.unet.config.sample_size or 64) * scale
    width, height = own if width is None else width, own if height is None else height
    if width < scale or height < scale or width % scale or height % scale:
        near = [max(scale, round(side / scale) * scale) for side in (width, height)]
        why = f"a latent stands for {scale} x {scale} pixels"
        raise ZooError(f"cannot draw {width} x {height} pixels", why, f"Ask for --size {near[0]}x{near[1]}.")
    return width, height


def drop(model: Any, *names: str) -> None:
    """Takes networks out of a model, and their memory back."""
    for name in names:
        if hasattr(model, name):
            delattr(model, name)
    gc.collect()


def _told(model: Any, request: Request, tokenizers: Sequence[Tokenizer], guided: bool) -> Told:
    """Of the negative prompt, if it is needed, and the prompt."""
    texts = [request.negative or "", request.prompt] if guided else [request.prompt]
    told = tell(model, tokenizers, texts, cut=request.cut, skip=request.skip)
    if guided and request.negative is None and model.config.force_zeros_for_empty_prompt:
        assert told.pooled is not None
        none = [ops.concat([part[:1] * 0.0, part[1:]], axis=0) for part in (told.hidden, told.pooled)]
        told = Told(none[0], none[1], told.lost)
    return told


def _strength(request: Request) -> float:
    if request.init is None:
        return 1.0
    if request.strength is None:
        return 0.8 if request.mask is None else 1.0
    return request.strength


def scheduler_config(model: Any) -> dict[str, Any]:
    """As published; where nothing was, that of Stable Diffusion 1. Like diffusers' pipelines of SD 1 and 2, it counts
    leading timesteps from 1 and takes no Runge-Kutta steps, whatever the file says; latents are never clipped to -1 ...
    1, where pictures would be."""
    sd1 = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    found = dict(model.config.scheduler) or sd1
    own = {} if model.config.text_encoder_2 is not None else {"steps_offset": 1, "skip_prk_steps": True}
    return {**found, "clip_sample": False, **own}


def _check_inputs(model: Any, request: Request, size: tuple[int, int]) -> bool:
    """Whether the U-Net is one for inpainting. Raises ZooError if the pictures given do not fit it."""
    channels, latents = model.unet.config.in_channels, model.vae.config.latent_channels
    inpainting = channels == 2 * latents + 1
    if request.mask is not None and request.init is None:
        raise ZooError("a mask needs a picture", "--mask says what to draw anew of --init", "Give --init too.")
    if channels != latents and not inpainting:
        why = f"its unet takes {channels} channels, its vae gives {latents}"
        raise ZooError("these weights draw in a way that is not known here", why, "Use a text-to-image checkpoint.")
    if inpainting and request.mask is None:
        why = "these weights fill a hole in a picture: their unet is shown the rest of it"
        raise ZooError("a picture and a mask are needed", why, "Give --init PICTURE and --mask PICTURE.")
    for name, given in (("picture", request.init), ("mask", request.mask)):
        if given is not None and given.shape[1:3] != size:
            why = f"it has {given.shape[2]} x {given.shape[1]} pixels, and {size[1]} x {size[0]} are drawn"
            raise ZooError(f"the {name} has another size", why, "Resize it first.")
    if request.init is not None and not hasattr(model.vae, "encoder"):
        raise ZooError("these weights cannot begin from a picture", "their vae has no encoder", "Leave --init out.")
    return inpainting


def _size_ids(request: Request, shape: tuple[int, int, int], scale: int) -> list[float]:
    """What SDXL is told of sizes: that of the original, the crop's corner, that of the target. (Podell et al. 2023,
    section 2.2)"""
    height, width = shape[0] * scale, shape[1] * scale
    across, down = request.original or (width, height)
    left, top = request.crop
    return [down, across, top, left, height, width]


def _nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(1, H, W, 1) -> (1, h, w, 1), the pixel at the upper left of each place."""
    rows, columns = (np.arange(n) * have // n for n, have in zip(size, mask.shape[1:3], strict=True))
    return mask[:, rows][:, :, columns]


def _deviation(x: Tensor) -> Tensor:
    """Standard deviation of each picture's numbers (B, 1, 1, 1)."""
    count = x.size // x.shape[0]
    return ops.sqrt(ops.var(x, axis=(1, 2, 3), keepdims=True) * (count / (count - 1)))
