"""Convolutions on an emulated GPU: every path is taken, by its counter, and comes to what float64 says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from zoo.core import ops
from zoo.core.autodiff import Autodiff
from zoo.core.backends.cuda.kernels import conv as kernels
from zoo.core.backends.numpy import NumpyBackend
from zoo.core.dtype import bfloat16, float16, float32
from zoo.core.errors import ShapeError
from zoo.core.prims import TABLE
from zoo.core.prims.contract import conv_shape
from zoo.core.stats import stats
from zoo.core.tensor import Tensor
from zoo.core.testing.emulator import CudaBackend, EmulatedDriver, emulated

REFERENCE = NumpyBackend()
GPU = emulated()
PLAIN: dict[str, Any] = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "input_dilation": (1, 1),
                         "groups": 1, "flip": False}  # fmt: skip
# Errors allowed in units of what rounds: the sums, of which a term may be as large as |x| |w|, and the result, once.
UNBENT: dict[str, Any] = {"conv": {}, "conv_weight_grad": {}, "conv_bias_act": {"activation": None}}
UNIT = {float32: 2.0**-24, float16: 2.0**-11, bfloat16: 2.0**-8}


def gpu(arch: int, multiprocessors: int, seed: int = 1) -> CudaBackend:
    driver = EmulatedDriver(arch, seed)
    driver.multiprocessors = multiprocessors
    return CudaBackend(driver, "cuda:emulated")


def run(op: str, device: Any, *args: Any, **attrs: Any) -> np.ndarray:
    handles = [device.from_host(a) if isinstance(a, np.ndarray) else a for a in args]
    return device.to_host(device.bind(TABLE[op], handles, attrs))


def wide(*args: Any) -> list[Any]:
    return [a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in args]


def close(got: np.ndarray, op: str, *args: Any, **attrs: Any) -> None:
    """The result is that of float64, but for the rounding of sums in float32 and of the result in its dtype."""
    want = run(op, REFERENCE, *wide(*args), **attrs)
    size = run(op, REFERENCE, *[np.abs(a) if a is not None else a for a in wide(*args)], **{**attrs, **UNBENT[op]})
    assert got.dtype == args[0].dtype and got.shape == want.shape
    # an activation's slope is at most 1.13 (gelu); sums of 1000 terms in float32 stay within 8 units of |x| |w|
    allowed = 1.13 * 8 * 2.0**-24 * size + 1.01 * UNIT[got.dtype] * np.abs(want) + 2.0**-25
    off = np.abs(got.astype(np.float64) - want)
    assert (off <= allowed).all(), f"{op} {attrs}: {(off / allowed).max():.3g} times the error allowed"


def drawn(seed: int, *shapes: Any, dtype: Any = float32) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def counted(op: str, device: Any, *args: Any, **attrs: Any) -> tuple[np.ndarray, dict[str, int]]:
    stats(reset=True)
    got = run(op, device, *args, **attrs)
    return got, {k.removeprefix("cuda.conv_"): n for k, n in stats().items() if k.startswith("cuda.conv_")}


# x, w, settings, dtypes of x and w, what is counted
PATHS: list[tuple[str, Any, Any, dict[str, Any], Any, Any, dict[str, int]]] = [
    ("half", (2, 9, 8, 16), (24, 3, 3, 16), {"padding": ((1, 1), (1, 1))}, float16, float16, {"mma": 1}),
    ("bfloat16", (2, 9, 8, 16), (24, 3, 3, 16), {"stride": (2, 2)}, bfloat16, bfloat16, {"mma": 1}),
    ("half, channels not in eights", (1, 9, 8, 3), (5, 7, 7, 3), {"padding": ((3, 3), (3, 3)), "stride": (2, 2)},
     float16, float16, {"mma": 1}),
    ("float32", (2, 9, 8, 16), (24, 3, 3, 16), {"padding": ((1, 1), (1, 1))}, float32, float32, {"fma": 1}),
    ("float32, one channel", (3, 9, 9, 1), (33, 3, 3, 1), {}, float32, float32, {"fma": 1}),
    ("mixed, bfloat16", (2, 9, 8, 16), (24, 3, 3, 16), {"padding": ((1, 1), (1, 1))}, float32, bfloat16, {"mixed": 1}),
    ("mixed, float16", (2, 9, 8, 13), (21, 3, 3, 13), {"stride": (2, 2)}, float32, float16, {"mixed": 1}),
    ("mixed, groups, phases", (2, 5, 6, 48), (24, 3, 3, 16), {"groups": 3, "input_dilation": (2, 1), "flip": True},
     float32, float16, {"mixed": 1, "phases": 2}),
    ("mixed, many terms", (1, 3, 3, 96), (10, 3, 3, 96), {"padding": ((1, 1), (1, 1))}, float32, bfloat16,
     {"mixed": 1, "sum": 1}),
    ("mixed, the other way", (1, 7, 8, 12), (6, 3, 3, 12), {}, float16, float32, {"fma": 1}),
    ("both halves", (1, 7, 8, 12), (6, 3, 3, 12), {}, float16, bfloat16, {"fma": 1}),
    ("1x1", (2, 4, 5, 12), (9, 1, 1, 12), {}, float32, float32, {"linear": 1}),
    ("1x1 with a border", (2, 4, 5, 12), (9, 1, 1, 12), {"padding": ((1, 0), (0, 2))}, float16, float16, {"mma": 1}),
    ("1x1, stride", (2, 5, 7, 12), (9, 1, 1, 12), {"stride": (3, 2)}, float16, float16, {"mma": 1}),
    ("1-D", (2, 30, 12), (9, 3, 12), {"padding": ((1, 1),), "stride": (2,), "dilation": (1,), "input_dilation": (1,)},
     float16, float16, {"mma": 1}),
    ("large stride", (2, 40, 33, 8), (9, 3, 3, 8), {"stride": (11, 17)}, float16, float16, {"mma": 1}),
    ("dilation", (1, 17, 15, 8), (9, 3, 4, 8), {"dilation": (5, 3), "padding": ((4, 1), (2, 6))}, float32, float32,
     {"fma": 1}),
    ("cropped", (1, 12, 11, 8), (9, 3, 3, 8), {"padding": ((-2, -1), (3, -4))}, float16, float16, {"mma": 1}),
    ("wider than the picture", (1, 2, 3, 8), (9, 5, 7, 8), {"padding": ((4, 2), (5, 5))}, float16, float16, {"mma": 1}),
    ("groups", (2, 7, 6, 48), (24, 3, 3, 16), {"groups": 3, "padding": ((1, 1), (0, 1))}, float16, float16, {"mma": 1}),
    ("groups in fours", (2, 7, 6, 12), (24, 3, 3, 4), {"groups": 3}, float32, float32, {"fma": 1}),
    ("small groups", (2, 7, 6, 12), (15, 3, 3, 4), {"groups": 3}, float16, float16, {"direct": 1}),
    ("depthwise", (2, 9, 11, 136), (136, 3, 3, 1), {"groups": 136, "padding": ((1, 1), (1, 1))}, float16, float16,
     {"depthwise": 1}),
    ("depthwise, stride", (1, 9, 11, 20), (20, 5, 3, 1), {"groups": 20, "stride": (2, 3), "padding": ((2, 1), (0, 1))},
     float32, float32, {"depthwise": 1}),
    ("depthwise, odd", (1, 9, 11, 21), (21, 3, 3, 1), {"groups": 21}, bfloat16, bfloat16, {"direct": 1}),
    ("depthwise, two each", (1, 9, 11, 12), (24, 3, 3, 1), {"groups": 12}, float32, float32, {"direct": 1}),
    ("zeros between pixels", (2, 5, 4, 8), (9, 3, 3, 8), {"input_dilation": (2, 3), "padding": ((2, 1), (1, 3))},
     float16, float16, {"mma": 1, "phases": 6}),
    ("phases without taps", (2, 5, 4, 8), (9, 1, 2, 8), {"input_dilation": (3, 2), "padding": ((1, 2), (2, 1))},
     float32, float32, {"fma": 1, "phases": 6}),
    ("phases, dilation, turned round", (1, 5, 4, 8), (9, 4, 3, 8),
     {"input_dilation": (4, 3), "dilation": (2, 3), "padding": ((9, 7), (6, 5)), "flip": True}, float16, float16,
     {"mma": 1, "phases": 12}),
    ("more groups than a grid's third axis", (1, 1, 1, 4 * 65536), (4 * 65536, 1, 1, 4), {"groups": 65536}, float32,
     float32, {"direct": 1}),
    ("depthwise in phases", (2, 5, 4, 8), (8, 3, 3, 1), {"groups": 8, "input_dilation": (2, 2), "flip": True},
     float16, float16, {"depthwise": 1, "phases": 4}),
    ("stride and zeros between", (2, 5, 4, 8), (9, 3, 3, 8), {"input_dilation": (2, 3), "stride": (3, 2)},
     float16, float16, {"mma": 1}),
    ("many terms for few results", (1, 3, 3, 96), (10, 3, 3, 96), {"padding": ((1, 1), (1, 1))}, float16, float16,
     {"mma": 1, "sum": 1}),
    ("many terms, float32", (1, 3, 3, 64), (10, 3, 3, 64), {"padding": ((1, 1), (1, 1))}, float32, float32,
     {"fma": 1, "sum": 1}),
]  # fmt: skip


@pytest.mark.parametrize("x, w, settings, tx, tw, count", [p[1:] for p in PATHS], ids=[p[0] for p in PATHS])
def test_path(x: Any, w: Any, settings: Any, tx: Any, tw: Any, count: Any) -> None:
    args = drawn(1, x, dtype=tx) + drawn(2, w, dtype=tw)
    attrs = {**PLAIN, **settings}
    got, seen = counted("conv", GPU, *args, **attrs)
    assert seen == count
    close(got, "conv", *args, **attrs)


PAIRS = [(float32, float32), (float16, float16), (bfloat16, bfloat16), (float32, bfloat16), (float16, float32)]
"""Dtypes of x and w."""


def any_settings(rng: np.random.Generator) -> tuple[Any, Any, Any, dict[str, Any]] | None:
    """Shapes of x, w and the result with settings of all kinds; None if they do not fit."""
    rank, groups = int(rng.integers(1, 3)), int(rng.choice([1, 1, 1, 2, 3, 8]))
    inputs = int(rng.choice([1, 2, 3, 4, 8, 16, 40] if groups == 1 else [1, 1, 2, 4, 8]))
    outputs = int(rng.choice([1, 4, 5, 16, 33, 72] if groups == 1 else [1, 1, 2, 4, 8, 12]))
    if groups == 8 and rng.random() < 0.5:
        inputs = outputs = 1

    def each(*of: int) -> tuple[int, ...]:
        return tuple(int(n) for n in rng.choice(of, rank))

    attrs: dict[str, Any] = {
        "stride": each(1, 1, 2, 3, 7), "dilation": each(1, 1, 2, 3), "input_dilation": each(1, 1, 1, 2, 3),
        "padding": tuple((int(lo), int(hi)) for lo, hi in rng.integers(-1, 4, (rank, 2))), "groups": groups,
    }  # fmt: skip
    if max(attrs["input_dilation"]) > 1 and rng.random() < 0.8:
        attrs["stride"] = (1,) * rank
    x = (int(rng.integers(1, 4)), *(int(n) for n in rng.integers(1, 16, rank)), inputs * groups)
    w = (outputs * groups, *each(1, 2, 3, 3, 5), inputs)
    try:
        y = conv_shape(x, w, **attrs)
    except ShapeError:
        return None
    return None if 0 in y or math.prod(y) > 20000 else (x, w, y, attrs)


@pytest.mark.parametrize("arch", [90, 75])
@pytest.mark.parametrize("multiprocessors", [1, 64])
def test_any_settings(arch: int, multiprocessors: int) -> None:
    """One multiprocessor: the large tiles; many: the terms are split. sm_75 has no tensor cores for bfloat16."""
    device = gpu(arch, multiprocessors)
    rng, done = np.random.default_rng(arch + multiprocessors), 0
    stats(reset=True)
    while done < 100:
        found = any_settings(rng)
        if found is None:
            continue
        done += 1
        x, w, y, attrs = found
        tx, tw = PAIRS[rng.integers(len(PAIRS))]
        a, b, bias, added = drawn(done, x, w, w[:1], y, dtype=tx)
        b, flip = b.astype(tw), bool(rng.random() < 0.3)
        if rng.random() < 0.4:
            attrs |= {"flip": flip, "kernel": w[1:-1]}
            close(run("conv_weight_grad", device, a, added, **attrs), "conv_weight_grad", a, added, **attrs)
        elif max(attrs["input_dilation"]) > 1:
            attrs["flip"] = flip
            close(run("conv", device, a, b, **attrs), "conv", a, b, **attrs)
        else:
            del attrs["input_dilation"]
            args = (a, b, bias if rng.random() < 0.7 else None, added if rng.random() < 0.5 else None)
            attrs["activation"] = (None, "relu")[rng.integers(2)]
            close(run("conv_bias_act", device, *args, **attrs), "conv_bias_act", *args, **attrs)
    seen = stats()
    tiles = "mma fma direct depthwise phases weight_mma weight_fma weight_direct" + " mixed" * (arch == 90)
    for path in tiles.split():
        assert seen.get(f"cuda.conv_{path}"), f"{path} was not tried"


@pytest.mark.parametrize("dtype, of_w", [(float32, float32), (float16, float16), (float32, bfloat16)])
@pytest.mark.parametrize("multiprocessors", [1, 16])
def test_large_tiles_and_many_blocks(dtype: Any, of_w: Any, multiprocessors: int) -> None:
    """2 x 2 tiles of 128 by one multiprocessor, 4 x 3 of 64, two blocks for each, by many."""
    device = gpu(90, multiprocessors)
    x, w, added, bias = drawn(3, (1, 16, 16, 64), (136, 3, 3, 64), (1, 16, 16, 136), (136,), dtype=dtype)
    w = w.astype(of_w)
    attrs = {k: v for k, v in PLAIN.items() if k not in ("flip", "input_dilation")} | {"padding": ((1, 1), (1, 1))}
    got, seen = counted("conv_bias_act", device, x, w, bias, added, activation="silu", **attrs)
    assert ("sum" in seen) is (multiprocessors == 16)
    close(got, "conv_bias_act", x, w, bias, added, activation="silu", **attrs)
    attrs |= {"kernel": (3, 3), "input_dilation": (1, 1), "flip": False}
    close(run("conv_weight_grad", device, x, added, **attrs), "conv_weight_grad", x, added, **attrs)
    tiles = {key[-1][1] for key in device.driver._kernels if key[-1][0] == "TILE"}
    assert tiles == ({128} if multiprocessors == 1 else {64})


@pytest.mark.parametrize("dtype, of_w", [(float32, float32), (float16, float16), (float32, float16)])
def test_the_same_bits_in_any_order_of_threads(dtype: Any, of_w: Any) -> None:
    """Terms that are split among blocks are added up in order."""
    x, w, g = drawn(4, (2, 6, 6, 64), (72, 3, 3, 64), (2, 6, 6, 72), dtype=dtype)
    w = w.astype(of_w)
    attrs = {**PLAIN, "padding": ((1, 1), (1, 1))}
    found = [[run("conv", d, x, w, **attrs), run("conv_weight_grad", d, x, g, kernel=(3, 3), **attrs)]
             for d in (gpu(90, 32, seed) for seed in (1, 2, 3))]  # fmt: skip
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


WEIGHT_GRADS: list[tuple[str, Any, Any, dict[str, Any], Any, str]] = [
    ("half", (2, 9, 8, 16), (24, 3, 3, 16), {"padding": ((1, 1), (1, 1))}, float16, "weight_mma"),
    ("bfloat16, odd channels", (2, 9, 8, 13), (21, 3, 3, 13), {"stride": (2, 3)}, bfloat16, "weight_mma"),
    ("float32, one channel", (3, 9, 8, 1), (5, 5, 5, 1), {"padding": ((2, 1), (0, 3))}, float32, "weight_fma"),
    ("1-D", (2, 30, 12), (9, 3, 12), {"padding": ((1, 1),), "stride": (2,), "dilation": (2,), "input_dilation": (1,)},
     float32, "weight_fma"),
    ("turned round", (2, 9, 8, 16), (24, 3, 2, 16), {"padding": ((1, 1), (1, 2)), "flip": True}, float16, "weight_mma"),
    ("groups", (2, 7, 6, 48), (24, 3, 3, 16), {"groups": 3}, float16, "weight_mma"),
    ("depthwise", (2, 9, 11, 40), (40, 3, 3, 1), {"groups": 40, "padding": ((1, 1), (1, 1))}, float16, "weight_direct"),
    ("small groups", (2, 9, 11, 6), (9, 3, 3, 2), {"groups": 3, "stride": (2, 2)}, float32, "weight_direct"),
    ("1x1", (2, 4, 5, 12), (9, 1, 1, 12), {}, float32, "weight_matmul"),
]  # fmt: skip


@pytest.mark.parametrize("x, w, settings, dtype, path", [p[1:] for p in WEIGHT_GRADS], ids=[p[0] for p in WEIGHT_GRADS])
def test_weight_gradient(x: Any, w: Any, settings: Any, dtype: Any, path: str) -> None:
    attrs = {**PLAIN, **settings}
    y = conv_shape(x, w, **{k: v for k, v in attrs.items() if k != "flip"})
    attrs["kernel"] = w[1:-1]
    args = drawn(5, x, y, dtype=dtype)
    got, seen = counted("conv_weight_grad", GPU, *args, **attrs)
    assert seen.get(path) == 1
    close(got, "conv_weight_grad", *args, **attrs)


@pytest.mark.parametrize("dtype", [float32, float16])
def test_gradients_of_a_layer(dtype: Any) -> None:
    """Through Autodiff: the gradient in x of a stride is plain convolutions, one for each phase."""
    x, w, bias = drawn(6, (2, 8, 9, 16), (24, 3, 3, 16), (24,), dtype=dtype)

    def gradients(device: Any, *values: np.ndarray) -> list[np.ndarray]:
        once = Autodiff(device)
        entered = [Tensor(once.variable(device.from_host(v)), once) for v in values]
        y = ops.conv(*entered, stride=2, padding=1, activation="relu")
        found = ops.sum(y * y).backward()
        return [found[t].numpy() for t in entered]

    stats(reset=True)
    got = gradients(GPU, x, w, bias)
    seen = stats()
    assert seen["cuda.conv_phases"] == 4 and seen[f"cuda.conv_weight_{'fma' if dtype == float32 else 'mma'}"] == 1
    for a, b in zip(got, gradients(REFERENCE, *wide(x, w, bias)), strict=True):
        assert abs(a - b).max() <= (3 if dtype == float32 else 1.5) * UNIT[dtype] * 8 * abs(b).max()


@pytest.mark.parametrize("activation", kernels.ACTIVATIONS[1:])
@pytest.mark.parametrize("groups", [1, 8])
def test_every_activation(activation: str, groups: int) -> None:
    """Far from 0 too, where exp overflows: by the kernels of tiles, and by those without."""
    x, w, bias = drawn(12, (1, 4, 5, 8), (8, 3, 3, 8 // groups), (8,))
    attrs = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": groups}
    for values in (x, 300 * x):
        args: Any = (values, w, bias, None)
        got = run("conv_bias_act", GPU, *args, activation=activation, **attrs)
        close(got, "conv_bias_act", *args, activation=activation, **attrs)


@pytest.mark.parametrize("dtype", [float32, float16, bfloat16])
def test_weights_of_8_bits(dtype: Any) -> None:
    """Codes are exact in every float; the scale is applied to the sum."""
    rng = np.random.default_rng(7)
    x, bias, added = drawn(8, (2, 7, 6, 20), (9,), (2, 4, 6, 9), dtype=dtype)
    q, scale = rng.integers(-127, 128, (9, 3, 3, 20)).astype(np.int8), rng.uniform(0.001, 0.02, 9).astype(np.float32)
    settings = {"stride": (2, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "activation": "gelu"}
    got, seen = counted("qconv", GPU, x, q, scale, bias, added, **settings)
    assert seen == {"mixed" if dtype == float32 else "mma": 1}
    w = q * scale.astype(np.float64)[:, None, None, None]
    want = run("conv_bias_act", REFERENCE, *wide(x, w, bias, added), groups=1, **settings)
    assert (abs(got.astype(np.float64) - want) <= 3e-6 * abs(want).max() + 1.01 * UNIT[dtype] * abs(want)).all()


def test_views_are_read_as_they_lie() -> None:
    """Strided, turned round, beginning in the middle of 16 bytes."""
    x, w = drawn(9, (3, 17, 9, 8), (8, 3, 3, 8), dtype=float16)
    flat = np.zeros(x[1:].size + 1, float16)
    flat[1:] = x[1:].reshape(-1)
    for view in (x[:, ::2], x[:, :, ::-1], x[::2], flat[1:].reshape(2, 17, 9, 8)):
        for weight in (w, w.transpose(3, 1, 2, 0), w[:, ::-1]):
            got = GPU.to_host(GPU.bind(TABLE["conv"], [view, weight], PLAIN))
            close(got, "conv", view, weight, **PLAIN)


@pytest.mark.parametrize(
    "dtype, of_w", [(float32, float32), (float16, float16), (float32, bfloat16), (float32, float16)]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_reaches_what_sees_it(dtype: Any, of_w: Any, value: float) -> None:
    """And nothing else: not through channels that were filled up, nor through rows of a tile beside it."""
    x, w = drawn(10, (1, 9, 9, 5), (3, 3, 3, 5), dtype=dtype)
    x[0, 4, 5, 2] = value
    got = run("conv", GPU, x, w.astype(of_w), **{**PLAIN, "padding": ((1, 1), (1, 1))})
    seen = np.zeros((9, 9), bool)
    seen[3:6, 4:7] = True
    assert (~np.isfinite(got[0]) == seen[:, :, None]).all()


def test_what_is_declined_is_the_array_codes() -> None:
    """Three spatial axes, float64, nothing to calculate; and sizes that 32 bits do not count."""
    for shape, w, dtype in (((1, 4, 4, 4, 2), (3, 2, 2, 2, 2), float32), ((1, 4, 4, 2), (3, 2, 2, 2), np.float64),
                            ((0, 4, 4, 2), (3, 2, 2, 2), float32), ((1, 4, 4, 2), (0, 2, 2, 2), float32)):  # fmt: skip
        rank = len(shape) - 2
        attrs = {k: v[:1] * rank if isinstance(v, tuple) else v for k, v in PLAIN.items()}
        args = drawn(11, shape, w, dtype=dtype)
        got, seen = counted("conv", GPU, *args, **attrs)
        assert seen == {} and got.shape == conv_shape(shape, w, **{k: v for k, v in attrs.items() if k != "flip"})
        np.testing.assert_allclose(got, run("conv", REFERENCE, *args, **attrs), rtol=1e-6)
    x, w = np.broadcast_to(np.float32(0), (1, 2**16, 2**15, 1)), np.zeros((1, 1, 1, 1), np.float32)
    assert kernels.conv(GPU, x, w, **PLAIN) is NotImplemented
