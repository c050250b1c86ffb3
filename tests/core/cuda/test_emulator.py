"""The emulated GPU: it calculates what a GPU would, and finds the faults that it is there to find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.core.backends.cuda.source import FOLDER, ctype
from zoo.core.dtype import bfloat16, float16
from zoo.core.testing.emulator import EmulatedDriver, EmulationError

HERE = Path(__file__).parent


def driver(seed: int = 1, arch: int = 90) -> EmulatedDriver:
    return EmulatedDriver(arch, seed, (HERE, FOLDER))


def faulty(name: str, fault: int, *args: Any, threads: int = 64, shared: int = 0, seed: int = 1) -> None:
    driver(seed).kernel("faults.cu", name, FAULT=fault)((1,), (threads,), *args, shared=shared)


def ones(n: int) -> np.ndarray:
    return np.full(n, np.nan, np.float32)


X = np.arange(64, dtype=np.float32)


def test_without_a_fault_every_kernel_runs() -> None:
    y = ones(64)
    faulty("turned", 0, X, y)
    assert (y == X[::-1]).all()
    faulty("beyond", 0, X, y, np.int32(64))
    assert (y == X).all()
    for name, shared, value in (
        ("barriers", 0, 1),
        ("warps", 0, 32),
        ("shared_arrays", 0, 2),
        ("too_much_shared", 0, 1),
        ("dynamic", 256, 2),
    ):
        y = ones(64)
        faulty(name, 0, y, shared=shared)
        assert (y == value).all(), name
    x, y = np.arange(256, dtype=np.float32), ones(256)
    faulty("copied", 0, x, y)
    want = x.copy()
    want[4:8] = 0
    assert (y.reshape(4, 64) == np.roll(want.reshape(4, 64), -1, axis=1)).all()


def test_a_missing_barrier_gives_wrong_values() -> None:
    for seed in range(1, 6):
        y = ones(64)
        faulty("turned", 1, X, y, seed=seed)
        assert not (y == X[::-1]).all()


def test_orders_differ_by_seed_and_are_the_same_again() -> None:
    found = []
    for seed in (1, 2, 1):
        y = ones(64)
        faulty("turned", 1, X, y, seed=seed)
        found.append(y.tobytes())
    assert found[0] == found[2] != found[1]


def test_copies_that_are_not_waited_for_are_missed() -> None:
    x, y = np.arange(256, dtype=np.float32), ones(256)
    faulty("copied", 14, x, y)
    assert np.isnan(y).any()


def test_shared_memory_is_full_of_nan_before_it_is_written() -> None:
    y = ones(64)
    y[:] = 0
    faulty("shared_arrays", 9, y)
    assert np.isnan(y).all()


@pytest.mark.parametrize(
    "name, fault, args, shared, said",
    [
        ("beyond", 2, (X, ones(64), np.int32(64)), 0, "beyond the end of argument 0"),
        ("beyond", 3, (X, ones(64), np.int32(64)), 0, "beyond the end of argument 1"),
        ("beyond", 4, (X, ones(64), np.int32(64)), 0, "before the start of argument 1"),
        ("barriers", 5, (ones(64),), 0, "1 of 64 threads never reach"),
        ("barriers", 6, (ones(64),), 0, "wait at different __syncthreads: faults.cu"),
        ("warps", 7, (ones(64),), 0, "waits for lanes of its warp that do not come"),
        ("warps", 8, (ones(64),), 0, "lanes of one warp meet in different places"),
        ("shared_arrays", 10, (ones(64),), 0, "beyond the end of an array in shared memory"),
        ("too_much_shared", 11, (ones(64),), 0, "52000 bytes of static shared memory"),
        ("misaligned", 12, (np.zeros(16, np.float16), np.zeros(8, np.float16)), 0, "not a multiple of the size"),
        ("dynamic", 13, (ones(64),), 256, "beyond the end of dynamic shared memory"),
        ("dynamic", 0, (ones(64),), 0, "the launch gave none"),
    ],
)
def test_faults_are_errors_that_name_the_kernel(name: str, fault: int, args: Any, shared: int, said: str) -> None:
    with pytest.raises(EmulationError, match=said) as caught:
        faulty(name, fault, *args, shared=shared)
    assert f"kernel faults.cu: {name}(FAULT={fault}) went wrong" in str(caught.value)
    y = ones(64)
    faulty("turned", 0, X, y)  # and the next launch is as good as the first
    assert (y == X[::-1]).all()


@pytest.mark.parametrize(
    "args, said",
    [
        ((X, ones(64)), "2 arguments were given; it takes 3"),
        ((X, ones(64), 64), "argument 2 is int"),
        ((X, ones(64), np.int64(64)), "argument 2 is int64"),
        ((X.astype(np.float16), ones(64), np.int32(64)), "argument 0 is an array of float16"),
        ((X.tolist(), ones(64), np.int32(64)), "an array or None was expected"),
    ],
)
def test_arguments_that_do_not_fit_are_errors(args: Any, said: str) -> None:
    with pytest.raises(EmulationError, match=said):
        faulty("beyond", 0, *args)


def test_blocks_and_grids_have_limits() -> None:
    with pytest.raises(EmulationError, match="a block of"):
        faulty("turned", 0, X, ones(64), threads=1025)
    kernel = driver().kernel("faults.cu", "turned", FAULT=0)
    with pytest.raises(EmulationError, match="a grid of"):
        kernel((1, 65536), (64,), X, ones(64))
    with pytest.raises(EmulationError, match="a grid of"):
        kernel((0,), (64,), X, ones(64))
    with pytest.raises(EmulationError, match="bytes of shared memory; a block has 65536"):
        driver(arch=75).kernel("faults.cu", "dynamic", FAULT=0)((1,), (64,), ones(64), shared=65537)


def test_a_kernel_that_does_not_compile() -> None:
    with pytest.raises(EmulationError, match=r"(?s)faults.cu: turned does not compile.*NOWHERE|FAULT"):
        driver().kernel("faults.cu", "turned", float="NOWHERE")


def test_a_graph_records_and_replays() -> None:
    d, x, y = driver(), X.copy(), ones(64)
    kernel = d.kernel("faults.cu", "turned", FAULT=0)
    with d.capture() as graph:
        kernel((1,), (64,), x, y)
    assert np.isnan(y).all()
    graph.launch()
    assert (y == X[::-1]).all()
    x += 1
    graph.launch()
    assert (y == X[::-1] + 1).all()


# the tensor cores' layouts, against numpy


@pytest.mark.parametrize("arch", [75, 90])
@pytest.mark.parametrize("half", [float16, bfloat16], ids=str)
def test_mma_and_ldmatrix(half: np.dtype, arch: int) -> None:
    if half == bfloat16 and arch == 75:
        with pytest.raises(EmulationError):
            driver(arch=75).kernel("tiles.cu", "product", HALF="bfloat16")
        return
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(16, 16)).astype(half), rng.normal(size=(16, 8)).astype(half), rng.normal(size=(16, 8))
    want = c + a.astype(np.float64) @ b.astype(np.float64)
    for name, given in (("product", b), ("product_of_transposed", np.ascontiguousarray(b.T))):
        d = c.astype(np.float32)
        driver(arch=arch).kernel(
            "tiles.cu", name, HALF=half.name.replace("float16", "half") if half == float16 else "bfloat16"
        )((1,), (32,), a, given, d)
        assert np.abs(d - want).max() < 1e-5


def test_mma_of_bytes() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (16, 32)).astype(np.int8), rng.integers(-128, 128, (8, 32)).astype(np.int8)
    d = np.full((16, 8), 7, np.int32)
    driver().kernel("tiles.cu", "product_of_bytes", HALF="half")((1,), (32,), a, b, d)
    assert (d == 7 + a.astype(np.int64) @ b.astype(np.int64).T).all()


def test_half_precision_is_rounded_as_numpy_does() -> None:
    every = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    for half in (float16, bfloat16):
        x = every.view(half)
        wide, back = ones(65536), np.zeros(65536, half)
        d = driver().kernel("tiles.cu", "widened", HALF=ctype(half))
        d((256,), (256,), x, wide, back)
        with np.errstate(all="ignore"):
            known = ~np.isnan(x.astype(np.float32))
        assert (wide[known] == x.astype(np.float32)[known]).all() and np.isnan(wide[~known]).all()
        assert (back.view(np.uint16)[known] == every[known]).all() and np.isnan(back[~known].astype(np.float32)).all()
    rng = np.random.default_rng(0)
    bits = np.concatenate(
        [rng.integers(0, 2**32, 65536 * 4, np.uint32), np.arange(0x33000000 - 512, 0x33000000 + 512, dtype=np.uint32)]
    )
    edges = (every.astype(np.uint32) << 16) | 0x8000  # halfway between two bfloat16
    halves = ((every.view(float16).astype(np.float32).view(np.uint32)) + 0x1000).astype(np.uint32)
    for values in (bits, edges, halves):
        x = np.resize(values, -(-values.size // 256) * 256).view(np.float32)
        for half in (float16, bfloat16):
            y = np.zeros(x.size, half)
            driver().kernel("tiles.cu", "narrowed", HALF=ctype(half))((x.size // 256,), (256,), x, y)
            with np.errstate(all="ignore"):
                want = x.astype(half)
            known = ~np.isnan(x) & (np.abs(x) >= np.finfo(np.float32).tiny)
            assert (y.view(np.uint16)[known] == want.view(np.uint16)[known]).all(), half
            assert np.isnan(y[np.isnan(x)].astype(np.float32)).all()
