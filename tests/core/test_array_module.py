"""One implementation, two array modules: the reference kernels run over whatever module their backend names, and ask of
it only what CuPy has too. Checked without a GPU, with numpy in the role of CuPy: a module with CuPy's names alone."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core import philox
from zoo.core.backends import numpy as reference
from zoo.core.backends.numpy import ArrayBackend
from zoo.core.dtype import bfloat16, float32
from zoo.core.testing import check
from zoo.core.testing.case import Case
from zoo.core.testing.cases import CASES

HERE = Path(__file__).parent
MODULE_NAMES, METHOD_NAMES = (
    set(block.split()) for block in (HERE / "cupy_names.txt").read_text().split("\n", 1)[1].split("\n\n")
)
KERNEL_FILES = [*Path(reference.__file__).parent.glob("*.py"), Path(philox.__file__)]


class Narrow(ModuleType):
    """numpy, less what CuPy has not."""

    def __init__(self) -> None:
        super().__init__("numpy")
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name not in MODULE_NAMES:
            raise AttributeError(f"CuPy has no {name}")
        self.asked.add(name)
        return getattr(np, name)


class NarrowBackend(ArrayBackend):
    def __init__(self) -> None:
        super().__init__("narrow", Narrow())

    def quiet(self) -> Any:
        return np.errstate(all="ignore")


@pytest.fixture(scope="module")
def narrow() -> NarrowBackend:
    return NarrowBackend()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_runs_with_what_cupy_has(narrow: NarrowBackend, case: Case) -> None:
    check.value(case, narrow, case.main_dtype)
    if bfloat16 in case.dtypes:
        check.value(case, narrow, bfloat16)
    if case.differentiable and case.main_dtype == float32:
        check.gradients_agree(case, narrow, float32)


def test_the_narrow_module_is_what_the_kernels_ask(narrow: NarrowBackend) -> None:
    """The check above is not idle: kernels do go through it, and a name that CuPy lacks is refused."""
    narrow.ops.exp(narrow.from_host(np.ones(2, np.float32)))
    narrow.ops.flip(narrow.from_host(np.ones(2, np.float32)), axis=0)
    assert {"exp", "asarray", "flip"} <= narrow.xp.asked
    with pytest.raises(AttributeError, match="CuPy has no busday_count"):
        _ = narrow.xp.busday_count


@pytest.mark.parametrize("file", KERNEL_FILES, ids=lambda f: f.name)
def test_kernels_name_no_array_module(file: Path) -> None:
    """numpy enters through the backend object alone; __init__ makes that object for numpy."""
    tree = ast.parse(file.read_text())
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    if file.name != "__init__.py":
        assert imported.isdisjoint({"numpy", "cupy"})
        methods = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in dir(np.ndarray)}
        assert methods - METHOD_NAMES == set(), "methods of arrays that cupy.ndarray has not"


def test_zoo_says_which_devices_there_are() -> None:
    with pytest.raises(zoo.DeviceError, match="Devices: numpy, cpu, cuda"):
        zoo.device("tpu")
