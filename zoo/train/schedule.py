"""Learning rates as pure functions of the step: schedule(step) -> lr, for steps 0, 1, 2, ...

    schedule = cosine(3e-4, steps=1000, warmup=100)

warmup: the first steps rise in a straight line, so that step `warmup` is the first at the peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def _warm(peak: float, warmup: int, after: Schedule) -> Schedule:
    return lambda step: peak * (step + 1) / (warmup + 1) if step < warmup else after(step)


def _progress(step: int, steps: int, warmup: int) -> float:
    """From 0 at the end of the warm-up to 1 at `steps`, and 1 from there on."""
    return min((step - warmup) / max(steps - warmup, 1), 1.0)


def constant(lr: float, warmup: int = 0) -> Schedule:
    return _warm(lr, warmup, lambda step: lr)


def linear(peak: float, steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """From the peak in a straight line to `final` at `steps`."""
    return _warm(peak, warmup, lambda step: peak + (final - peak) * _progress(step, steps, warmup))


def cosine(peak: float, steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """From the peak along half a cosine to `final` at `steps` (Loshchilov & Hutter 2017, without restarts)."""

    def after(step: int) -> float:
        return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * _progress(step, steps, warmup)))

    return _warm(peak, warmup, after)


def step_decay(lr: float, every: int, factor: float = 0.1) -> Schedule:
    """Multiplied by `factor` after every `every` steps."""
    return lambda step: lr * factor ** (step // every)


def one_cycle(peak: float, steps: int, rise: float = 0.3, start: float = 25.0, end: float = 1e4) -> Schedule:
    """Along a cosine from peak / start up to the peak, in the share `rise` of the steps, and down to peak / (start end)
    (Smith & Topin 2018; the numbers are torch's OneCycleLR's)."""
    first, last, top = peak / start, peak / start / end, rise * steps - 1

    def at(step: int) -> float:
        if step <= top:
            a, b, share = first, peak, step / top if top > 0 else 1.0
        else:
            a, b, share = peak, last, min((step - top) / max(steps - 1 - top, 1e-9), 1.0)
        return b + (a - b) * 0.5 * (1 + math.cos(math.pi * share))

    return at
