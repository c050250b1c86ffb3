"""A step that is done again and again with other numbers, recorded once and replayed.

A step of decoding is hundreds of small ops, and what they cost in Python is a good part of it. All of them are the
same from step to step: the same kernels on the same shapes. So the step runs once while the device writes down what it
does, and from then on the device does that alone: on the cpu a list of native calls, on cuda a graph.

    step = Capture(lambda ids, positions: model(ids, positions, cache), device)
    for ...:
        logits = step(ids, positions)             # numpy arrays in, whose values change and whose shapes do not

What the step computes must depend on its arguments and on tensors that it writes to in place (donate=True) alone.
A Python number in it stays what it was, and so do branches. Results are the bits that the step itself would give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from zoo.core.stats import count
from zoo.core.tensor import Tensor


class Replay(Protocol):
    """What a device's `record(step)` makes of a step: it runs it once, keeps what it did, and returns this; or None,
    where it cannot now. The device's `write(handle, array)` puts new numbers into a handle's own memory."""

    result: Any
    """What the step returned; each replay writes its tensors anew."""

    def __call__(self) -> bool:
        """Does it again. False where that could not be done with the numbers there are now."""


def records(device: Any) -> bool:
    """Whether steps on this device are recorded. Not on Autodiff and Fusion, which are to see every op."""
    return getattr(device, "records", False)


class Capture:
    """The function `step` of tensors on `device`, to be called with numpy arrays. It is recorded anew for every
    combination of their shapes and dtypes. Where the device does not record it just runs.

    Its results lie in memory that the next call writes to. The counters capture.recorded, capture.replayed and
    capture.eager say what happened; ZOO_OFF=capture switches it off.
    """

    def __init__(self, step: Callable[..., Any], device: Any):
        self.step, self.device = step, device
        self._known: dict[Any, tuple[list[Any], Replay]] = {}

    def __call__(self, *arrays: np.ndarray) -> Any:
        key = tuple([(a.shape, a.dtype) for a in arrays])
        found = self._known.get(key)
        if found is not None:
            handles, replay = found
            for handle, array in zip(handles, arrays, strict=True):
                self.device.write(handle, array)
            if replay():
                count("capture.replayed")
                return replay.result
        elif records(self.device):
            handles = [self.device.from_host(np.array(a)) for a in arrays]
            recorded = self.device.record(lambda: self.step(*[Tensor(h, self.device) for h in handles]))
            if recorded is not None:
                self._known[key] = handles, recorded
                count("capture.recorded")
                return recorded.result
        count("capture.eager")
        return self.step(*[Tensor(self.device.from_host(np.array(a)), self.device) for a in arrays])
