"""`zoo run stable_diffusion`: a text becomes a picture, or one picture another."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.core.errors import DataError, ZooError
from zoo.core.stats import available_memory, peak_memory
from zoo.stable_diffusion import picture, pipeline, schedulers
from zoo.stable_diffusion.decoding import decode
from zoo.stable_diffusion.estimate import Estimate, estimate
from zoo.stable_diffusion.pipeline import Picture, Request, Step
from zoo.stable_diffusion.prompt import parse
from zoo.stable_diffusion.tokenizer import Tokenizer

TILE = 64
"""Latents of a tile, where a picture is decoded in tiles: 512 pixels."""
STEPS, FEW_STEPS = 25, 4
"""Without --steps; the latter for LCM."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn, and what it took."""

    images: tuple[Path, ...]
    settings: dict[str, Any]
    seconds_per_step: float
    seconds: float
    alone = True
    """In the JSON document it stands by itself, not in a list."""

    def to_json(self) -> dict[str, Any]:
        peak = peak_memory()
        stats = {"s_per_step": self.seconds_per_step, "seconds": self.seconds,
                 "peak_mb": None if peak is None else round(peak / 1e6, 1)}  # fmt: skip
        chosen = {**self.settings, "scheduler": self.settings["scheduler"] or self.settings["scheduler_class"]}
        return {"images": [str(path) for path in self.images], **chosen, "stats": stats}

    def __str__(self) -> str:
        return "\n".join(map(str, self.images))

    def note(self) -> str:
        return f"  {self.seconds_per_step:.3g} s a step"


def run(
    model: Any,
    prompt: str | None = None,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str | None = None,
    size: str | None = None,
    scheduler: str | None = None,
    init: Path | None = None,
    mask: Path | None = None,
    strength: float | None = None,
    out: Path | None = None,
    from_: Path | None = None,
    count: int = 1,
    batch: int = 1,
    rescale: float | None = None,
    skip: int | None = None,
    lora: list[str] | None = None,
    vae: Path | None = None,
    cut: bool = False,
    tile: bool = False,
    preview: int = 0,
    seed: int = 0,
    progress: Any = None,
    say: Any = None,
) -> Iterator[Drawn]:
    """Draw what a text says, or draw a picture anew.

    prompt: what is to be seen; (more:1.3) and [less] weigh words, \\( is a bracket
    steps: of the scheduler; more take longer, and are better up to a point. Without it 25, for lcm 4
    guidance: how far beyond the prompt to go; 1 is without, and half the work. Without it 7.5, for SDXL 5
    negative: what is not to be seen
    size: WxH in pixels, each a multiple of 8; without it, what the model was trained on
    scheduler: ddpm, ddim, pndm, euler, euler_karras, euler_a, dpm++, dpm++_karras, unipc, unipc_karras or lcm; without
        it, as the checkpoint says
    init: a picture to begin from
    mask: a picture that is light where --init is to be drawn anew
    strength: how much of --init is given up, 0 to 1; without it 0.8, with --mask 1
    out: PNG file to write; it says how it was made. Without it, named by the prompt and the seed
    from_: a PNG that was drawn here: draw it again, as it says itself; what else is given, changes that
    count: pictures, with seeds from --seed on
    batch: pictures to work on at once
    rescale: share of the contrast that guidance adds which is taken back, 0 to 1
    skip: leave out so many of the text encoder's last layers
    lora: a LoRA file of diffusers' or kohya's kind, FILE or FILE=0.8 for a share of it; may be given several times
    vae: a TAESD, a small autoencoder in the place of the checkpoint's: faster, a little coarser
    cut: cut the prompt off after 75 tokens, as diffusers does, instead of encoding it in parts
    tile: decode in tiles of 512 pixels, for little memory
    preview: after every so many steps, write what is seen so far beside --out
    """
    before = picture.settings_of(from_) if from_ is not None else {}
    given = {"prompt": prompt, "steps": steps, "guidance": guidance, "negative": negative, "size": size,
             "scheduler": scheduler, "strength": strength, "rescale": rescale, "skip": skip,
             "init": None if init is None else str(init), "mask": None if mask is None else str(mask),
             "lora": lora or None, "vae": None if vae is None else str(vae), "cut": cut or None,
             "seed": seed or None}  # fmt: skip
    _check_weights(model, before, from_)
    settings = {**before, **{key: value for key, value in given.items() if value is not None}}
    say = say or (lambda text: None)
    for line in _changed(model, settings):
        say(line)
    if count < 1 or batch < 1:
        raise ZooError("there is nothing to draw", f"--count is {count} and --batch {batch}", "Ask for at least 1.")
    request = _request(model, settings, count, batch, previews=preview > 0)
    settings = _settings(model, settings, request)
    guided = request.guidance > 1
    expected = estimate(model, request.height or 0, request.width or 0, min(batch, count) * (1 + guided))
    request, said = _within_memory(request, expected, tile)
    paths = _paths(out, settings["prompt"], request.seeds)
    for line in (_plan(model, settings, request, expected), *said, *_lost(model, request)):
        say(line)
    yield _draw(model, request, settings, paths, preview, progress, say)


def _draw(
    model: Any, request: Request, settings: Mapping[str, Any], paths: list[Path], preview: int, progress: Any, say: Any
) -> Drawn:  # fmt: skip
    start = time.perf_counter()
    walked, drawn = 0.0, 0
    vae, steps = model.vae, 0
    for event in pipeline.generate(model, request):
        if isinstance(event, Step):
            steps, walked = event.done, time.perf_counter() - start
            if progress is not None:
                progress(event.done, event.total, "drawing")
            if preview and event.done % preview == 0 and event.guess is not None:
                pixels, _ = decode(vae, event.guess[:1], request.tile)
                picture.write(_preview(paths[0]), picture.to_bytes(pixels[0]), settings)
            continue
        assert isinstance(event, Picture)
        if event.warning:
            say(event.warning)
        picture.write(paths[drawn], picture.to_bytes(event.pixels), {**settings, "seed": event.seed})
        drawn += 1
    return Drawn(tuple(paths), dict(settings), round(walked / steps, 4), round(time.perf_counter() - start, 3))


# --- from options to a request, and to what the PNG says --------------------------------------------------------------


def _request(model: Any, settings: Mapping[str, Any], count: int, batch: int, previews: bool) -> Request:
    config = model.config
    scale = model.vae.config.scale
    width, height = _size(settings.get("size"))
    init, mask, name = settings.get("init"), settings.get("mask"), settings.get("scheduler")
    if name is not None and name not in schedulers.NAMES:
        raise ZooError(f"there is no scheduler {name!r}", f"the schedulers are: {', '.join(schedulers.NAMES)}", "")
    if init is not None and width is None:
        width, height = picture.size_of(init, max(scale, 8))
    width, height = pipeline.checked_size(model, width, height)
    for key in ("init", "mask"):
        known = settings.get(f"{key}_sha256")
        if known is not None and settings.get(key) is not None and picture.fingerprint(settings[key]) != known:
            why = f"{settings[key]} is not the file that it was drawn from"
            raise DataError("the picture cannot be repeated", why, f"Name that file: --{key} PICTURE.")
    lcm = name == "lcm" or (name is None and dict(config.scheduler).get("_class_name") == "LCMScheduler")
    prompt = settings.get("prompt")
    if prompt is None:
        prompt = "" if model.source is None else str(model.source.card().get("example", ""))
    first = int(settings.get("seed") or 0)
    return Request(
        prompt=str(prompt),
        negative=settings.get("negative"),
        steps=int(settings.get("steps") or (FEW_STEPS if lcm else STEPS)) if settings.get("steps") != 0 else 0,
        guidance=float(settings.get("guidance", 5.0 if config.text_encoder_2 is not None else 1.0 if lcm else 7.5)),
        width=width,
        height=height,
        seeds=tuple(range(first, first + count)),
        batch=batch,
        scheduler=name,
        init=None if init is None else picture.read_pixels(init, width, height),
        mask=None if mask is None else picture.read_mask(mask, width, height),
        strength=settings.get("strength"),
        rescale=float(settings.get("rescale") or 0.0),
        skip=int(settings.get("skip") or 0),
        cut=bool(settings.get("cut")),
        previews=previews,
        release=True,
    )


def _changed(model: Any, settings: Mapping[str, Any]) -> Iterator[str]:
    """Puts LoRA files and another VAE into the model, in place; -> what to say about it."""
    for entry in settings.get("lora") or ():
        from zoo.stable_diffusion import lora as loras

        name, share = _share(entry)
        merged = loras.merge(model, name, share)
        yield f"{name} × {share:g}: {merged.layers} layers changed" + (
            f"; of its tensors, {len(merged.unknown)} belong to none" if merged.unknown else ""
        )
    if settings.get("vae") is not None:
        from zoo.stable_diffusion import taesd

        model.vae = taesd.load(settings["vae"], device=model.device)
    model.prepare()


def _share(entry: str) -> tuple[str, float]:
    """FILE=0.8 -> the file and the number; 1 without one."""
    name, sign, number = entry.rpartition("=")
    if not sign or Path(entry).exists():
        return entry, 1.0
    try:
        return name, float(number)
    except ValueError:
        raise ZooError(f"cannot use --lora {entry}", f"{number!r} is no number", "Write FILE or FILE=0.8.") from None


def _settings(model: Any, given: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """All that decides the picture, for the PNG and the JSON document."""
    import zoo

    published = dict(model.config.scheduler).get("_class_name", "PNDMScheduler")
    source = model.source
    provenance = {} if source is None else source.provenance()
    found: dict[str, Any] = {
        "prompt": request.prompt, "negative": request.negative, "seed": request.seeds[0], "steps": request.steps,
        "guidance": request.guidance, "size": f"{request.width}x{request.height}", "scheduler": request.scheduler,
        "scheduler_class": schedulers.NAMES[request.scheduler][0].__name__ if request.scheduler else published,
        "rescale": request.rescale, "skip": request.skip, "cut": request.cut,
        "weights": None if source is None else source.shown, "revision": provenance.get("commit"),
        "version": zoo.__version__,
    }  # fmt: skip
    if given.get("lora") or given.get("vae"):
        found |= {"lora": given.get("lora"), "vae": given.get("vae")}
    for key in ("init", "mask"):
        if given.get(key) is not None:
            found |= {key: given[key], f"{key}_sha256": picture.fingerprint(given[key]), "strength": request.strength}
    return found


def _check_weights(model: Any, before: Mapping[str, Any], path: Path | None) -> None:
    """Raises DataError if a picture that is to be repeated was drawn by other weights, or another revision."""
    known, source = before.get("weights"), model.source
    if known is None or source is None:
        return
    here = source.provenance().get("commit")
    if Path(str(known)).name != Path(source.shown).name or before.get("revision") not in (None, here):
        revision = f", revision {before['revision']}" if before.get("revision") else ""
        why = f"it was drawn by {known}{revision}; these are {source.shown}"
        raise DataError(f"cannot repeat {path}", why, f"Name those weights: --weights {known}")


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    found = re.fullmatch(r"\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*", text)
    if found is None:
        raise ZooError(f"cannot draw a size of {text!r}", "a size is WIDTHxHEIGHT in pixels", "Give 512x768, say.")
    return int(found[1]), int(found[2])


def _paths(out: Path | None, prompt: str, seeds: tuple[int, ...]) -> list[Path]:
    """One for each picture. Without --out, none that exists."""
    if out is not None:
        if out.suffix.lower() not in ("", ".png"):
            why = "settings are kept in PNG files only"
            raise ZooError(f"cannot write {out}", why, f"Name it {out.with_suffix('.png')}.")
        out = out.with_suffix(".png")
        return [out] if len(seeds) == 1 else [out.with_stem(f"{out.stem}-{seed}") for seed in seeds]
    words = "-".join(re.findall(r"\w+", "".join(piece for piece, _ in parse(prompt)))[:8])[:60] or "picture"
    number, suffix = 1, ""
    while any(Path(f"{words}-{seed}{suffix}.png").exists() for seed in seeds):
        number += 1
        suffix = f"-{number}"
    return [Path(f"{words}-{seed}{suffix}.png") for seed in seeds]


def _preview(path: Path) -> Path:
    return path.with_stem(f"{path.stem}-preview")


# --- what it will take ------------------------------------------------------------------------------------------------


def _within_memory(request: Request, expected: Estimate, tile: bool) -> tuple[Request, list[str]]:
    """The request, decoded in tiles where it would not fit in one piece, and what to say about it.

    Raises ZooError if a step alone takes more than there is.
    """
    free = available_memory()
    if tile:
        request = replace(request, tile=TILE)
    if free is None:
        return request, []
    if expected.walk_bytes > free:
        why = f"a step takes about {_bytes(expected.walk_bytes)} beside the weights, and {_bytes(free)} are free"
        raise ZooError("there is not enough memory", why, "Ask for a smaller --size or --batch.")
    if expected.decode_bytes > free and not request.tile:
        said = f"decoding takes about {_bytes(expected.decode_bytes)}, {_bytes(free)} are free: it is done in tiles"
        return replace(request, tile=TILE), [said]
    return request, []


def _plan(model: Any, settings: Mapping[str, Any], request: Request, expected: Estimate) -> str:
    weights = sum(parameter.nbytes for parameter in model.state().values())
    name = request.scheduler or str(settings["scheduler_class"]).removesuffix("Scheduler")
    pictures = f"{len(request.seeds)} pictures, " if len(request.seeds) > 1 else ""
    batches = -(-len(request.seeds) // request.batch)
    seconds = expected.step * request.steps * batches + expected.decode * len(request.seeds)
    peak = weights + max(expected.walk_bytes, 0 if request.tile else expected.decode_bytes)
    return (
        f"{pictures}{settings['size']} · {request.steps} steps, {name} · guidance {request.guidance:g} · seed "
        f"{request.seeds[0]} · expected: {_time(seconds)}, {_bytes(peak)}"
    )


def _lost(model: Any, request: Request) -> Iterator[str]:
    if request.cut:
        tokenizer = Tokenizer.of(model)[0]
        for text in filter(None, (request.prompt, request.negative)):
            tokens = [token for piece, _ in parse(text) for token in tokenizer.tokens(piece)]
            if len(tokens) > tokenizer.room:
                yield f"cut off after {tokenizer.room} tokens, and lost: {tokenizer.decode(tokens[tokenizer.room :])}"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
