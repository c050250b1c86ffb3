"""The op table as a whole: nothing in it is without a case, a gradient that is known or declared absent, and a face."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from zoo.core import ops, prims
from zoo.core.autodiff import Autodiff
from zoo.core.device import device as device_of
from zoo.core.errors import NotDifferentiable
from zoo.core.prim import NO_GRADIENT, Kind, Meta, Prim
from zoo.core.prims import TABLE
from zoo.core.tensor import Tensor, bind
from zoo.core.testing import check
from zoo.core.testing.case import Case
from zoo.core.testing.cases import CASES, ELSEWHERE
from zoo.core.testing.devices import Checked


def called(case: Case) -> set[str]:
    """The ops that a case calls by name (not those in their bodies)."""
    device = Checked(device_of("numpy"))
    check.run(case, device, case.draw(case.main_dtype))
    return set(device.seen)


@pytest.fixture(scope="module")
def cases_of() -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {name: [] for name in TABLE}
    for case in CASES:
        for name in called(case):
            found[name].append(case)
    return found


def test_case_names_are_unique() -> None:
    names = [c.name for c in CASES]
    assert len(set(names)) == len(names)


def test_every_op_has_a_case(cases_of: dict[str, list[Case]]) -> None:
    assert [name for name, cases in cases_of.items() if not cases] == []
    assert {c.op for c in CASES} <= set(TABLE), "a case is called after no op"


def test_cases_are_called_after_an_op_they_run(cases_of: dict[str, list[Case]]) -> None:
    assert [str(c) for c in CASES if c not in cases_of[c.op]] == []


def test_every_op_has_a_case_without_values(cases_of: dict[str, list[Case]]) -> None:
    def empty(case: Case) -> bool:
        args = case.draw(case.main_dtype)
        return any(a.size == 0 for a in (*args, *case.expected(args)) if isinstance(a, np.ndarray))

    assert [name for name, cases in cases_of.items() if not any(empty(c) for c in cases)] == []


def test_every_op_has_a_gradient_or_says_that_it_has_none() -> None:
    unknown = [p.name for p in TABLE.values() if p.vjp is None and p.lower is None]
    assert unknown == []


def test_every_gradient_is_measured(cases_of: dict[str, list[Case]]) -> None:
    """By finite differences, in some case that runs the op."""
    missing = [
        p.name for p in TABLE.values() if p.vjp is not NO_GRADIENT and not any(c.measurable for c in cases_of[p.name])
    ]
    assert missing == []


def test_ops_without_gradient_give_constants(cases_of: dict[str, list[Case]]) -> None:
    """Their results are not variables, so that backward() over them says at once that nothing depends on a variable."""
    device = device_of("numpy")
    autodiff = Autodiff(device)
    tried = []
    for prim in TABLE.values():
        for case in cases_of[prim.name]:
            args = case.draw(case.main_dtype)
            if prim.vjp is not NO_GRADIENT or case.source or case.op != prim.name:
                continue
            entered = [
                Tensor(autodiff.variable(device.from_host(a)), autodiff) if isinstance(a, np.ndarray) else a
                for a in args
            ]
            y = case.fn(*entered)
            for result in y if isinstance(y, tuple) else (y,):
                with pytest.raises(NotDifferentiable):
                    result.backward(Tensor(device.from_host(np.ones(result.shape, result.dtype)), device))
            tried.append(prim.name)
    assert {"sign", "floor", "equal", "argmax", "quantize", "any"} <= set(tried)


def test_every_op_has_a_face() -> None:
    """A function of its name in ops.py, or a line in ELSEWHERE that says how it is called."""
    faceless = {name for name in TABLE if not callable(getattr(ops, name, None))}
    assert faceless == set(ELSEWHERE), "ELSEWHERE lists exactly the ops without a face"


def test_faces_are_typed_and_described() -> None:
    """Every function of ops.py has a docstring or a name that says it all, and annotations for all it takes."""
    obvious = {"full", "zeros", "ones", "mean", "min", "any", "all", "argmin", "cumsum", "reshape", "permute_dims",
               "softmax", "log_softmax", "flip", "unary", "binary"}  # fmt: skip
    for name, face in vars(ops).items():
        if name.startswith("_") or not inspect.isfunction(face) or face.__module__ != ops.__name__:
            continue
        assert face.__doc__ or name in obvious, f"ops.{name} has no docstring"
        if not getattr(face, "__closure__", None):
            hints = face.__annotations__
            assert {"return", *inspect.signature(face).parameters} == set(hints), f"ops.{name} is not typed"


def test_the_tables_own_page_lists_every_op() -> None:
    listed = set((prims.__doc__ or "").replace("composites:", " ").replace("composite:", " ").split())
    assert [name for name in TABLE if name not in listed] == []


def test_two_ops_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    again = Prim("exp", Kind.ELEMENTWISE, lambda x: Meta(x.shape, x.dtype))
    monkeypatch.setattr(prims.source, "AGAIN", again, raising=False)
    with pytest.raises(ValueError, match="two ops are called exp"):
        prims._rows()


def test_an_op_without_gradient_or_body_refuses_at_the_forward_call() -> None:
    device = device_of("numpy")
    unknown = Prim("abs", Kind.COMPOSITE, lambda x: Meta(tuple(x.shape), x.dtype))  # numpy has a kernel of this name
    x = Tensor(device.from_host(np.ones(3, np.float32)), device)
    assert bind(unknown, x).tolist() == [1, 1, 1]
    with pytest.raises(NotDifferentiable, match="no gradient is known for abs"):
        bind(unknown, x.to(Autodiff(device)))
