"""The optimizer's step (cu/optim.cu)."""

from __future__ import annotations

from typing import Any

from zoo.core.backends.cuda.kernels.plan import Kernels, divided, flat, packed, real, stored, whole
from zoo.core.backends.cuda.source import ctype
from zoo.core.dtype import float32
from zoo.core.stats import count


def adamw_step(b: Any, p: Any, g: Any, m: Any, v: Any, *, lr: float, beta1: float, beta2: float, eps: float,
               weight_decay: float, step: int, donate: bool = False) -> Any:  # fmt: skip
    if not stored(p, g, m, v) or m.dtype != float32 or v.dtype != float32:
        return NotImplemented
    out = b.xp.empty(p.shape, p.dtype), b.xp.empty(p.shape, float32), b.xp.empty(p.shape, float32)
    numbers = real(
        beta1, 1 - beta1, beta2, 1 - beta2, 1 / (1 - beta2**step), eps, 1 - lr * weight_decay, lr / (1 - beta1**step)
    )
    kernel = b.driver.kernel("optim.cu", "adamw", P=ctype(p.dtype), G=ctype(g.dtype))
    kernel(*flat(divided(p.size, 4)), *packed(b, p, g, m, v), *out, *whole(p.size), *numbers)
    count("cuda.adamw_step")
    return out


KERNELS: Kernels = {"adamw_step": adamw_step}
