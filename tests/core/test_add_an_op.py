"""What STYLE promises of a new elementwise op: one row and one line, and it is tested on every backend.

Done for real, in a scratch copy of the tree: softplus is added, once as it should be and several times wrongly, and
pytest is run there. The tests that it finds for the right one must pass; each wrong one must fail where it is wrong.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RIGHT = {"expr": "log(1 + exp({0}))", "vjp": "o.mul(g, o.sigmoid(x))", "ref": "lambda x: math.log1p(math.exp(x))"}
OPS = {
    "softplus": {},
    "softplus_without_ref": {"ref": "None"},
    "softplus_wrong_gradient": {"vjp": "o.mul(g, o.tanh(x))"},
    "softplus_reads_y": {"vjp": "o.mul(g, o.sub(1.0, o.exp(o.neg(y))))"},  # right, but the row keeps x alone
    "softplus_wrong_expression": {"expr": "log(2 + exp({0}))"},
    "softplus_wrong_ref": {"ref": "lambda x: max(x, 0.0)"},
}
FLOATS = ("float16", "bfloat16", "float32", "float64")


def row(name: str, expr: str, vjp: str, ref: str) -> str:
    return (
        f'\n{name.upper()} = ew("{name}", "{expr}", lambda o, g, x, y: {vjp}, keep="x", accepts="float", ref={ref})\n'
    )


def line(name: str) -> str:
    return f'\n{name} = unary("{name}", "log(1 + exp(x)).")\n'


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bool]]:
    """By op: the tests that pytest found for it in the scratch tree, and whether they passed."""
    tree = tmp_path_factory.mktemp("scratch")
    for part in ("zoo/core", "tests/core"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", "csrc"))
    for file in ("zoo/__init__.py", "tests/conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / file, tree / file)
    for name, wrong in OPS.items():
        with open(tree / "zoo/core/prims/elementwise.py", "a") as table, open(tree / "zoo/core/ops.py", "a") as faces:
            table.write(row(name, **(RIGHT | wrong)))
            faces.write(line(name))
    # -S: without the hook by which an editable install would put its own tree before the scratch tree
    path = os.pathsep.join([str(tree), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    done = subprocess.run(
        [sys.executable, "-S", "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", "--tb=no", "-k", "softplus",
         "tests/core/test_ops.py"],
        cwd=tree, env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True,
        text=True,
    )  # fmt: skip
    found: dict[str, dict[str, bool]] = {name: {} for name in OPS}
    for result in done.stdout.splitlines():
        verdict, _, test = result.partition(" ")
        if verdict in ("PASSED", "FAILED"):
            name = test.split("::")[1].split(" - ")[0]
            op = max((op for op in OPS if op in name), key=len)
            found[op][name.replace(op, "OP")] = verdict == "PASSED"
    assert all(found.values()), done.stdout + done.stderr
    return found


def test_a_row_and_a_line_are_tested_at_once(outcome: dict[str, dict[str, bool]]) -> None:
    ran = outcome["softplus"]
    for dtype in (*FLOATS, "int32", "bool"):
        assert f"test_value[numpy-OP-{dtype}]" in ran
        assert f"test_dtype[OP-{dtype}]" in ran
    for dtype in FLOATS:
        assert f"test_gradient[numpy-OP-{dtype}]" in ran
    assert {
        "test_gradient_by_finite_differences[OP]",
        "test_second_order[OP]",
        "test_layouts[numpy-OP-float32]",
        "test_not_a_number[numpy-OP-float32]",
        "test_value[numpy-OP[empty]-float32]",
    } <= set(ran)
    assert all(ran.values()), [name for name, passed in ran.items() if not passed]


def test_without_a_reference_its_expression_is_evaluated_in_python(outcome: dict[str, dict[str, bool]]) -> None:
    ran = outcome["softplus_without_ref"]
    assert "test_value[numpy-OP-float32]" in ran
    assert all(ran.values())


def test_a_wrong_gradient_fails(outcome: dict[str, dict[str, bool]]) -> None:
    ran = outcome["softplus_wrong_gradient"]
    assert not ran["test_gradient_by_finite_differences[OP]"]
    assert all(passed for name, passed in ran.items() if name.startswith("test_value"))


def test_a_gradient_that_reads_what_is_not_kept_fails(outcome: dict[str, dict[str, bool]]) -> None:
    assert not outcome["softplus_reads_y"]["test_gradient_by_finite_differences[OP]"]


def test_a_wrong_expression_fails(outcome: dict[str, dict[str, bool]]) -> None:
    assert not any(outcome["softplus_wrong_expression"][f"test_value[numpy-OP-{d}]"] for d in FLOATS)


def test_a_reference_that_disagrees_fails(outcome: dict[str, dict[str, bool]]) -> None:
    assert not any(outcome["softplus_wrong_ref"][f"test_value[numpy-OP-{d}]"] for d in FLOATS)
