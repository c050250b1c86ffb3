"""Winograd's algorithm for 3x3 convolutions on the cpu device, the choice between algorithms and what is remembered of
measurements, with every instruction set that this machine has."""

from __future__ import annotations

import json
import math
import threading

import numpy as np
import pytest

from zoo.core.dtype import bfloat16, float16
from zoo.core.errors import OpError, ZooError
from zoo.core.prims import TABLE
from zoo.core.stats import stats

native = pytest.importorskip("zoo.core.backends.cpu._native", reason="the native kernels were not built")
from zoo.core.backends.cpu import CpuBackend  # noqa: E402
from zoo.core.backends.cpu.kernels import tune, winograd  # noqa: E402
from zoo.core.backends.cpu.kernels.common import ACTIVATIONS  # noqa: E402
from zoo.core.backends.numpy import NumpyBackend  # noqa: E402

REFERENCE = NumpyBackend()
THREADS = native.threads()
GUARD = 1234.5
# (N, H, W, C, O, rows and columns of zeros above, below, left, right)
SHAPES = [
    (1, 3, 3, 1, 1, (0, 0, 0, 0)),
    (1, 1, 1, 20, 33, (1, 1, 1, 1)),
    (2, 7, 9, 5, 3, (1, 1, 1, 1)),
    (3, 6, 5, 16, 70, (0, 0, 0, 0)),
    (2, 13, 14, 33, 40, (2, 0, 0, 3)),
    (1, 8, 30, 17, 16, (-1, 2, 1, -2)),
    (5, 12, 11, 64, 32, (1, 1, 1, 1)),
    (1, 9, 9, 800, 140, (1, 1, 1, 1)),  # many parts of U
    (2, 33, 61, 70, 40, (1, 1, 1, 1)),  # several blocks of tiles
    (1, 94, 93, 20, 33, (1, 1, 1, 1)),  # so many tiles that U is made as a whole
    (1, 93, 94, 800, 33, (1, 1, 0, 1)),  # and its channels come in blocks
]
GROWTH = 7
"""Error allowed, in units of sqrt(K) 2^-24 times the largest |X| * |W|: twice what 60 random shapes reached at most
(3.4; the direct algorithm 0.65)."""


def normal(rng, *shape):
    """Normal numbers with NaN on both sides in memory: who reads too far will see it in the result."""
    memory = np.full(math.prod(shape) + 34, np.nan, np.float32)
    inner = memory[17:-17]
    inner[:] = rng.normal(size=inner.size)
    return inner.reshape(shape)


def settings(pad):
    top, bottom, left, right = pad
    return {
        "stride": (1, 1), "padding": ((top, bottom), (left, right)), "dilation": (1, 1), "input_dilation": (1, 1),
        "groups": 1, "flip": False,
    }  # fmt: skip


def in_float64(x, w, pad, flip=False):
    attrs = settings(pad) | {"flip": flip}
    return REFERENCE.bind(TABLE["conv"], [x.astype(np.float64), w.astype(np.float64)], attrs)


def run(x, w, shape, pad, bias=None, residual=None, activation=0, flip=False, packed=False):
    memory = np.full(math.prod(shape) + 66, GUARD, np.float32)
    out = memory[33:-33].reshape(shape)
    given = (-1, 0, 0, 0)
    if packed:
        given, columns = w.shape, native.tile()[1]
        taps = np.empty(-(-w.shape[0] // columns) * columns * w.shape[3] * 9, np.float32)
        native.pack_conv(w, taps, 1, flip)
        w, flip = taps, False
    native.conv(x, w, out, bias, residual, activation, (1, 1), (pad[0], pad[2]), (1, 1), 1, flip, given, True)
    assert (memory[:33] == GUARD).all() and (memory[-33:] == GUARD).all()
    return out


def assert_close(found, expected, size, K):
    """size: |X| * |W|, what the sums have in them; a tile shares its errors, so the largest counts."""
    assert abs(found - expected).max() <= GROWTH * math.sqrt(K) * 2.0**-24 * size.max()


@pytest.mark.parametrize("n, h, w_, c, o, pad", SHAPES)
def test_against_float64(isa, rng, n, h, w_, c, o, pad):
    x, w = normal(rng, n, h, w_, c), normal(rng, o, 3, 3, c)
    expected, size = in_float64(x, w, pad), in_float64(abs(x), abs(w), pad)
    bias, residual = normal(rng, o), normal(rng, *expected.shape)
    for packed in (False, True):
        assert_close(run(x, w, expected.shape, pad, packed=packed), expected, size, 9 * c)
    found = run(x, w, expected.shape, pad, bias, residual, ACTIVATIONS.index("relu"))
    assert_close(found, np.maximum(expected + bias + residual, 0), size, 9 * c)
    wide = np.concatenate([x, x], axis=2)[:, :, ::2] if w_ % 2 == 0 else x[:, ::-1]
    expected = in_float64(wide, w[:, :, ::-1], pad, flip=True)
    for packed in (False, True):
        found = run(wide, w[:, :, ::-1], expected.shape, pad, flip=True, packed=packed)
        assert_close(found, expected, size, 9 * c)


@pytest.mark.parametrize("sides", [(41, 38), (90, 95)])
def test_many_blocks_and_every_activation(isa, rng, sides):
    x, w, bias = normal(rng, 2, *sides, 24), normal(rng, 150, 3, 3, 24), normal(rng, 150)
    pad = (1, 1, 1, 1)
    expected, size = in_float64(x, w, pad) + bias, in_float64(abs(x), abs(w), pad)
    for code, name in enumerate(ACTIVATIONS):
        want = REFERENCE.bind(TABLE[name], [expected], {}) if name else expected
        for packed in (False, True):
            found = run(x, w, expected.shape, pad, bias, None, code, packed=packed)
            assert_close(found, want, size + 1, 9 * 24)


def test_the_number_of_threads_changes_no_bit(isa, rng, restore_threads):
    for n, s, c, o in [(1, 7, 40, 300), (2, 30, 33, 70), (1, 50, 16, 16), (1, 93, 70, 40)]:
        x, w = normal(rng, n, s, s, c), normal(rng, o, 3, 3, c)
        results = []
        for threads in (1, 2, 5):
            native.set_threads(threads)
            results += [run(x, w, (n, s, s, o), (1, 1, 1, 1), packed=packed) for packed in (False, True)]
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_and_spreads_no_further_than_its_tiles(isa, rng, value):
    x, w = normal(rng, 1, 20, 20, 3), normal(rng, 4, 3, 3, 3)
    x[0, 9, 10, 1] = value
    found = np.isfinite(run(x, w, (1, 20, 20, 4), (1, 1, 1, 1)))
    assert not found[0, 8:11, 9:12].any()
    found[0, 5:14, 6:15] = True
    assert found.all()


# ---- the choice


def conv(cpu, x, w, pad=(1, 1, 1, 1)):
    return cpu.bind(TABLE["conv"], [x, w], settings(pad))


def taken(cpu, *args):
    before = stats().get("cpu.winograd", 0)
    conv(cpu, *args)
    return stats().get("cpu.winograd", 0) - before


def test_which_algorithm_is_cheaper():
    """The layers of ResNet-50 and of Stable Diffusion's UNet and VAE, as they were measured."""
    for images, side, channels, outputs, faster in [
        (1, 56, 64, 64, True), (1, 28, 128, 128, True), (1, 14, 256, 256, True), (1, 7, 512, 512, False),
        (8, 7, 512, 512, True), (2, 64, 320, 320, True), (2, 64, 4, 320, False), (2, 16, 1280, 1280, True),
        (2, 8, 1280, 1280, True), (1, 512, 128, 128, True), (1, 64, 4, 512, False),
    ]:  # fmt: skip
        assert winograd.cheaper(images, (side, side), channels, outputs, True) == faster
    assert not winograd.cheaper(1, (7, 7), 512, 512, False)
    assert winograd.cheaper(2, (64, 64), 320, 320, False)
    assert not winograd.cheaper(2, (8, 8), 1280, 1280, True, True) and winograd.cheaper(
        2, (64, 64), 320, 320, True, True
    )


def test_it_is_taken_where_it_fits_and_can_be_switched_off(monkeypatch, rng):
    cpu = CpuBackend()
    x, w = normal(rng, 1, 32, 32, 64), normal(rng, 64, 3, 3, 64)
    assert taken(cpu, x, w) == taken(cpu, x, cpu.pack(w, "conv")) == 1
    assert taken(cpu, x, w[:, :2, :2]) == taken(cpu, x.transpose(0, 3, 1, 2), normal(rng, 64, 3, 3, 32)) == 0
    strided = settings((1, 1, 1, 1)) | {"stride": (2, 2)}
    before = stats()["cpu.winograd"]
    cpu.bind(TABLE["conv"], [x, w], strided)
    assert stats()["cpu.winograd"] == before
    monkeypatch.setenv("ZOO_OFF", "winograd")
    off = CpuBackend()
    assert taken(off, x, w) == 0
    np.testing.assert_allclose(conv(off, x, w), conv(cpu, x, w), atol=1e-3)


@pytest.mark.parametrize("dtype", [bfloat16, float16])
@pytest.mark.parametrize("side", [14, 94])
def test_taps_of_half_precision(isa, rng, monkeypatch, side, dtype):
    monkeypatch.setenv("ZOO_OFF", "bf16")  # small pictures would be direct; pairs are in test_bf16_native.py
    cpu = CpuBackend()
    x, w = normal(rng, 1, side, side, 64), normal(rng, 64, 3, 3, 64).astype(dtype)
    packed, wide = cpu.pack(w, "conv"), w.astype(np.float32)
    assert taken(cpu, x, packed) == taken(cpu, x, w) == 1
    np.testing.assert_allclose(conv(cpu, x, packed), in_float64(x, wide, (1, 1, 1, 1)), atol=2e-3)


# ---- measured choices


def never():
    raise AssertionError("nothing may be measured here")


def test_measured_choices_are_remembered(tmp_path):
    path, ran = tmp_path / "new" / "tuning.json", []
    times = {0: 2, 2: 1, 4: 3}

    def candidates():
        return {choice: lambda n=n: ran.append(sum(range(n * 20000))) for choice, n in times.items()}

    assert tune.Choices(None, path).find("m", "s", never) is None and not path.exists()
    assert tune.Choices("1", path).find("m", "s", candidates) == 2
    assert ran and json.loads(path.read_text()) == {"m": {"s": 2}}
    assert tune.Choices(None, path).find("m", "s", never) == tune.Choices("1", path).find("m", "s", never) == 2
    assert tune.Choices(None, path).find("other machine", "s", never) is None
    assert tune.Choices("0", path).find("m", "s", never) is None
    assert [p.name for p in path.parent.iterdir()] == ["tuning.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"m": 3}', '{"m": {"s": "fast"}}', "\x00", "[" * 100000])
def test_a_broken_file_counts_as_empty_and_is_replaced(tmp_path, text):
    path = tmp_path / "tuning.json"
    path.write_text(text)
    assert tune.Choices(None, path).find("m", "s", never) is None
    assert tune.Choices("1", path).find("m", "s", lambda: {4: lambda: None}) == 4
    assert json.loads(path.read_text())["m"] == {"s": 4}


def test_several_at_once_never_leave_half_a_file(tmp_path):
    path = tmp_path / "tuning.json"

    def work(k):
        choices = tune.Choices("1", path)
        for i in range(20):
            choices.find("m", f"{k}-{i}", lambda: {2: lambda: None})
            assert choices._read()["m"]

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in workers:
        t.start()
    for t in workers:
        t.join()
    document = json.loads(path.read_text())
    assert set(document) == {"m"} and set(document["m"].values()) == {2}
    assert [p.name for p in tmp_path.iterdir()] == ["tuning.json"]


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path):
    (tmp_path / "file").write_text("")
    choices = tune.Choices("1", tmp_path / "file" / "tuning.json")
    assert choices.find("m", "s", lambda: {4: lambda: None}) == choices.find("m", "s", never) == 4


def test_tuning_a_convolution(monkeypatch, tmp_path, rng):
    monkeypatch.setenv("ZOO_TUNE", "1")
    cpu = CpuBackend()
    cpu.choices._path = tmp_path / "tuning.json"
    x, w = normal(rng, 1, 12, 12, 8), normal(rng, 8, 3, 3, 8)
    packed = cpu.pack(w, "conv")
    found = conv(cpu, x, w), conv(cpu, x, packed), conv(cpu, x, packed)
    for y in found:
        np.testing.assert_allclose(y, in_float64(x, w, (1, 1, 1, 1)), atol=1e-4)
    (shapes,) = json.loads(cpu.choices.path.read_text()).values()
    assert sorted(shapes) == ["conv3x3 1x12x12x8 -> 1x12x12x8", "conv3x3 1x12x12x8 -> 1x12x12x8 packed"]
    # what the file says is followed, whatever the estimate says
    for tile in (0, 4):
        (machine,) = json.loads(cpu.choices.path.read_text())
        cpu.choices.path.write_text(json.dumps({machine: dict.fromkeys(shapes, tile)}))
        monkeypatch.setenv("ZOO_TUNE", "")
        follower = CpuBackend()
        follower.choices._path = cpu.choices.path
        assert taken(follower, x, w) == taken(follower, x, packed) == (tile > 0)
    monkeypatch.setenv("ZOO_TUNE", "yes")
    with pytest.raises(ZooError, match="ZOO_TUNE"):
        CpuBackend()


# ---- each channel by itself, and backwards


def whole(rng, *shape):
    """Whole numbers, whose sums are exact in any order, with NaN on both sides in memory."""
    numbers = normal(rng, *shape)
    numbers[...] = rng.integers(-2, 3, shape)
    return numbers


def agree(cpu, name, *args, **attrs):
    expected = REFERENCE.bind(TABLE[name], list(args), attrs)
    before = stats().get("cpu.conv_f32", 0)
    found = cpu.bind(TABLE[name], list(args), attrs)
    assert stats()["cpu.conv_f32"] == before + 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("channels", [2, 6, 17, 40])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 5), (2, 2)])
def test_depthwise(isa, rng, channels, kernel, restore_threads):
    cpu = CpuBackend()
    x, w, bias = whole(rng, 2, 11, 27, channels), whole(rng, channels, *kernel, 1), whole(rng, channels)
    paddings = [((0, 0), (0, 0)), ((1, 1), (2, 1)), ((-1, 0), (0, -2)), ((3, 2), (0, 5))]
    for threads, padding in enumerate(paddings, 1):
        native.set_threads(threads)
        for stride, dilation in [((1, 1), (1, 1)), ((2, 1), (1, 2)), ((2, 3), (2, 1))]:
            attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": channels}
            for flip in (False, True):
                agree(cpu, "conv", x, w, input_dilation=(1, 1), flip=flip, **attrs)
                agree(cpu, "conv", x[:, ::-1], w, input_dilation=(2, 1), flip=flip, **attrs)
            y = cpu.bind(TABLE["conv"], [x, w], attrs | {"input_dilation": (1, 1), "flip": False})
            residual = whole(rng, *y.shape)
            agree(cpu, "conv_bias_act", x, w, bias, residual, activation="relu", **attrs)


def test_depthwise_multiplies_the_border_too(isa, rng):
    x, w = whole(rng, 1, 9, 12, 5), whole(rng, 5, 3, 3, 1)
    w[2, 0, 1] = np.inf
    x[0, 4, 4, 3] = np.nan
    attrs = settings((1, 1, 1, 1)) | {"groups": 5}
    agree(CpuBackend(), "conv", x, w, **attrs)


@pytest.mark.parametrize("channels, outputs", [(1, 3), (20, 50), (40, 16), (800, 5), (512, 3)])
@pytest.mark.parametrize("flip", [False, True])
def test_every_pixel_adds_to_its_surroundings(isa, rng, channels, outputs, flip):
    cpu = CpuBackend()
    x, w = whole(rng, 4, 5, 6, channels), whole(rng, outputs, 3, 2, channels)
    for spread, dilation in [((2, 2), (1, 1)), ((1, 3), (2, 1)), ((3, 2), (1, 2))]:
        for padding in [((2, 2), (1, 1)), ((0, 3), (-1, 2)), ((5, 0), (0, 0))]:
            attrs = {"stride": (1, 1), "padding": padding, "dilation": dilation, "input_dilation": spread}
            agree(cpu, "conv", x, w, groups=1, flip=flip, **attrs)
            memory = np.full(4 * 8 * 9 * outputs + 66, GUARD, np.float32)
            out, by_channel = memory[33:-33].reshape(4, 8, 9, outputs), np.ascontiguousarray(w.transpose(3, 1, 2, 0))
            native.conv_scatter(x, by_channel, out, spread, (padding[0][0], padding[1][0]), dilation, flip)
            assert (memory[:33] == GUARD).all() and (memory[-33:] == GUARD).all() and np.isfinite(out).all()


def test_wide_borders_are_not_multiplied(isa, rng):
    """The gradient in x of small pictures under large kernels: nothing lies between the pixels, but much around."""
    x, w = whole(rng, 6, 4, 4, 24), whole(rng, 20, 5, 5, 24)
    attrs = settings((4, 4, 4, 4)) | {"flip": True}
    agree(CpuBackend(), "conv", x, w, **attrs)


def test_wrong_arguments_are_refused():
    zeros = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
    x, w = zeros(4, 5, 5, 2), zeros(2, 3, 3, 6)
    for bad in [(zeros(4, 5, 5, 3), w, zeros(4, 7, 7, 6)), (x, w, zeros(3, 7, 7, 6)), (x, w, zeros(4, 7, 7, 5)),
                (x[:, ::2], w, zeros(4, 7, 7, 6))]:  # fmt: skip
        with pytest.raises(ValueError):
            native.conv_scatter(*bad, (1, 1), (2, 2), (1, 1), False)
    with pytest.raises(ValueError, match="3x3"):
        native.conv(x, zeros(6, 5, 5, 2), zeros(4, 1, 1, 6), winograd=True)
    with pytest.raises(ValueError, match="stride"):
        native.conv(x, zeros(6, 3, 3, 2), zeros(4, 2, 2, 6), stride=(2, 2), winograd=True)


# ---- half precision


@pytest.mark.parametrize("dtype", [bfloat16, float16])
@pytest.mark.parametrize("kernel, groups", [((3, 3), 1), ((1, 1), 1), ((2, 3), 2)])
def test_weights_in_half_precision_are_widened_as_they_are_read(isa, rng, monkeypatch, dtype, kernel, groups):
    monkeypatch.setenv("ZOO_OFF", "winograd")
    cpu = CpuBackend()
    x, w, bias = whole(rng, 2, 9, 13, 36), whole(rng, 70, *kernel, 36 // groups), whole(rng, 70)
    attrs = {"stride": (1, 1), "padding": ((1, 1), (0, 2)), "dilation": (1, 1), "groups": groups, "activation": "relu"}
    expected = REFERENCE.bind(TABLE["conv_bias_act"], [x, w, bias, None], attrs)
    packed = cpu.pack(w.astype(dtype), "conv", groups)
    assert packed.dtype == dtype and 2 * packed.nbytes == cpu.pack(w, "conv", groups).nbytes
    np.testing.assert_array_equal(packed.unpack(), w.astype(dtype))
    before = stats().get("cpu.packed_weight", 0)
    found = cpu.bind(TABLE["conv_bias_act"], [x, packed, bias, None], attrs)
    assert stats()["cpu.packed_weight"] == before + 1
    np.testing.assert_array_equal(found, expected)
    for weight in (packed, w.astype(dtype)):
        found = cpu.bind(TABLE["conv_bias_act"], [x.astype(dtype), weight, bias.astype(dtype), None], attrs)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected.astype(dtype))


def test_what_is_depthwise_is_not_packed(rng):
    with pytest.raises(OpError, match="depthwise"):
        CpuBackend().pack(whole(rng, 8, 3, 3, 1), "conv", 8)
