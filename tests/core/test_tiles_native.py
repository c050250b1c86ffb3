"""The tile interpreter of the cpu device, with every instruction set that this machine has: functions over the whole
range of float32, tails, guards, threads, and programs that it must refuse."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

native = pytest.importorskip("zoo.core.backends.cpu._native", reason="the native kernels were not built")
from ml_dtypes import bfloat16  # noqa: E402

from zoo.core.backends.numpy import NumpyBackend  # noqa: E402
from zoo.core.fusion.program import STORED, compiled, tree  # noqa: E402
from zoo.core.prim import Kind  # noqa: E402
from zoo.core.prims import TABLE  # noqa: E402
from zoo.core.testing.cases.elementwise import tolerance  # noqa: E402

THREADS = native.threads()
KNOWN = [p for p in TABLE.values() if p.kind is Kind.ELEMENTWISE and tree(p.name) is not None]
DECLINED = {"sin", "cos", "pow", "remainder"}
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


pytestmark = [
    pytest.mark.usefixtures("isa", "restore_threads"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, about the references made here
]


def bits(array):
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


def run(program, inputs, outputs, numbers=(), shape=None):
    numbers = [*numbers, *program.constants]
    program.run([bits(a) for a in inputs], [bits(a) for a in outputs], numbers, shape or outputs[0].shape)
    return outputs[0]


def of(name, arity, result="float32", kind="float32"):
    leaves = tuple(("leaf", False, k) for k in ([kind] * arity if isinstance(kind, str) else kind))
    return compiled(native, (*leaves, (name, False, "", *range(arity))), ((arity, result),), False)


def wide(count=20000):
    """Floats of every size: random bit patterns, with the special ones."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    near = rng.uniform(-100, 100, count).astype(np.float32)
    edges = [
        0,
        -0.0,
        1,
        -1,
        np.inf,
        -np.inf,
        np.nan,
        1e-45,
        -1e-45,
        1.17549435e-38,
        3.4e38,
        -3.4e38,
        0.5,
        1.5,
        2.5,
        -0.5,
        88.72283,
        88.72284,
        -87.33655,
        -103.9,
        -104,
        0.55,
        1e-8,
    ]
    return np.concatenate([x, near, np.float32(edges)])


def test_what_is_known():
    assert {p.name for p in TABLE.values() if p.kind is Kind.ELEMENTWISE and p.expr} - {
        p.name for p in KNOWN
    } == DECLINED


@pytest.mark.parametrize("prim", KNOWN, ids=lambda p: p.name)
def test_functions_over_the_whole_range(prim):
    rng = np.random.default_rng(1)
    x = wide()
    args = [x, *(rng.permutation(x) for _ in range(prim.arity - 1))]
    if prim.accepts == "bool" or prim.name == "where":
        args[0] = rng.random(x.size) < 0.5
    if prim.accepts == "bool":
        args[1:] = [rng.random(x.size) < 0.5 for _ in args[1:]]
    if prim.arity == 2:  # as many equal pairs as unequal ones
        args[1] = np.where(rng.random(x.size) < 0.3, args[0], args[1])
    result = "bool" if prim.result == "bool" else "float32"
    kinds = [a.dtype.name for a in args]
    found = run(of(prim.name, prim.arity, result, kinds), args, [np.empty(x.shape, result)])
    with np.errstate(all="ignore"):
        wanted = NumpyBackend().bind(prim, [a if a.dtype == bool else a.astype(F64) for a in args], {})
    if prim.name == "silu":  # inf * sigmoid underflown
        keep = np.abs(args[0]) < 80
        found, wanted = found[keep], wanted[keep]
    assert not tolerance(prim).error(found, wanted)


SIZES = [1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 511, 512, 513, 1024, 40000, 100001]


def guarded(shape, dtype, fill=77):
    memory = np.full(math.prod(shape) + 66, fill, dtype)
    return memory, memory[33:-33].reshape(shape)


def test_tails_guards_and_unaligned_memory():
    """Inputs lie between NaN, outputs between guards."""
    rng = np.random.default_rng(2)
    program = of("add", 2)
    for n in SIZES:
        arrays = []
        for _ in range(2):
            memory, inner = guarded((n,), F32, np.nan)
            inner[:] = rng.integers(-5, 5, n)
            arrays.append(inner)
        memory, out = guarded((n,), F32)
        run(program, arrays, [out])
        np.testing.assert_array_equal(out, arrays[0] + arrays[1])
        assert (memory[:33] == 77).all() and (memory[-33:] == 77).all()


@pytest.mark.parametrize("dtype", list(STORED))
def test_what_is_stored_is_widened_and_narrowed(dtype):
    """Every number of 16 bits comes back as it was; those that are not of floating point come out in float32."""
    if dtype in ("bfloat16", "float16"):
        x = np.arange(2**16, dtype=np.uint16).view(bfloat16 if dtype == "bfloat16" else np.float16)
    else:
        x = np.random.default_rng(3).integers(0, 120, 5000).astype(dtype)
    for part in (x, x[::-1], x[::3], x[5:4000]):
        leaf = ("leaf", False, dtype)
        wide_ = run(compiled(native, (leaf,), ((0, "float32"),), False), [part], [np.empty(part.shape, F32)])
        np.testing.assert_array_equal(wide_, part.astype(F32))
        if STORED[dtype] < 4:
            back = run(compiled(native, (leaf,), ((0, dtype),), False), [part], [np.empty(part.shape, x.dtype)])
            np.testing.assert_array_equal(bits(back[part == part]), bits(np.ascontiguousarray(part)[part == part]))
            assert np.isnan(back[part != part].astype(F32)).all()


@pytest.mark.parametrize("name, dtype", [("bfloat16", bfloat16), ("float16", np.float16)])
def test_rounding_to_half(name, dtype):
    x = wide()
    with np.errstate(all="ignore"):
        wanted = x.astype(dtype)
    np.testing.assert_array_equal(run(of(name, 1), [x], [np.empty(x.shape, F32)]), wanted.astype(F32))
    np.testing.assert_array_equal(
        run(of("abs", 1, name), [x], [np.empty(x.shape, dtype)]).astype(F32), abs(wanted.astype(F32))
    )


def layouts(rng):
    x = rng.integers(-9, 9, (6, 8, 30)).astype(F32)
    yield from (
        x,
        x[::2, ::-1, ::3],
        x.transpose(2, 0, 1),
        x.transpose(1, 0, 2),
        x[:, :1],
        x[:1, :, :1],
        x[:, :, :1],
        x[..., ::-1],
    )
    yield np.broadcast_to(x[0, 0, 0], (6, 8, 30))


def test_strides_and_broadcasting():
    rng = np.random.default_rng(4)
    program = of("sub", 2)
    tried = 0
    for a, b in product(layouts(rng), repeat=2):
        try:
            shape = np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            continue
        tried += 1
        np.testing.assert_array_equal(run(program, [a, b], [np.empty(shape, F32)]), a - b)
    assert tried > 30


ROW = {name: (("leaf", False, "float32"), (name, True, "", 0)) for name in ("sum", "max", "min")}


@pytest.mark.parametrize("columns", [2, 3, 4, 8, 15, 16, 17, 100, 255, 511, 512, 513, 4096, 4097, 9001])
@pytest.mark.parametrize("name", list(ROW))
def test_reductions(name, columns):
    rng = np.random.default_rng(5)
    reference = getattr(np, name)
    for rows in (1, 2, 5, 40):
        x = rng.integers(-50, 50, (rows, columns)).astype(F32)
        program = compiled(native, ROW[name], ((1, "float32"),), columns <= native.TILE_WHOLE)
        memory, out = guarded((rows,), F32)
        for view in (x, x[:, ::-1], np.asfortranarray(x), np.broadcast_to(x[:, :1], x.shape)):
            np.testing.assert_array_equal(run(program, [view], [out], shape=view.shape), reference(view, axis=1))
        assert (memory[:33] == 77).all() and (memory[-33:] == 77).all()
        x[0, columns // 2] = np.nan
        x[-1, 0] = np.inf
        np.testing.assert_array_equal(run(program, [x], [out], shape=x.shape), reference(x, axis=1))


def test_bits_do_not_depend_on_threads():
    """A softmax (two reductions, rows whole or in parts) and an elementwise chain."""
    rng = np.random.default_rng(6)
    softmax = (
        ("leaf", False, "float32"),
        ("max", True, "", 0),
        ("sub", False, "", 0, 1),
        ("exp", False, "", 2),
        ("sum", True, "", 3),
        ("div", False, "", 3, 4),
    )
    chain = (
        *[("leaf", False, "float32")] * 2,
        ("mul", False, "", 0, 1),
        ("tanh", False, "", 2),
        ("add", False, "", 3, 0),
    )
    for ops, shape in [(softmax, (900, 300)), (softmax, (50, 6000)), (chain, (300_001,)), (chain, (700, 33))]:
        program = compiled(native, ops, ((len(ops) - 1, "float32"),), shape[-1] <= native.TILE_WHOLE)
        inputs = [rng.normal(size=shape).astype(F32) for op in ops if op[0] == "leaf"]
        results = []
        for threads in (1, 2, 5):
            native.set_threads(threads)
            results.append(run(program, inputs, [np.empty(shape, F32)]).tobytes())
        assert len(set(results)) == 1


def make(steps, segments=None, inputs=(0,), outputs=((0, 0),), registers=2, rows=0, by_rows=False):
    code = b"".join(bytes(s) for s in steps)
    return native.TileProgram(
        code,
        segments or [(0, 0, len(steps))],
        list(inputs),
        [list(o) for o in outputs],
        registers,
        rows,
        by_rows,
        False,
    )


def test_wrong_programs_are_refused():
    """Nothing that a program says can make the interpreter touch memory that is not its own."""
    c = native.tile_codes()
    load, store = (c["LOAD"], 0, 0, 0, 0, 0), (c["STORE"], 0, 0, 0, 0, 0)
    make([load, store])
    for steps in (
        [(c["LOAD"], 2, 0, 0, 0, 0)],
        [(c["LOAD"], 0, 1, 0, 0, 0)],
        [load, (c["STORE"], 1, 0, 0, 0, 0)],
        [load, (c["STORE"], 0, 9, 0, 0, 0)],
        [(c["ADD"], 0, 0, 16, 0, 0)],
        [(c["ADD"], 0, 0, 1, 1, 2)],
        [(c["SUM"], 16, 0, 0, 0, 0)],
        [(c["SPREAD"], 0, 16, 0, 0, 0)],
        [(200, 0, 0, 0, 0, 0)],
        [(c["ADD"], 0, 0, 64, 0, 0)],
    ):
        with pytest.raises(ValueError, match="step"):
            make(steps)
    for wrong in (
        {"segments": [(0, 0, 3)]},
        {"segments": [(0, 1, 2)]},
        {"segments": [(1, 0, 2)]},
        {"registers": 17},
        {"rows": 1},
        {"inputs": (9,)},
        {"outputs": ((5, 0),)},
        {"inputs": (0,) * 17},
    ):
        with pytest.raises(ValueError):
            make([load, store], **wrong)


def test_wrong_arguments_are_refused():
    program = of("neg", 1)
    x, y = np.zeros((4, 5), F32), np.zeros((4, 5), F32)
    read_only = np.zeros((4, 5), F32)
    read_only.flags.writeable = False
    for inputs, outputs, shape in [
        ([x, x], [y], (4, 5)),
        ([], [y], (4, 5)),
        ([x], [], (4, 5)),
        ([x.astype(F64)], [y], (4, 5)),
        ([x], [y[:, ::2]], (4, 5)),
        ([x], [y], (5, 4)),
        ([x], [y[:2]], (4, 5)),
        ([x], [y], (0, 5)),
        ([x[None]], [y], (4, 5)),
        ([x], [read_only], (4, 5)),
        ([np.zeros(85, np.uint8)[1:81].view(F32).reshape(4, 5)], [y], (4, 5)),
    ]:
        with pytest.raises((ValueError, BufferError)):
            run(program, inputs, outputs, shape=shape) if outputs else program.run(inputs, [], [], shape)
