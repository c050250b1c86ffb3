"""Capture: what is replayed is what the step would compute, bit by bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core import ops
from zoo.core.autodiff import Autodiff
from zoo.core.capture import Capture
from zoo.core.device import device
from zoo.core.dtype import float32, is_float
from zoo.core.errors import DeviceError, ZooError
from zoo.core.stats import stats
from zoo.core.tensor import Tensor
from zoo.core.testing.case import Case, Draw
from zoo.core.testing.cases import CASES

try:
    CPU: Any = device("cpu")
except DeviceError:
    CPU = None

pytestmark = pytest.mark.skipif(CPU is None, reason="the cpu device is not here")


def drawn(case: Case, seed: str) -> list[Any]:
    """Arguments in float32, other ones for another seed."""
    args = case.args(Draw(seed, float32))
    return [a.astype(float32) if isinstance(a, np.ndarray) and is_float(a.dtype) and a.dtype.itemsize == 8 else a
            for a in args]  # fmt: skip


def flat(result: Any) -> list[np.ndarray]:
    return [np.array(y.numpy()) for y in (result if isinstance(result, tuple | list) else (result,))]


@pytest.mark.parametrize("case", [c for c in CASES if float32 in c.dtypes], ids=lambda c: c.name)
def test_every_op(case: Case) -> None:
    """Recorded with some numbers, replayed with others: the bits of the op itself, whichever kind its kernel is of."""
    first, second = drawn(case, "first"), drawn(case, "second")
    places = [i for i, a in enumerate(first) if isinstance(a, np.ndarray)]
    if not places:
        pytest.skip("nothing changes")
    if any(first[i].shape != second[i].shape for i in places):
        pytest.skip("shapes are drawn too")

    def step(*tensors: Tensor) -> Any:
        args = list(first)
        for i, t in zip(places, tensors, strict=True):
            args[i] = t
        return case.fn(*args)

    captured = Capture(step, CPU)
    captured(*[first[i] for i in places])
    got = flat(captured(*[second[i] for i in places]))
    wanted = flat(step(*[Tensor(CPU.from_host(np.array(second[i])), CPU) for i in places]))
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def arrays(seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(1, 1, 64)).astype(np.float32), np.array([seed], np.int32)


WEIGHT = np.random.default_rng(9).normal(size=(64, 64)).astype(np.float32)


def rounded() -> tuple[Tensor, Tensor]:
    codes, scale = ops.quantize(zoo.tensor(WEIGHT, device=CPU), "int8")
    return Tensor(CPU.pack(codes.handle, "linear"), CPU), scale


def make(count: int = 6) -> Any:
    """A few layers that keep what they have seen, as a decoder does."""
    weight = zoo.tensor(WEIGHT, device=CPU)
    norm = ops.ones((64,), device=CPU)
    codes, scale = rounded()
    state = {"seen": ops.zeros((1, 512, 4, 16), device=CPU)}

    def step(x: Tensor, position: Tensor) -> Tensor:
        for _ in range(count):
            h = ops.qlinear(ops.rms_norm(x, norm), codes, scale, "int8").reshape(1, 1, 4, 16)
            state["seen"] = seen = ops.update_rows(state["seen"], h, position, donate=True)
            y = ops.attention(h, seen, seen, None, position + 1, causal=True)
            x = x + ops.linear(y.reshape(1, 1, 64), weight)
        return x

    return step


def test_a_decoder() -> None:
    """State in tensors goes on from step to step; all of it is native, and nothing grows."""
    eager, captured = make(), Capture(make(), CPU)
    stats(reset=True)
    for i in range(5):
        x, at = arrays(i)
        wanted = eager(zoo.tensor(x, device=CPU), zoo.tensor(at, device=CPU)).numpy()
        assert captured(x, at).numpy().tobytes() == wanted.tobytes()
    counted = stats()
    assert counted["capture.recorded"] == 1 and counted["capture.replayed"] == 4
    ((_, replay),) = captured._known.values()
    assert sum(not isinstance(part, tuple) for part in replay.parts) == 6, "position + 1, an op of integers"


def test_memory_is_reused() -> None:
    """Layers follow each other in the same few blocks, and no other array is given them meanwhile."""

    def addresses(count: int) -> set[int]:
        found: set[int] = set()

        def step(x: Tensor) -> Tensor:
            for _ in range(count):
                x = ops.rms_norm(x, ops.ones((64,), device=CPU))
                found.add(x.handle.ctypes.data)
            return x

        captured = Capture(step, CPU)
        x, _ = arrays()
        captured(x)
        others = [CPU.ops.rms_norm(x, np.ones(64, np.float32)) for _ in range(10)]
        assert not found & {o.ctypes.data for o in others}
        return found

    assert len(addresses(2)) <= 2 and len(addresses(40)) <= 2


def test_nan_in_a_rounded_product() -> None:
    """Rows without a scale are computed otherwise: the step then runs as it is, and is replayed again afterwards."""
    codes, scale = rounded()
    captured = Capture(lambda x: ops.qlinear(x, codes, scale, "int8"), CPU)
    x, _ = arrays(1)
    bad = x.copy()
    bad[0, 0, 3] = np.nan
    plain = captured(x).numpy().copy()
    stats(reset=True)
    assert np.isnan(captured(bad).numpy()).all() and stats()["capture.eager"] == 1
    assert captured(x).numpy().tobytes() == plain.tobytes()


def test_a_kernels_own_copy() -> None:
    """A kernel that copies what it cannot read in place would replay the old copy: Python runs it again."""
    weight = zoo.tensor(WEIGHT, device=CPU)
    captured = Capture(lambda x: ops.linear(x.permute_dims(1, 0)[:, ::2], weight[:, ::2]), CPU)
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=(64, 3)).astype(np.float32)
        wanted = ops.linear(zoo.tensor(x, device=CPU).permute_dims(1, 0)[:, ::2], weight[:, ::2]).numpy()
        assert captured(x).numpy().tobytes() == wanted.tobytes()


def test_shapes_are_recorded_apart() -> None:
    captured = Capture(lambda x: x * 2.0, CPU)
    stats(reset=True)
    for n in (3, 4, 3, 4):
        assert captured(np.arange(n, dtype=np.float32)).tolist() == [2.0 * i for i in range(n)]
    assert stats()["capture.recorded"] == 2 and stats()["capture.replayed"] == 2


def test_threads() -> None:
    """One step is recorded at a time; another thread's ops are not taken for its own, nor its own left out."""

    def run(seed: int) -> list[bytes]:
        found, at = [], zoo.tensor(arrays(seed)[1], device=CPU)
        for _ in range(20):
            captured = Capture(lambda x: ops.topk(make(4)(x, at), 64)[0] + 1.0, CPU)
            found += [captured(arrays(seed + i)[0]).numpy().tobytes() for i in range(3)]
        return found

    alone = [run(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, range(3))) == alone


def test_reading_a_value_is_refused() -> None:
    with pytest.raises(ZooError, match="cannot be captured"):
        Capture(lambda x: x * float(x.sum()), CPU)(np.ones(3, np.float32))
    assert (zoo.tensor([1.0], device=CPU) + 1).item() == 2, "nothing is recorded any more"


def test_devices_that_do_not_record() -> None:
    for other in (device("numpy"), Autodiff(CPU), zoo.Fusion(CPU)):
        stats(reset=True)
        captured = Capture(lambda x: x + 1.0, other)
        assert [captured(np.array([i], np.float32)).item() for i in (1, 2)] == [2, 3]
        assert stats()["capture.eager"] == 2


def test_off_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CPU, "off", {"capture"})
    stats(reset=True)
    captured = Capture(lambda x: x + 1.0, CPU)
    assert [captured(np.array([i], np.float32)).item() for i in (1, 2)] == [2, 3]
    assert stats()["capture.eager"] == 2
