"""One implementation, two array modules: the reference kernels run over whatever module their backend names, and ask of
it only what CuPy has too. Checked without a GPU, with numpy in the role of CuPy: a module with CuPy's names alone."""

from __future__ import annotations

import ast
import subprocess
import sys
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


# the cuda device where there is no CuPy, or no GPU


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_cupy_the_cuda_device_says_so_in_three_lines() -> None:
    said = in_fresh_python(
        "import sys; sys.modules['cupy'] = None\n"
        "import zoo, zoo.core.backends.cuda\n"
        "try: zoo.device('cuda:1')\n"
        "except zoo.DeviceError as e: print(e)\n"
    )
    what, why, fix = said.strip().split("\n  ")
    assert what == "device 'cuda:1' cannot be used"
    assert why.startswith("CuPy is not installed")
    assert "pip install cupy-cuda12x" in fix


FAKE = """
import sys, types
import numpy as np
class CUDARuntimeError(RuntimeError): pass
def count():
    {count}
runtime = types.SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CUDARuntimeError)
class Device:
    def __init__(self, index): self.index = index
    def __enter__(self): entered.append(self.index)
    def __exit__(self, *a): pass
entered = []
fake = types.ModuleType("cupy")
fake.__dict__.update({{k: v for k, v in vars(np).items() if not k.startswith("__")}})
fake.cuda = types.SimpleNamespace(runtime=runtime, Device=Device)
fake.asnumpy = np.asarray
sys.modules["cupy"] = fake
special = types.ModuleType("cupyx.scipy.special")
special.erf = np.vectorize(__import__("math").erf, otypes=[np.float32])
for name in ("cupyx", "cupyx.scipy"): sys.modules[name] = types.ModuleType(name)
sys.modules["cupyx.scipy.special"] = special
import zoo
"""


def test_cupy_without_a_driver() -> None:
    said = in_fresh_python(
        FAKE.format(count="raise CUDARuntimeError('cudaErrorNoDevice: no CUDA-capable device is detected')")
        + "try: zoo.device('cuda')\nexcept zoo.DeviceError as e: print(e)\n"
    )
    what, why, fix = said.strip().split("\n  ")
    assert (what, why) == (
        "device 'cuda' cannot be used",
        "CUDA finds no GPU: cudaErrorNoDevice: no CUDA-capable device is detected",
    )
    assert "--device cpu" in fix


def test_a_gpu_number_that_is_not_there() -> None:
    said = in_fresh_python(
        FAKE.format(count="return 1") + "try: zoo.device('cuda:3')\nexcept zoo.DeviceError as e: print(e)\n"
    )
    assert "this machine has 1 GPU(s), numbered from 0" in said


def test_ops_run_on_the_chosen_gpu() -> None:
    """With a stand-in for CuPy of two GPUs: tensors of cuda:1 are made and worked on with GPU 1 current."""
    said = in_fresh_python(
        FAKE.format(count="return 2")
        + "x = zoo.tensor([1.0, 2.0], device='cuda:1')\n"
        + "same = zoo.device('cuda') is zoo.device('cuda:0')\n"
        + "print((zoo.ops.erf(x) * 2 + x).tolist(), x.device, set(entered), same)\n"
    )
    values, rest = said.split("]", 1)
    assert np.allclose(np.fromstring(values.strip("["), sep=","), [2.6854016, 3.9906445])
    assert rest.split(" device")[1].strip() == "('cuda:1') {1} True"


def test_zoo_says_which_devices_there_are() -> None:
    with pytest.raises(zoo.DeviceError, match="Devices: numpy, cpu, cuda"):
        zoo.device("tpu")
