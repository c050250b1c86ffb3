"""The kernels' thread pool: several Python threads, forks, exceptions, changing numbers of threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from zoo.core.prims import TABLE

native = pytest.importorskip("zoo.core.backends.cpu._native", reason="the native kernels were not built")
from zoo.core.backends.cpu import CpuBackend  # noqa: E402

THREADS = native.threads()
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
# Python 3.12 on: forking with threads, which is the point
forking = pytest.mark.filterwarnings("ignore::DeprecationWarning")


pytestmark = pytest.mark.usefixtures("restore_threads")


class Work:
    """Three kernels whose regions differ, on whole numbers: results are equal, bit by bit, whoever computes them."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.cpu = CpuBackend()
        self.a, self.b, self.w, self.x = (
            rng.integers(-2, 3, s).astype(np.float32) for s in ((90, 200), (200, 150), (20, 3, 3, 8), (2, 20, 20, 8))
        )
        self.q = rng.normal(size=(2, 30, 4, 16)).astype(np.float32)
        self.expected = self.compute()

    def compute(self):
        bind = lambda name, *args, **attrs: self.cpu.bind(TABLE[name], args, attrs)  # noqa: E731
        conv = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
        return [
            bind("matmul", self.a, self.b, transpose_a=False, transpose_b=False),
            bind("conv_bias_act", self.x, self.w, None, None, activation="relu", **conv),
            bind("attention", self.q, self.q, self.q, None, causal=True, scale=None),
        ]

    def right(self):
        return all(np.array_equal(a, b) for a, b in zip(self.compute(), self.expected, strict=True))


def in_threads(count, seconds, work):
    """`work` over and over in `count` Python threads. Returns whether every result was right."""
    end, wrong = time.monotonic() + seconds, []

    def loop():
        while time.monotonic() < end:
            if not work():
                wrong.append(1)

    threads = [threading.Thread(target=loop) for _ in range(count)]
    for t in threads:
        t.start()
    yield
    for t in threads:
        t.join()
    assert not wrong


def test_many_python_threads_and_changing_numbers_of_threads():
    work = Work()
    running = in_threads(8, 1.0, work.right)
    next(running)
    for count in (1, 5, 2, 16, 3, 1, 4) * 5:
        native.set_threads(count)
        assert native.threads() == count
        time.sleep(0.02)
    next(running, None)


@needs_fork
@forking
def test_children_compute_while_other_threads_do():
    work = Work()
    native.set_threads(3)
    running = in_threads(4, 1.0, work.right)
    next(running)
    for _ in range(6):
        child = os.fork()
        if child == 0:
            os._exit(0 if work.right() and native.threads() == 3 and work.right() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    next(running, None)


@needs_fork
@forking
def test_a_child_of_a_child_computes():
    work = Work()
    child = os.fork()
    if child == 0:
        good = work.right()
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if work.right() else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
        os._exit(0 if good and status == 0 and work.right() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _right_in_a_process(seed):
    return Work(seed).right()


@needs_fork
@forking
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_multiprocessing_compute(method):
    import multiprocessing

    work = Work()
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert all(pool.map(_right_in_a_process, range(4)))
    assert work.right()


LITTLE_MEMORY = """
import resource, sys
import numpy as np
from zoo.core.backends.cpu import CpuBackend
from zoo.core.prims import TABLE

cpu = CpuBackend()
cpu.native.set_threads(4)
a, b = np.ones((3000, 3000), np.float32).T, np.ones((3000, 64), np.float32)
product = lambda: cpu.bind(TABLE["matmul"], (a, b), {"transpose_a": False, "transpose_b": False})
product()[:]
cpu.native.set_threads(4)
refused = 0
for megabytes in range(0, 200, 4):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))
    try:
        x = np.ones((40, 2000 * megabytes + 7, 8), np.float32)[:, ::-1]
        q = x[:, :, None, :]
        y = cpu.bind(TABLE["attention"], (q[:, :9], q, q, None), {"causal": False, "scale": None})
        assert abs(y - 1).max() < 1e-5
    except MemoryError:
        refused += 1
    finally:
        x = q = y = None
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (product() == 3000).all()
print(refused)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by RLIMIT_AS, which Linux has")
def test_a_task_that_gets_no_memory_raises_and_the_pool_goes_on():
    done = subprocess.run([sys.executable, "-c", LITTLE_MEMORY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_threads_follow_the_affinity_mask():
    allowed = sorted(os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(0, allowed[:1])
        native.set_threads(0)
        assert native.threads() == 1
        native.set_threads(3)  # more threads than cores: slower, and right
        assert Work().right()
    finally:
        os.sched_setaffinity(0, allowed)
    native.set_threads(0)
    assert 1 <= native.threads() <= len(allowed)
    assert Work().right()


def test_idle_workers_sleep():
    native.set_threads(4)
    assert Work().right()
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1  # four that spin would take 1.2 s
