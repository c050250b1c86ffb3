"""Every kernel, with the sets of constants that Python asked for, compiles for every architecture: by NVRTC, from its
wheel, without a GPU or a driver. To machine code: the assembler is part of it.
 What Python asks for is not guessed: the emulated GPU noted it while the other tests ran (ZOO_CUDA_ASKED names the
file), or it is asked again here, by the op table's cases. A kernel file whose Python side looks at the architecture is
compiled for those for which it was asked: what was asked of sm_75 for sm_75, of sm_90 for sm_80 and later."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nvrtc
import pytest

from zoo.core.backends.cuda import kernels
from zoo.core.backends.cuda.driver import OPTIONS
from zoo.core.backends.cuda.source import FOLDER, whole
from zoo.core.testing import check
from zoo.core.testing.cases import CASES
from zoo.core.testing.devices import cuda_ops, opened
from zoo.core.testing.emulator.asked import ASKED, Asked, read

ARCHITECTURES = (75, 80, 89, 90, 100, 120)
FILES = sorted(p.name for p in FOLDER.glob("*.cu"))
# Files whose Python side looks at driver.arch.
CHOSEN = {
    file
    for p in Path(kernels.__file__).parent.glob("*.py")
    if ".arch" in (text := p.read_text(encoding="utf-8"))
    for file in re.findall(r'"(\w+\.cu)"', text)
}

# All of them for all architectures take some 20 minutes of a core: here every kernel is compiled for each architecture
# with one set of constants, and the other sets for one architecture in turn, up to so many of a file. ZOO_NVRTC=all
# compiles all for all.
EVERY = os.environ.get("ZOO_NVRTC") == "all"
LIMIT, LIMITS = 1, {"elementwise.cu": 30, "fused.cu": 6}
COMPILED: list[str] = []

pytestmark = pytest.mark.skipif(nvrtc.library() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc-cu12")


def gather() -> list[Asked]:
    for name in ("cuda:emulated", "cuda:emulated75"):
        with opened(name) as device:
            for case in CASES:
                for dtype in case.dtypes if case.op in cuda_ops() else ():
                    check.value(case, device, dtype)
    return list(ASKED)


@pytest.fixture(scope="module")
def asked() -> dict[str, list[Asked]]:
    path = os.environ.get("ZOO_CUDA_ASKED")
    found = defaultdict(list)
    for a in read(path) if path and os.path.exists(path) else gather():
        found[a.file].append(a)
    return found


def fits(a: Asked, arch: int) -> bool:
    return a.file not in CHOSEN or (a.arch < 80) == (arch < 80)


def first(file: str) -> int:
    """The architecture from which on a kernel file is used, if its head names one."""
    found = re.search(r"^// .*For sm_(\d+) and later", (FOLDER / file).read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) if found else ARCHITECTURES[0]


@pytest.mark.parametrize(
    "file, arch", [(file, arch) for file in FILES for arch in ARCHITECTURES if arch >= first(file)]
)
def test_compiles(asked: dict[str, list[Asked]], file: str, arch: int) -> None:
    wanted = list(dict.fromkeys((a.name, a.constants) for a in asked[file] if fits(a, arch)))
    assert wanted, f"nobody asked for a kernel of {file} on sm_{arch}"
    chosen = wanted if EVERY else turn(file, arch, wanted)
    texts = [whole(file, arch, dict(constants)) for _, constants in chosen]
    different = list(dict.fromkeys(texts))  # kernels of a file with the same constants are one text
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = dict(zip(different, pool.map(lambda text: nvrtc.compiled(text, arch), different), strict=True))
    for (name, constants), text in zip(chosen, texts, strict=True):
        out = made[text]
        assert out.size, f"{file}: {name} with {dict(constants)} for sm_{arch}:\n{out.log}"
        assert not out.spilled, f"{file}: {name} with {dict(constants)} spills {out.spilled} bytes on sm_{arch}"
    COMPILED.append(f"{file} sm_{arch} {len(chosen)}/{len(wanted)}")


def turn(file: str, arch: int, wanted: list[Any]) -> list[Any]:
    """One set of each kernel, and of the others those whose turn it is with this architecture, up to a limit."""
    place = ARCHITECTURES.index(arch)
    first_of = {name: i for i, (name, _) in reversed(list(enumerate(wanted)))}
    others = [i for i in range(len(wanted)) if i % len(ARCHITECTURES) == place]
    step = max(1, -(-len(others) // LIMITS.get(file, LIMIT)))
    return [wanted[i] for i in sorted({*first_of.values(), *others[::step]})]


def test_what_is_left_out() -> None:
    if not EVERY:
        pytest.skip(f"sets of constants compiled of those asked for (all with ZOO_NVRTC=all): {', '.join(COMPILED)}")


def test_every_kernel_was_asked_for(asked: dict[str, list[Asked]]) -> None:
    """No kernel lies in cu/ that no test runs."""
    pattern = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^\n]*?\)\s+)?(\w+)\s*\(')
    written = {(file, name) for file in FILES for name in pattern.findall((FOLDER / file).read_text(encoding="utf-8"))}
    assert written - {(a.file, a.name) for rows in asked.values() for a in rows} == set()


def test_a_kernel_that_is_wrong_does_not_compile() -> None:
    """The check above is not idle."""
    text = whole("elementwise.cu", 75, {})
    assert nvrtc.compiled(text, 90).size == 0
    wrong = whole("prelude.cuh", 75, {}) + 'extern "C" __global__ void k(float *d) { mma_m16n8k16<bfloat16>(d, 0, 0); }'
    assert nvrtc.compiled(wrong, 75).size == 0
    assert nvrtc.compiled(whole("prelude.cuh", 75, {}) + 'extern "C" __global__ void k() {}', 75).size > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_spill_is_seen(arch: int) -> None:
    """Nor is the one of spills: 200 numbers wait at a barrier, where each of 1024 threads has 64 registers."""
    kernel = """extern "C" __global__ void __launch_bounds__(1024) k(const float *x, float *y) {
        float v[COUNT];
        #pragma unroll
        for (int i = 0; i < COUNT; i++) v[i] = x[i * 1024 + threadIdx.x];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < COUNT; i++) y[i * 1024 + threadIdx.x] = v[i] * v[COUNT - 1 - i];
    }"""
    many, few = (nvrtc.compiled(f"#define COUNT {count}\n{kernel}", arch) for count in (200, 16))
    assert many.size and few.size and many.spilled > 0 and few.spilled == 0


def test_cupy_compiles_the_same_text(asked: dict[str, list[Asked]]) -> None:
    """CuPy's own way to NVRTC, with all that it adds to the options, takes the first kernel of every file."""
    pytest.importorskip("cupy")
    from cupy._core.core import assemble_cupy_compiler_options
    from cupy.cuda.compiler import _NVRTCProgram

    options = (*assemble_cupy_compiler_options(OPTIONS), "-arch=sm_90", "-ftz=true")
    for file in FILES:
        first = next(a for a in asked[file] if a.arch == 90)
        program = _NVRTCProgram(
            whole(file, 90, dict(first.constants)), "kernel.cu", (), (), name_expressions=None, method="cubin"
        )
        assert len(program.compile(options)[0]) > 1000
