"""Products with weights of 8 and 4 bits on the cpu device, with every instruction set that this machine has.

The oracle of the kernels is the same calculation in exact integers: x quantised by row as the kernels promise it,
scales in float64. What quantising x costs is checked against the dequantised weights, under the op's own tolerance.
"""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from zoo.core.backends.numpy import NumpyBackend
from zoo.core.errors import OpError
from zoo.core.prims import TABLE
from zoo.core.stats import stats
from zoo.core.testing.tol import QUANTISED

native = pytest.importorskip("zoo.core.backends.cpu._native", reason="the native kernels were not built")
from zoo.core.backends.cpu import CpuBackend  # noqa: E402

REFERENCE = NumpyBackend()
THREADS = native.threads()


@pytest.fixture(params=["int8", "int4"])
def format(request):
    return request.param


def bind(backend, name, *args, **attrs):
    return backend.bind(TABLE[name], args, attrs)


def qlinear(backend, x, weight, bias=None, activation=None):
    q, scale = weight
    return bind(backend, "qlinear", x, q, scale, bias, format=format_of(q), activation=activation)


def format_of(q):
    return "int8" if q.dtype == np.int8 else "int4"


def weight(rng, n, k, format):
    return bind(REFERENCE, "quantize", rng.normal(size=(n, k)).astype(np.float32), format=format)


def packed(cpu, weight):
    q, scale = weight
    return cpu.pack(q, "linear"), cpu.pack(scale, "linear") if scale.ndim == 2 else scale


def guarded(array):
    """The same values between large ones: who reads too far will see it in the result."""
    memory = np.full(array.size + 34, 1e30, np.float32)
    memory[17:-17] = array.reshape(-1)
    return memory[17:-17].reshape(array.shape)


def expected(x, weight, bias=0.0):
    """In integers and float64; also the sum of the sizes of all terms."""
    largest = abs(x).max(axis=1, initial=0).astype(np.float32)
    usable = largest >= np.float32(1e-36)
    inverse = np.where(usable, np.float32(127) / np.where(usable, largest, 1), 0).astype(np.float32)
    codes = np.rint(x * inverse[:, None]).astype(np.float64)
    assert abs(codes).max(initial=0) <= 127
    scale = np.where(usable, largest / np.float32(127), 0).astype(np.float64)[:, None]
    q, w_scale = weight
    if format_of(q) == "int8":
        w = q.astype(np.float64) * w_scale.astype(np.float64)[:, None]
    else:
        w = bind(REFERENCE, "dequantize", q, w_scale, format="int4", dtype=np.dtype(np.float64))
    return codes @ w.T * scale + bias, abs(codes) @ abs(w).T * scale + abs(bias)


def check(cpu, x, weight, packed, bias, rounding=8):
    """Integer sums are exact; then come the two scales, the bias and, for 4 bits, a sum of groups in float32."""
    y, size = expected(x, weight, 0.0 if bias is None else bias)
    bound = rounding * 2.0**-24 * size + 1e-37
    name = f"cpu.{format_of(weight[0])}"
    before = stats().get(name, 0)
    found = qlinear(cpu, x, packed, bias)
    assert stats()[name] == before + 1
    assert found.dtype == x.dtype and found.shape == y.shape
    assert (abs(found - y) <= bound).all(), f"{found.shape} {x.shape[1]}: {abs(found - y).max()}"


def test_every_number_of_rows_and_every_tail(cpu, format, rng):
    nr = native.tile()[1]
    depths = (1, 3, 32, 37, 130) if format == "int8" else (32, 64, 160)
    for n in (1, nr // 2, nr, nr + 1, 2 * nr - 1):
        bias = rng.normal(size=n).astype(np.float32)
        for k in depths:
            w = weight(rng, n, k, format)
            p = packed(cpu, w)
            for m in (*range(1, 30), 43, 57):
                check(cpu, guarded(rng.normal(size=(m, k)).astype(np.float32)), w, p, guarded(bias))


# blocks of K, several tasks over columns, tasks over rows
@pytest.mark.parametrize(
    "m, n, k", [(1, 300, 9000 // 32 * 32), (40, 70, 4480), (70, 40, 8736), (300, 130, 256), (700, 33, 96)]
)
def test_large_products(cpu, format, rng, m, n, k):
    w = weight(rng, n, k, format)
    check(
        cpu, rng.normal(size=(m, k)).astype(np.float32), w, packed(cpu, w), None, rounding=8 if format == "int8" else 40
    )


def test_largest_codes_do_not_saturate(cpu, rng):
    """+-127 against -128 .. 127 in all places: sums of pairs pass 2^15, where 16-bit sums would saturate."""
    k = 20000
    for code in (-128, 127):
        q, scale = np.full((3, k), code, np.int8), np.ones(3, np.float32)
        for sign in (1, -1):
            for m in (1, 20):
                x = np.full((m, k), 127.0 * sign, np.float32)
                found = qlinear(cpu, x, packed(cpu, (q, scale)))
                np.testing.assert_array_equal(found, np.float32(127 * sign * code * k))
    q, scale = np.full((2, 64), 0xF0, np.uint8), np.ones((2, 4), np.float16)  # -8 and 7 in turns
    x = np.tile(np.array([-127, 127], np.float32), (3, 64))
    np.testing.assert_array_equal(qlinear(cpu, x, packed(cpu, (q, scale))), np.float32(127 * 15 * 64))


def test_within_the_tolerance_of_the_op(cpu, format, rng):
    for m in (1, 5, 40):
        x, w = rng.normal(size=(m, 512)).astype(np.float32), weight(rng, 100, 512, format)
        wide = bind(REFERENCE, "dequantize", *w, format=format, dtype=np.dtype(np.float64))
        assert not QUANTISED.error(qlinear(cpu, x, packed(cpu, w)), x.astype(np.float64) @ wide.T)


def test_plain_arrays_strides_and_other_dtypes(cpu, format, rng):
    w = weight(rng, 45, 64, format)
    x = rng.normal(size=(60, 130)).astype(np.float32)
    bias = rng.normal(size=45).astype(np.float32)
    for view in (
        x[:9, :64],
        x[::7, 1:65],
        x[:40, 128:0:-2],
        np.asfortranarray(x)[:20, :64],
        np.broadcast_to(x[:1, :64], (3, 64)),
    ):
        check(cpu, view, w, w, bias)
        check(cpu, view, w, packed(cpu, w), bias[::-1])
    tall = tuple(np.repeat(a, 2, axis=0)[::2] for a in w)  # strided weights
    check(cpu, x[:5, :64], w, tall, None)
    for dtype in (zoo.float16, zoo.bfloat16):
        half = x[:5, :64].astype(dtype)
        found = qlinear(cpu, half, packed(cpu, w), bias.astype(dtype))
        y, size = expected(half.astype(np.float32), w, bias.astype(dtype).astype(np.float64))
        assert found.dtype == dtype
        assert (
            abs(found.astype(np.float64) - y) <= 2.0 ** -(8 if dtype == zoo.bfloat16 else 11) * abs(y) + 1e-6 * size
        ).all()
    three = qlinear(cpu, x[:6, :64].reshape(2, 3, 64), packed(cpu, w))
    np.testing.assert_array_equal(three.reshape(6, 45), qlinear(cpu, x[:6, :64], packed(cpu, w)))


def test_several_products_at_once_are_those_one_by_one(cpu, format, rng):
    """Tasks are cut across their borders; a row that is not finite is computed as the reference does."""
    weights = [weight(rng, n, 96, format) for n in (300, 7, 64, 1)]
    for m in (0, 1, 5, 300):
        x = rng.normal(size=(m, 96)).astype(np.float32)
        if m == 5:
            x[3, 7] = np.inf
        for form in (lambda w: w, lambda w: packed(cpu, w)):
            each = [form(w) for w in weights]
            bias = [rng.normal(size=n).astype(np.float32) if n > 7 else None for n in (300, 7, 64, 1)]
            parts = [part for w, b in zip(each, bias, strict=True) for part in (*w, b)]
            found = bind(cpu, "qlinears", x, *parts, format=format)
            for y, w, b in zip(found, each, bias, strict=True):
                np.testing.assert_array_equal(y, qlinear(cpu, x, w, b))


def test_bias_and_activation_follow(cpu, format, rng):
    w, bias = weight(rng, 70, 64, format), rng.normal(size=70).astype(np.float32)
    for m in (1, 9, 300):
        x = rng.normal(size=(m, 64)).astype(np.float32)
        plain = qlinear(cpu, x, packed(cpu, w), bias)
        np.testing.assert_array_equal(qlinear(cpu, x, packed(cpu, w), bias, "relu"), np.maximum(plain, 0))
        np.testing.assert_allclose(
            qlinear(cpu, x, packed(cpu, w), bias, "silu"), plain / (1 + np.exp(-plain)), rtol=1e-5, atol=1e-6
        )


def test_zero_and_tiny_rows(cpu, format, rng):
    w, bias = weight(rng, 40, 64, format), rng.normal(size=40).astype(np.float32)
    x = np.stack([np.zeros(64), np.full(64, 1e-40), np.full(64, 1e-30), np.full(64, 3e38)]).astype(np.float32)
    found = qlinear(cpu, x, packed(cpu, w), bias)
    np.testing.assert_array_equal(found[:2], np.broadcast_to(bias, (2, 40)))
    y, size = expected(x[2:], w)
    plain = qlinear(cpu, x[2:], packed(cpu, w))
    finite = size < 1e38
    assert (abs(plain - y)[finite] <= 1e-6 * size[finite]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_the_references(cpu, format, rng, value):
    """Such a row has no scale: it is computed as the reference does. Its neighbours stay what they were, bit by bit."""
    w, x = weight(rng, 40, 64, format), rng.normal(size=(5, 64)).astype(np.float32)
    clean = qlinear(cpu, x, packed(cpu, w))
    x[2, 33] = value
    for given in (packed(cpu, w), w):
        found = qlinear(cpu, x, given)
        np.testing.assert_array_equal(np.delete(found, 2, axis=0), np.delete(clean, 2, axis=0))
        np.testing.assert_array_equal(found[2], qlinear(REFERENCE, x, w)[2])


def test_the_number_of_threads_changes_no_bit(cpu, format, rng):
    w = weight(rng, 300, 512, format)
    p, xs = packed(cpu, w), [rng.normal(size=(m, 512)).astype(np.float32) for m in (1, 9, 40, 300, 700)]
    try:
        results = []
        for threads in (1, 2, 5):
            native.set_threads(threads)
            results.append([qlinear(cpu, x, p) for x in xs])
    finally:
        native.set_threads(THREADS)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_nothing_is_written_beside_the_result(cpu, format, rng):
    for m, n, k in ((1, 33, 64), (15, 31, 96), (40, 65, 32), (300, 7, 32)):
        w, x = weight(rng, n, k, format), rng.normal(size=(m, k)).astype(np.float32)
        q, scale = packed(cpu, w)
        memory = np.full(m * n + 66, 1234.5, np.float32)
        native.quant_linear(
            x, q.buffer, getattr(scale, "buffer", scale), memory[33:-33].reshape(m, n), bits=int(format[3])
        )
        assert (memory[:33] == 1234.5).all() and (memory[-33:] == 1234.5).all()


def test_packing_loses_nothing(cpu, rng):
    for shape in ((33, 17), (1, 1), (64, 128), (5, 1000)):
        q = rng.integers(-128, 128, shape, dtype=np.int8)
        p = cpu.pack(q, "linear")
        assert p.shape == shape and p.dtype == np.int8 and p.isa == cpu.isa
        np.testing.assert_array_equal(p.unpack(), q)
    for shape in ((33, 16), (1, 32), (64, 512)):
        q = rng.integers(0, 256, shape, dtype=np.uint8)
        p = cpu.pack(q, "linear")
        assert p.shape == shape and p.dtype == np.uint8
        np.testing.assert_array_equal(p.unpack(), q)
    with pytest.raises(OpError, match="cannot pack"):
        cpu.pack(np.zeros((4, 24), np.uint8), "linear")


def test_what_is_packed_for_another_instruction_set_is_unpacked(rng, format):
    before = native.isa()
    try:
        w, x = weight(rng, 40, 64, format), rng.normal(size=(3, 64)).astype(np.float32)
        for made in native.isas():
            native.set_isa(made)
            p = packed(CpuBackend(), w)
            for used in native.isas():
                native.set_isa(used)
                check(CpuBackend(), x, w, p, None)
    finally:
        native.set_isa(before)


def test_a_packed_weight_stands_wherever_one_does(cpu, format, rng):
    w = weight(rng, 40, 64, format)
    wide = bind(REFERENCE, "dequantize", *w, format=format, dtype=np.dtype(np.float32))
    np.testing.assert_array_equal(
        bind(cpu, "dequantize", *packed(cpu, w), format=format, dtype=np.dtype(np.float32)), wide
    )
    x = rng.normal(size=(3, 64))  # float64 is not quantised
    np.testing.assert_allclose(qlinear(cpu, x, packed(cpu, w)), x @ wide.T.astype(np.float64), rtol=1e-12)


def test_empty_products(cpu):
    bias = np.ones(4, np.float32)
    for m, n, k in ((0, 4, 64), (3, 4, 0), (3, 0, 64)):
        q, scale = np.ones((n, k), np.int8), np.ones(n, np.float32)
        x = np.ones((m, k), np.float32)
        np.testing.assert_allclose(qlinear(cpu, x, (q, scale), bias[:n]), np.full((m, n), k + 1.0))


def test_wrong_arguments_are_refused_before_any_memory_is_touched(cpu, rng):
    q, scale = packed(cpu, weight(rng, 40, 64, "int8"))
    x, out = np.ones((3, 64), np.float32), np.ones((3, 40), np.float32)
    for arguments in (
        (x[:, :32], q.buffer, scale, out),
        (x, q.buffer[:-1], scale, out),
        (x, q.buffer, scale[:-1], out),
        (x, q.buffer, scale, out[:2]),
        (x, q.buffer, scale, out.T),
        (x.T, q.buffer, scale, out),
        (x.astype(np.float64), q.buffer, scale, out),
    ):
        with pytest.raises(ValueError):
            native.quant_linear(*arguments)
    with pytest.raises(ValueError):
        native.quant_linear(x, q.buffer, scale, out, bits=4)
    with pytest.raises(ValueError):
        native.quant_linear(x, q.buffer, scale, out, bits=3)


# ---- attention in 16 bits


def _plain(q, k, v, scale):
    scores = scale * np.einsum("blhd,bshd->bhls", q.astype(np.float64), k.astype(np.float64))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bhls,bshd->blhd", weights / weights.sum(axis=-1, keepdims=True), v.astype(np.float64))


def _attend(q, k, v, scale):
    out = np.full((*q.shape[:3], v.shape[3]), np.nan, np.float32)
    assert native.quant_attention(q, k, v, out, scale)
    return out


ATTENTIONS = [  # B, L, S, H, D, Dv
    (1, 1, 1, 1, 1, 1), (2, 5, 7, 3, 40, 40), (1, 130, 77, 2, 80, 80), (1, 64, 513, 2, 40, 24),
    (1, 20, 600, 1, 160, 33), (1, 3, 256, 1, 512, 64),
]  # fmt: skip


@pytest.mark.parametrize("spread", [0.01, 1, 6])
@pytest.mark.parametrize("shape", ATTENTIONS)
def test_attention_in_16_bits(isa, rng, shape, spread):
    """Values of 10 bits are 2e-3 off; scores of 6 times the usual spread are nearly a choice of one key."""
    B, L, S, H, D, Dv = shape
    q, k, v = (rng.normal(size=s).astype(np.float32) for s in ((B, L, H, D), (B, S, H, D), (B, S, H, Dv)))
    q *= spread
    expected = _plain(q, k, v, D**-0.5)
    assert np.linalg.norm(_attend(q, k, v, D**-0.5) - expected) <= 4e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e15])
def test_attention_of_strange_sizes(isa, rng, size):
    """Scores of nothing weigh all keys alike, and of 1e30 one key alone; sizes of values go through."""
    q, k, v = (rng.normal(size=(1, 9, 2, 24)).astype(np.float32) for _ in range(3))
    found = _attend(q * np.float32(size), k * np.float32(size), v, 0.2)
    expected = _plain(q * np.float32(size), k * np.float32(size), v, 0.2)
    assert np.linalg.norm(found - expected) <= 4e-3 * np.linalg.norm(expected)
    if size:
        large = _attend(q, k, v * np.float32(size * 1e3), 0.2)
        np.testing.assert_allclose(large / (size * 1e3), _attend(q, k, v, 0.2), atol=5e-3 if size > 1e-30 else 1)


def test_attention_of_a_peak_and_a_long_tail(isa, rng):
    """The tail weighs as much as the peak: weights of 1e-3 each must not be rounded away."""
    q, k = np.ones((1, 1, 1, 16), np.float32), np.zeros((1, 1024, 1, 16), np.float32)
    k[0, 300] = np.log(1023) / 16
    v = np.ones((1, 1024, 1, 8), np.float32)
    v[0, 300] = 3
    np.testing.assert_allclose(_attend(q, k, v, 1.0), 2, atol=0.01)


def test_threads_and_layouts_change_no_bit_of_it(isa, rng, restore_threads):
    wide = rng.normal(size=(2, 150, 3, 4, 40)).astype(np.float32)
    q, k, v = (wide[:, :, i] for i in range(3))
    results = []
    for threads in (1, 2, 5):
        native.set_threads(threads)
        results += [_attend(q, k, v, 0.2), _attend(*(np.ascontiguousarray(x) for x in (q, k, v)), 0.2)]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_to_float32(isa, rng, which, value):
    arrays = [rng.normal(size=(1, 40, 2, 20)).astype(np.float32) for _ in range(3)]
    arrays[which][0, 33, 1, 7] = value
    cpu = CpuBackend()
    before = stats().get("cpu.attention_int16", 0)
    found = cpu.bind(TABLE["qattention"], arrays, {"beside": "int8", "scale": None})
    plain = cpu.bind(TABLE["attention"], [*arrays, None], {"causal": False, "scale": None})
    np.testing.assert_array_equal(found, plain)
    assert stats().get("cpu.attention_int16", 0) == before
    arrays[which][0, 33, 1, 7] = 0
    cpu.bind(TABLE["qattention"], arrays, {"beside": "int8", "scale": None})
    assert stats()["cpu.attention_int16"] == before + 1
