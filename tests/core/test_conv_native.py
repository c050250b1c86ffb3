"""Winograd's algorithm for 3x3 convolutions on the cpu device, the choice between algorithms and what is remembered of
measurements, with every instruction set that this machine has."""

from __future__ import annotations

import gc
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
    (1, 9, 9, 800, 140, (1, 1, 1, 1)),
]
# error allowed, in units of sqrt(K) 2^-24 times the largest |X| * |W|: twice what 60 random shapes reached at most
# (1.1 and 3.4; the direct algorithm 0.65)
GROWTH = {2: 2.2, 4: 7}
FORMS = {2: (False, True, "taps"), 4: (False, True, "taps", "parts")}
"""How w comes: as it is, transformed, packed as for the direct algorithm, and that transformed by parts."""


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


def run(x, w, shape, pad, tile, bias=None, residual=None, activation=0, flip=False, packed=False):
    memory = np.full(math.prod(shape) + 66, GUARD, np.float32)
    out = memory[33:-33].reshape(shape)
    given = (-1, 0, 0, 0)
    if packed:
        given, columns = w.shape, native.tile()[1]
        taps = packed in ("taps", "parts")
        places = 9 if taps else (tile + 2) ** 2
        size = -(-w.shape[0] // columns) * columns * w.shape[3] * places
        form = np.empty(size, np.float32)
        native.pack_conv(w, form, 1, flip, 0 if taps else tile)
        w, flip = form, False
    native.conv(x, w, out, bias, residual, activation, (1, 1), (pad[0], pad[2]), (1, 1), 1, flip, given, tile,
                fused=packed == "parts")  # fmt: skip
    assert (memory[:33] == GUARD).all() and (memory[-33:] == GUARD).all()
    return out


def assert_close(found, expected, size, K, tile):
    """size: |X| * |W|, what the sums have in them; a tile shares its errors, so the largest counts."""
    bound = GROWTH[tile] * math.sqrt(K) * 2.0**-24 * size.max()
    assert abs(found - expected).max() <= bound


@pytest.mark.parametrize("tile", [2, 4])
def test_against_float64(isa, rng, tile):
    for n, h, w_, c, o, pad in SHAPES:
        x, w = normal(rng, n, h, w_, c), normal(rng, o, 3, 3, c)
        expected, size = in_float64(x, w, pad), in_float64(abs(x), abs(w), pad)
        bias, residual = normal(rng, o), normal(rng, *expected.shape)
        for packed in FORMS[tile]:
            assert_close(run(x, w, expected.shape, pad, tile, packed=packed), expected, size, 9 * c, tile)
        found = run(x, w, expected.shape, pad, tile, bias, residual, ACTIVATIONS.index("relu"))
        assert_close(found, np.maximum(expected + bias + residual, 0), size, 9 * c, tile)
        wide = np.concatenate([x, x], axis=2)[:, :, ::2] if w_ % 2 == 0 else x[:, ::-1]
        expected = in_float64(wide, w[:, :, ::-1], pad, flip=True)
        for packed in FORMS[tile]:
            found = run(wide, w[:, :, ::-1], expected.shape, pad, tile, flip=True, packed=packed)
            assert_close(found, expected, size, 9 * c, tile)


@pytest.mark.parametrize("tile", [2, 4])
def test_many_blocks_and_every_activation(isa, rng, tile):
    x, w, bias = normal(rng, 2, 41, 38, 24), normal(rng, 150, 3, 3, 24), normal(rng, 150)
    pad = (1, 1, 1, 1)
    expected, size = in_float64(x, w, pad) + bias, in_float64(abs(x), abs(w), pad)
    for code, name in enumerate(ACTIVATIONS):
        want = REFERENCE.bind(TABLE[name], [expected], {}) if name else expected
        for packed in FORMS[tile]:
            found = run(x, w, expected.shape, pad, tile, bias, None, code, packed=packed)
            assert_close(found, want, size + 1, 9 * 24, tile)


@pytest.mark.parametrize("tile", [2, 4])
def test_the_number_of_threads_changes_no_bit(isa, rng, tile, restore_threads):
    for n, s, c, o in [(1, 7, 40, 300), (2, 30, 33, 70), (1, 50, 16, 16)]:
        x, w = normal(rng, n, s, s, c), normal(rng, o, 3, 3, c)
        for packed in FORMS[tile]:
            results = []
            for threads in (1, 2, 5):
                native.set_threads(threads)
                results.append(run(x, w, (n, s, s, o), (1, 1, 1, 1), tile, packed=packed))
            for other in results[1:]:
                np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_and_spreads_no_further_than_its_tiles(isa, rng, tile, value):
    x, w = normal(rng, 1, 20, 20, 3), normal(rng, 4, 3, 3, 3)
    x[0, 9, 10, 1] = value
    found = np.isfinite(run(x, w, (1, 20, 20, 4), (1, 1, 1, 1), tile))
    assert not found[0, 8:11, 9:12].any()
    found[0, 9 - tile : 10 + tile, 10 - tile : 11 + tile] = True
    assert found.all()


# ---- the choice


def conv(cpu, x, w, pad=(1, 1, 1, 1)):
    return cpu.bind(TABLE["conv"], [x, w], settings(pad))


def taken(cpu, *args):
    before = stats().get("cpu.winograd", 0)
    conv(cpu, *args)
    return stats().get("cpu.winograd", 0) - before


def test_which_algorithm_is_cheapest():
    """The layers of ResNet-50 and of Stable Diffusion's UNet and VAE, as they were measured."""
    kept, plain = (True, True, True), (False, False, False)
    for images, side, channels, outputs, tile in [
        (1, 56, 64, 64, 4), (1, 28, 128, 128, 4), (1, 14, 256, 256, 2), (1, 7, 512, 512, 2), (2, 64, 320, 320, 4),
        (2, 64, 4, 320, 0), (2, 16, 1280, 1280, 4), (1, 512, 128, 128, 4), (1, 64, 4, 512, 0),
    ]:  # fmt: skip
        assert winograd.cheapest(images, (side, side), channels, outputs, kept) == tile
    assert winograd.cheapest(1, (7, 7), 512, 512, plain) == 0
    assert winograd.cheapest(2, (64, 64), 320, 320, plain) == 4


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


@pytest.mark.parametrize("dtype", [np.float32, bfloat16, float16])
@pytest.mark.parametrize("side", [14, 66])
def test_forms_are_kept_for_pictures_of_few_tiles(rng, side, dtype):
    cpu = CpuBackend()
    x, w = normal(rng, 1, side, side, 64), normal(rng, 64, 3, 3, 64).astype(dtype)
    packed = cpu.pack(w, "conv")
    assert taken(cpu, x, packed) == 1
    assert bool(cpu.forms.kept) == (side == 14)
    np.testing.assert_allclose(conv(cpu, x, packed), conv(cpu, x, w.astype(np.float32)), atol=1e-3)


@pytest.mark.parametrize("tile", [2, 4])
def test_a_form_made_at_the_call_is_the_kept_one(isa, rng, tile):
    x, w = normal(rng, 2, 9, 10, 33), normal(rng, 40, 3, 3, 33)
    kept, made = (run(x, w, (2, 9, 10, 40), (1, 1, 1, 1), tile, packed=how) for how in (True, "taps"))
    np.testing.assert_array_equal(kept, made)


def test_memory_for_transformed_weights_is_limited(monkeypatch, rng):
    x, w = normal(rng, 1, 14, 14, 256), normal(rng, 256, 3, 3, 256)
    monkeypatch.setenv("ZOO_WINOGRAD_MB", "10")  # two forms at 4.2 MB each
    cpu = CpuBackend()
    weights = [cpu.pack(w, "conv") for _ in range(3)]
    made = stats().get("cpu.winograd_weight", 0)
    assert winograd.cheapest(1, (14, 14), 256, 256, (True, True, True)) == 2
    results = [conv(cpu, x, packed) for packed in weights * 2]
    assert stats()["cpu.winograd_weight"] - made == 2
    assert cpu.forms.kept == 2 * 16 * 256 * 256 * 4
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-3)
    del weights
    gc.collect()
    assert cpu.forms.kept == 0
    monkeypatch.setenv("ZOO_WINOGRAD_MB", "0")
    conv(CpuBackend(), x, cpu.pack(w, "conv"))
    assert stats()["cpu.winograd_weight"] - made == 2
    monkeypatch.setenv("ZOO_WINOGRAD_MB", "much")
    with pytest.raises(ZooError, match="ZOO_WINOGRAD_MB"):
        CpuBackend()


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
    for tile in (0, 2, 4):
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
        native.conv(x, zeros(6, 5, 5, 2), zeros(4, 1, 1, 6), winograd=2)
    with pytest.raises(ValueError, match="stride"):
        native.conv(x, zeros(6, 3, 3, 2), zeros(4, 2, 2, 6), stride=(2, 2), winograd=4)
    with pytest.raises(ValueError, match="tiles"):
        native.conv(x, zeros(6, 3, 3, 2), zeros(4, 3, 3, 6), winograd=3)


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


def test_transformed_weights_of_half_precision(isa, rng):
    x, w = normal(rng, 2, 32, 32, 64), normal(rng, 64, 3, 3, 64).astype(bfloat16)
    cpu = CpuBackend()
    expected = in_float64(x, w.astype(np.float32), (1, 1, 1, 1))
    before = stats().get("cpu.winograd", 0)
    for weight in (w, cpu.pack(w, "conv")):
        np.testing.assert_allclose(conv(cpu, x, weight), expected, atol=2e-3)
    assert stats()["cpu.winograd"] == before + 2


@pytest.mark.parametrize("dtype", [np.float32, bfloat16, float16])
def test_large_forms_are_made_on_the_way_and_not_kept(isa, rng, monkeypatch, dtype):
    monkeypatch.setattr(winograd, "LARGE", 1 << 20)
    x, w = normal(rng, 2, 32, 32, 64), normal(rng, 128, 3, 3, 64).astype(dtype)
    cpu = CpuBackend()
    packed = cpu.pack(w, "conv")
    assert cpu.forms.kept_as(packed, 4, 1) == winograd.FUSED and taken(cpu, x, packed) == 1
    np.testing.assert_allclose(conv(cpu, x, packed), in_float64(x, w.astype(np.float32), (1, 1, 1, 1)), atol=2e-3)
    assert cpu.forms.kept == 0


def test_what_is_depthwise_is_not_packed(rng):
    with pytest.raises(OpError, match="depthwise"):
        CpuBackend().pack(whole(rng, 8, 3, 3, 1), "conv", 8)
