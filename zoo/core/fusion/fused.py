"""fused(fn): one function's arithmetic in one pass, and nothing put off outside it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from zoo.core.fusion.device import Fusion
from zoo.core.fusion.node import Lazy
from zoo.core.tensor import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def fused(fn: F) -> F:
    """`fn`, whose positional arguments are tensors and numbers and whose result is a tensor or a tuple of tensors (or
    None), on Fusion(device): what it calculates elementwise is calculated in one pass. Results are on the device of the
    arguments, calculated. `fn` itself where that is no gain: few numbers, several devices, a device without
    programs."""

    @functools.wraps(fn)
    def run(*args: Any, **settings: Any) -> Any:
        devices = {a.device for a in args if isinstance(a, Tensor)}
        if len(devices) != 1:
            return fn(*args, **settings)
        fusion = Fusion(devices.pop())
        if fusion.executor is None or max(a.size for a in args if isinstance(a, Tensor)) < fusion.small:
            return fn(*args, **settings)
        out = fn(*(Tensor(a.handle, fusion) if isinstance(a, Tensor) else a for a in args), **settings)
        results = out if type(out) is tuple else (out,)
        handles = [r.handle for r in results if isinstance(r, Tensor)]
        fusion.force([h.node for h in handles if type(h) is Lazy])
        plain = tuple(Tensor(fusion.value(r.handle), fusion.inner) if isinstance(r, Tensor) else r for r in results)
        return plain if type(out) is tuple else plain[0]

    return run  # type: ignore[return-value]
