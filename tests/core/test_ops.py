"""Every op case on every device and dtype: the table in zoo/core/testing, driven."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zoo.core.dtype import is_float
from zoo.core.errors import DeviceError
from zoo.core.prims import TABLE
from zoo.core.testing import check
from zoo.core.testing.case import Case
from zoo.core.testing.cases import CASES
from zoo.core.testing.devices import device_names, native_ops, opened

DEVICES, MISSING = device_names()
DIFFERENTIABLE = [c for c in CASES if c.differentiable]
NATIVE = native_ops()
RULED = {p.name for p in TABLE.values() if p.lower is not None and callable(p.vjp)}


def rows(cases: Any, dtypes: Any) -> list[Any]:
    """One parameter for each dtype of each case, named "softmax-bfloat16"."""
    return [pytest.param(c, d, id=f"{c}-{d.name}") for c in cases for d in dtypes(c)]


def takes_part(device: str, case: Case) -> bool:
    """Every device runs every case; but the instruction sets of cpu differ only in ops that have a native kernel: the
    others run with the best set, which users get."""
    best = [d for d in DEVICES if d.startswith("cpu:")][-1:]
    return not device.startswith("cpu:") or [device] == best or case.op in NATIVE


def everywhere(cases: Any, dtypes: Any) -> list[Any]:
    """One parameter for each device, case and dtype, named "numpy-softmax-bfloat16"."""
    return [
        pytest.param(device, c, d, id=f"{device}-{c}-{d.name}")
        for device in DEVICES
        for c in cases
        if takes_part(device, c)
        for d in dtypes(c)
    ]


def on_devices(cases: Any, dtypes: Any) -> Any:
    return pytest.mark.parametrize("device, case, dtype", everywhere(cases, dtypes), indirect=["device"])


@pytest.mark.parametrize("name", ["numpy", "cpu", "cuda"])
def test_device_takes_part(name: str) -> None:
    """Says in the summary which devices of the zoo this run did not test, and why."""
    if name in MISSING:
        pytest.skip(" · ".join(MISSING[name].split("\n  ")))
    assert any(d.partition(":")[0] == name for d in DEVICES)


@on_devices(CASES, lambda c: c.dtypes)
def test_value(device: Any, case: Case, dtype: np.dtype) -> None:
    check.value(case, device, dtype)


@pytest.mark.parametrize("case, dtype", rows(CASES, lambda c: c.dtypes))
def test_dtype(case: Case, dtype: np.dtype) -> None:
    """Shape and dtype of every op that the case runs, forward, backward and in bodies, are what `infer` says."""
    with opened("numpy") as device:
        check.inferred(case, device, dtype)


@on_devices([c for c in CASES if not c.source], lambda c: [c.main_dtype])
def test_layouts(device: Any, case: Case, dtype: np.dtype) -> None:
    check.layouts(case, device, dtype)


@on_devices([c for c in CASES if c.nan and not c.source and is_float(c.main_dtype)], lambda c: [c.main_dtype])
def test_not_a_number(device: Any, case: Case, dtype: np.dtype) -> None:
    check.not_a_number(case, device, dtype)


@on_devices(DIFFERENTIABLE, lambda c: [d for d in c.dtypes if is_float(d)])
def test_gradient(device: Any, case: Case, dtype: np.dtype) -> None:
    check.gradients_agree(case, device, dtype)


@pytest.mark.parametrize("case", [c for c in CASES if c.measurable], ids=str)
def test_gradient_by_finite_differences(case: Case) -> None:
    check.finite_differences(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.measurable and c.op in RULED], ids=str)
def test_gradient_rule_against_body(case: Case) -> None:
    assert case.op in check.rule_against_body(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.measurable and c.second], ids=str)
def test_second_order(case: Case) -> None:
    check.second_order(case)


def test_unknown_instruction_set_is_refused() -> None:
    if "cpu" in MISSING:
        with pytest.raises(DeviceError), opened("cpu:avx2"):
            pass
    else:
        with pytest.raises(ValueError, match="mmx"), opened("cpu:mmx"):
            pass
