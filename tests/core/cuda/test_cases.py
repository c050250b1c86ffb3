"""The op table's cases on an emulated GPU: every op for which the cuda device has a kernel. Leaner than on cpu, since
each dtype and each way of lying in memory is another kernel to compile: what is left out is printed (`pytest -rs`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.core.backends.cuda.kernels import KERNELS
from zoo.core.backends.cuda.kernels.elementwise import THREADS, launch_sizes, walked
from zoo.core.dtype import bfloat16, bool_, float16, float32, int8, int32, is_float
from zoo.core.prim import Kind
from zoo.core.prims import TABLE
from zoo.core.testing import check
from zoo.core.testing.case import Case
from zoo.core.testing.cases import CASES
from zoo.core.testing.devices import cuda_ops, opened
from zoo.core.testing.emulator import EmulatedDriver

COMPUTED = [c for c in CASES if c.op in cuda_ops()]
# Elementwise ops are one kernel text with another formula: these show every dtype, the others the ones that differ in
# how they calculate (float32, a half precision, whole numbers).
EVERY_DTYPE = {"add", "cast", "remainder", "where", "less", "maximum"}


def dtypes_of(case: Case) -> list[np.dtype]:
    if TABLE[case.op].kind is not Kind.ELEMENTWISE:
        return [d for d in case.dtypes if d.name != "float64"] or list(case.dtypes)
    if case.op in EVERY_DTYPE:
        return list(case.dtypes)
    return [d for d in case.dtypes if d in (float32, bfloat16, int32, bool_)]


VALUES = [(c, d) for c in COMPUTED for d in dtypes_of(c)]
LEFT_OUT = sorted({f"{c.op} in {d.name}" for c in COMPUTED for d in c.dtypes if d not in dtypes_of(c)})


@pytest.fixture(scope="module")
def device() -> Any:
    with opened("cuda:emulated") as found:
        yield found


def rows(pairs: Any) -> list[Any]:
    return [pytest.param(c, d, id=f"{c}-{d.name}") for c, d in pairs]


@pytest.mark.parametrize("case, dtype", rows(VALUES))
def test_value(device: Any, case: Case, dtype: np.dtype) -> None:
    check.value(case, device, dtype)


# ops whose kernels are chosen by the GPU's architecture: sm_75 has no cp.async and no bfloat16 in its tensor cores
BY_ARCH = {
    op for op, kernel in KERNELS.items() if ".arch" in Path(sys.modules[kernel.__module__].__file__ or "").read_text()
}


@pytest.mark.parametrize("case, dtype", rows((c, d) for c, d in VALUES if c.op in BY_ARCH))
def test_value_on_sm_75(case: Case, dtype: np.dtype) -> None:
    with opened("cuda:emulated75") as device:
        check.value(case, device, dtype)


@pytest.mark.parametrize("case, dtype", rows((c, c.main_dtype) for c in COMPUTED if not c.source))
def test_layouts(device: Any, case: Case, dtype: np.dtype) -> None:
    check.layouts(case, device, dtype)


@pytest.mark.parametrize(
    "case, dtype", rows((c, c.main_dtype) for c in COMPUTED if c.nan and not c.source and is_float(c.main_dtype))
)
def test_not_a_number(device: Any, case: Case, dtype: np.dtype) -> None:
    check.not_a_number(case, device, dtype)


def test_what_is_left_out() -> None:
    """Half of the dtypes at least are run, each of them somewhere."""
    assert {d for _, d in VALUES} >= {float32, float16, bfloat16, int32, int8, bool_}
    pytest.skip(f"{len(VALUES)} values checked; not run on the emulated GPU: {', '.join(LEFT_OUT)}")


def test_kernels_ran(device: Any) -> None:
    """The table went through kernels, not past them."""
    from zoo.core.stats import stats

    before = stats()
    device.ops.add(device.from_host(np.ones(3, np.float32)), device.from_host(np.ones(3, np.float32)))
    assert stats()["cuda.add"] == before.get("cuda.add", 0) + 1


@pytest.mark.parametrize("multiprocessors", [1, 40, 132, 188])
def test_the_step_behind_the_last_place_fits_its_index(multiprocessors: int) -> None:
    """A thread goes on by all threads of the grid until it is behind the last place: in 32 bits that must not turn
    negative, which would be before the end again."""
    driver = EmulatedDriver(90)
    driver.multiprocessors = multiprocessors
    for size in (2**31 - 2**k for k in range(31)):
        step = launch_sizes(driver, size)[0] * THREADS
        assert walked(driver, size, (size,), [(1,)]) or size - 1 + step < 2**31
    assert not walked(driver, 2**30, (2**30,), [(1,)]) and walked(driver, 2**20, (2**20,), [(2**11 + 1,)])
