"""The driver over CuPy, with a stand-in for it (fake_cupy.py): errors, uploads, launches. Each test in a Python of its
own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FAKE = f"import sys; sys.path.insert(0, {str(HERE)!r})\nimport fake_cupy as fake, numpy as np\n"
OPEN = "import zoo\ntry: zoo.device('cuda{index}')\nexcept zoo.DeviceError as e: print(e)\n"


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE.parents[2])
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(setting: str, index: str = "") -> tuple[str, str, str]:
    what, why, fix = in_fresh_python(f"{FAKE}{setting}\n{OPEN.format(index=index)}").strip().split("\n  ")
    return what, why, fix


def test_without_cupy() -> None:
    what, why, fix = refused("sys.modules['cupy'] = None", ":1")
    assert what == "device 'cuda:1' cannot be used"
    assert why.startswith("CuPy is not installed")
    assert 'pip install "zoo-models[cuda12]"' in fix and "--device cpu" in fix


@pytest.mark.parametrize(
    "gpus, driver, why, fix",
    [
        ("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version", 0,
         "there is no NVIDIA driver on this machine", "nvidia-smi"),
        ("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version", 11040,
         "its driver knows CUDA 11.4; CuPy is built for CUDA 12.9", "pip install cupy-cuda11x"),
        ("cudaErrorNoDevice: no CUDA-capable device is detected", 12090,
         "CUDA finds no GPU: cudaErrorNoDevice: no CUDA-capable device is detected", "--device cpu"),
    ],
)  # fmt: skip
def test_without_a_gpu(gpus: str, driver: int, why: str, fix: str) -> None:
    said = refused(f"fake.install(fake.CUDARuntimeError({gpus!r}), driver={driver})")
    assert said[:2] == ("device 'cuda' cannot be used", why)
    assert fix in said[2]


def test_a_gpu_number_that_is_not_there() -> None:
    assert refused("fake.install(1)", ":3")[1] == "this machine has 1 GPU, numbered from 0"


def test_a_gpu_that_is_too_old() -> None:
    said = refused("fake.install(1); fake.Device.compute_capability = '70'")
    assert "its architecture is sm_70; kernels are written for sm_75 and later" in said[1]


def test_ops_run_on_the_chosen_gpu() -> None:
    said = in_fresh_python(
        FAKE + "fake.install(2)\nimport zoo\n"
        "x = zoo.tensor([1.0, 2.0], device='cuda:1')\n"
        "same = zoo.device('cuda') is zoo.device('cuda:0')\n"
        "fake.Device.entered.clear()\n"
        "print((zoo.ops.erf(x) * 2 + x).tolist(), x.device, set(fake.Device.entered), same)\n"
        "print(len(fake.RawModule.made), fake.RawModule.made[0].startswith('#define ARCH 90'))\n"
    )
    assert said.splitlines()[0].startswith("[2.68540")
    assert said.splitlines()[0].endswith("device('cuda:1') {1} True")
    assert said.splitlines()[1] == "3 True"


def test_large_arrays_travel_in_pieces() -> None:
    """Through both page-locked buffers several times, with a rest; work waits for the copies, they for earlier work."""
    said = in_fresh_python(
        FAKE + "fake.install(1)\n"
        "import zoo.core.backends.cuda.driver as d\n"
        "d.CHUNK, d.DIRECT = 1 << 12, 1 << 10\n"
        "g = d.CupyDriver(0)\n"
        "turned = np.arange(5000.0)[::-1].reshape(50, 100)\n"
        "for a in (np.arange(9999, dtype=np.float32), turned, np.float32(3), np.zeros(0)):\n"
        "    print(np.array_equal(g.upload(a), a), g.upload(a).dtype == a.dtype, g.upload(a).shape == a.shape)\n"
        "print(g.copies.said[:3], g.stream.said[:2])\n"
    )
    *equal, order = said.splitlines()
    assert equal == ["True True True"] * 4
    assert order == "['wait', 'record', 'record'] ['record', 'wait']"


CAPTURE = (
    FAKE + "fake.install(1)\n"
    "import zoo\nfrom zoo.core.capture import Capture\nfrom zoo.core import ops\n"
    "g = zoo.device('cuda')\n"
)


def test_a_step_becomes_a_graph() -> None:
    """Run once, captured once (relaxed, on the one stream), launched; in memory that nobody else is given."""
    said = in_fresh_python(
        CAPTURE + "step = Capture(lambda x: (x + 1.0) * 2.0, g)\n"
        "print(step(np.arange(3, dtype=np.float32)).tolist(), g.driver.stream.said)\n"
        "print(step(np.full(3, 4, np.float32)).tolist(), g.driver.stream.said)\n"
        "((_, replay),) = step._known.values()\n"
        "arena, held = replay.held\n"
        "print(arena.owns(replay.result.handle), len(held), fake.Allocation.used)\n"
    )
    first, second, third = said.splitlines()
    assert first == "[2.0, 4.0, 6.0] ['begin relaxed', 'end']"
    assert second == "[10.0, 10.0, 10.0] ['begin relaxed', 'end', 'launch of 2']"
    assert third == "True 1 None"


def test_a_constant_within_a_step_is_no_part_of_the_graph() -> None:
    """It is put there on the other stream, and held."""
    said = in_fresh_python(
        CAPTURE + "step = Capture(lambda x: x + zoo.tensor([1.0, 2.0], device=g), g)\n"
        "print([step(np.full(2, n, np.float32)).tolist() for n in (1, 2)], len(g.driver.copies.said))\n"
    )
    assert said.strip() == "[[2.0, 3.0], [3.0, 4.0]] 1"


def test_an_op_that_waits_for_the_gpu_ends_the_capture() -> None:
    said = in_fresh_python(
        CAPTURE + "def step(x):\n"
        "    if g.driver.capturing: g.driver.stream.synchronize()\n"
        "    return x + 1.0\n"
        "try: Capture(step, g)(np.ones(2, np.float32))\n"
        "except Exception as e: print(e)\n"
        "print(g.driver.stream.said[-1], g.driver.capturing, (zoo.tensor([1.0], device=g) + 1.0).tolist())\n"
    )
    *lines, after = said.strip().splitlines()
    assert lines[0] == "this step cannot be captured" and len(lines) == 3
    assert "an op in it waits for the GPU: cudaErrorStreamCaptureUnsupported" in lines[1]
    assert after == "end False [2.0]"


@pytest.mark.parametrize(
    "raised, what, why",
    [
        ("fake.OutOfMemoryError('Out of memory allocating 4,096 bytes (allocated so far: 1 bytes).')",
         "the memory of 'cuda' is full", "Out of memory allocating 4,096 bytes"),
        ("fake.CUDARuntimeError('cudaErrorNoKernelImageForDevice: no kernel image is available')",
         "device 'cuda' cannot be used", "CuPy cannot make kernels for this GPU: cudaErrorNoKernelImage"),
        ("fake.CUDARuntimeError('cudaErrorIllegalAddress: an illegal memory access was encountered')",
         "'cuda' failed", "cudaErrorIllegalAddress"),
        ("RuntimeError('Failure finding \"libnvrtc.so.12\": No such file')",
         "device 'cuda' cannot be used", 'Failure finding "libnvrtc.so.12"'),
    ],
)  # fmt: skip
def test_what_cuda_complains_of_in_an_op(raised: str, what: str, why: str) -> None:
    said = in_fresh_python(
        FAKE + "cupy = fake.install(1)\nimport zoo\n"
        "x = zoo.tensor([1.0, 2.0], device='cuda')\n"
        "def empty(*a): raise " + raised + "\n"
        "cupy.empty = empty\n"
        "try: x + x\n"
        "except zoo.DeviceError as e: print(e)\n"
    )
    lines = said.strip().split("\n  ")
    assert len(lines) == 3 and lines[0] == what and why in lines[1]


def test_doctor_tells_of_the_gpu() -> None:
    said = in_fresh_python(
        FAKE + "cupy = fake.install(1)\ncupy.__version__ = '14.2.0'\n"
        "cupy.__spec__ = __import__('importlib.machinery').machinery.ModuleSpec('cupy', None)\n"
        "cupy.cuda.nvrtc = type('', (), {'getVersion': staticmethod(lambda: (12, 9))})\n"
        "from zoo.cli import doctor\n"
        "print(dict(doctor._devices()))\n"
    )
    assert "'cuda': 'ready, Fake GPU, sm_90'" in said
    assert "'cupy': '14.2.0, NVRTC 12.9'" in said
    assert "'memory of the GPU'" in said
