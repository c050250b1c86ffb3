"""The house stands as DESIGN.md says: imports run downward, files stay small, `import zoo` stays light.

By reading the source, so that an import within a function counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "zoo"
FILES = sorted(p for p in ZOO.rglob("*.py") if "__pycache__" not in p.parts)
LAYERS = {"core", "nn", "train", "data", "hub", "bench", "compare", "new", "cli"}
PORTS = {p.parent.name for p in ZOO.glob("*/__init__.py") if p.parent.name not in LAYERS}
TOP = {p.stem for p in ZOO.glob("*.py")} - {"__init__", "__main__"}  # zoo/port.py: what a port is, below all ports


def module(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def named(source: str, package: list[str]) -> Iterator[str]:
    """Full names of all that this source, a module in `package`, imports: at its top or later, under TYPE_CHECKING or
    not. `from zoo import nn` counts as zoo.nn."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield from (f"{name}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant))


def imports(file: Path) -> Iterator[str]:
    package = module(file).split(".")
    return named(file.read_text(), package if file.name == "__init__.py" else package[:-1])


IMPORTS = {file: sorted(set(imports(file))) for file in FILES}


def part(name: str) -> str:
    """Which part of the house a module of the zoo belongs to: core, nn, ..., a port's name, or "" for the roof."""
    names = name.split(".")
    return names[1] if len(names) > 1 and names[0] == "zoo" and names[1] in LAYERS | PORTS | TOP else ""


def within(name: str, *prefixes: str) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


BELOW = {
    "core": set(),
    "nn": {"core"},
    "data": {"core"},
    "hub": {"core", "nn", "port"},  # it loads what a port's record describes; the record names its translation table
    "port": {"core", "nn", "hub"},
    "compare": {"core", "nn", "hub", "port"},
    "new": {"core", "hub", "port"},
    "options": {"core"},
    "train": {"core", "nn", "data", "hub", "options"},
    "bench": {
        "core",
        "nn",
        "port",
    },  # cases, and the runner; a port states its cases, and the runner finds them by its record
}
# the roof: zoo/__init__.py loads these when they are first asked for; cli finds ports by their records
PORT_MAY = {"core", "nn", "train", "data", "hub", "bench", "port"}


def layer_files(*names: str) -> list[Path]:
    return [f for f in FILES if part(module(f)) in names]


def test_imports_are_read_however_they_are_written() -> None:
    source = """
import torch.nn as t
from zoo import llama, ops
from .weights import TABLE
from ..hub import load
if TYPE_CHECKING:
    from zoo.cli.main import main
def f():
    import cupy
    return importlib.import_module("zoo.whisper"), import_module(name)
"""
    assert set(named(source, ["zoo", "resnet"])) == {
        "torch.nn", "zoo.llama", "zoo.ops", "zoo.resnet.weights.TABLE", "zoo.hub.load", "zoo.cli.main.main", "cupy",
        "zoo.whisper",
    }  # fmt: skip
    assert [part(n) for n in ("zoo.hub.load", "zoo.mnist_cnn", "zoo.tensor", "numpy", "zoo")] == [
        "hub", "mnist_cnn", "", "", "",
    ]  # fmt: skip


def test_the_parts_are_found() -> None:
    assert {"core", "hub", "cli"} <= LAYERS and "mnist_cnn" in PORTS
    assert len(FILES) > 40


@pytest.mark.parametrize("layer", sorted(BELOW))
def test_imports_run_downward(layer: str) -> None:
    upward = [
        f"{module(file)} imports {name}"
        for file in layer_files(layer)
        for name in IMPORTS[file]
        if within(name, "zoo") and part(name) not in BELOW[layer] | {layer, ""}
    ]
    assert upward == []


def test_core_imports_no_other_part_of_the_zoo() -> None:
    outside = [
        f"{module(f)} imports {name}"
        for f in layer_files("core")
        for name in IMPORTS[f]
        if within(name, "zoo") and not within(name, "zoo.core")
    ]
    assert outside == []


@pytest.mark.parametrize("port", sorted(PORTS))
def test_a_port_imports_no_other_port_no_program_and_no_backend(port: str) -> None:
    wrong = [
        f"{module(f)} imports {name}"
        for f in layer_files(port)
        for name in IMPORTS[f]
        if (within(name, "zoo") and part(name) not in PORT_MAY | {port, ""}) or within(name, "zoo.core.backends")
    ]
    assert wrong == []


def test_models_reach_backends_by_ops_alone() -> None:
    """Above core, nobody imports kernels, backends or the op table. Meta, a shape and a dtype, is no more than that;
    and doctor may look at what the cpu device was built for."""
    closed = ("zoo.core.backends", "zoo.core.prims", "zoo.core.prim", "zoo.core.philox")
    seen = {
        (module(f), name)
        for f in FILES
        if part(module(f)) != "core"
        for name in IMPORTS[f]
        if within(name, *closed) and name != "zoo.core.prim.Meta"
    }
    assert {by for by, _ in seen} <= {"zoo.cli.doctor"}, seen


def test_within_core_imports_run_downward() -> None:
    """ops -> prims, tensor -> device -> backends -> kernels; the table and the kernels know nothing of tensors."""
    below_tensor = ("zoo.core.prims", "zoo.core.prim", "zoo.core.backends", "zoo.core.dtype", "zoo.core.errors")
    above = ("zoo.core.tensor", "zoo.core.ops", "zoo.core.autodiff", "zoo.core.random", "zoo.core.testing")
    wrong = [
        f"{module(f)} imports {name}"
        for f in layer_files("core")
        if within(module(f), *below_tensor)
        for name in IMPORTS[f]
        if within(name, *above)
    ]
    assert wrong == []
    wrong = [
        f"{module(f)} imports {name}"
        for f in layer_files("core")
        if within(module(f), "zoo.core.prims", "zoo.core.prim")
        for name in IMPORTS[f]
        if within(name, "zoo.core.backends", "zoo.core.device")
    ]
    assert wrong == [], "the op table is the same on every backend"
    users = [f for f in FILES if any(within(n, "zoo.core.testing") for n in IMPORTS[f])]
    assert all(within(module(f), "zoo.core.testing") for f in users), "testing is for tests"


def test_no_file_of_core_is_above_500_lines() -> None:
    sources = [f for f in ZOO.joinpath("core").rglob("*") if f.suffix in (".py", ".cpp", ".h", ".cu")]
    lines = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in sources}
    assert {name: n for name, n in lines.items() if n > 500} == {}


def test_torch_is_imported_by_references_and_peers_alone() -> None:
    """reference.py makes reference values; peers.py is what `zoo bench --peers` runs, in processes of their own."""
    framework = ("torch", "transformers", "diffusers", "onnx", "onnxruntime", "openvino", "ctranslate2", "llama_cpp")
    foreign = {f for f in FILES if f.name == "reference.py" or f.stem.endswith("peers")}
    wrong = [str(f) for f in FILES if f not in foreign for name in IMPORTS[f] if within(name, *framework)]
    assert wrong == []
    names = {module(f) for f in foreign}
    users = [str(f) for f in FILES if f not in foreign for name in IMPORTS[f] if within(name, *names)]
    assert users == [], "and nothing imports those"


def test_nothing_unpickles() -> None:
    """pickle.load runs what the file says; so do these. A restricted Unpickler of our own is a subclass: allowed. So is
    what this program's own processes tell each other, through a socket that nobody else has."""
    banned = {"pickle.load", "pickle.loads", "torch.load", "dill.load", "joblib.load", "marshal.loads", "marshal.load",
              "pickle.Unpickler", "shelve.open"}  # fmt: skip
    wrong = []
    own = ZOO / "data" / "workers.py"
    for file in [*(f for f in FILES if f != own), *sorted((ROOT / "scripts").rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                allows = any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
                if called in banned or allows:
                    wrong.append(f"{file.relative_to(ROOT)}:{node.lineno} {called}")
            if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "dill"):
                wrong += [f"{file.relative_to(ROOT)}:{node.lineno}" for a in node.names if a.name in ("load", "loads")]
    assert wrong == []


HEAVY = ("torch", "cupy", "huggingface_hub", "typer", "rich", "PIL", "transformers", "diffusers", "jinja2",
         "tokenizers", "requests", "httpx", "soundfile", "hypothesis", "pytest")  # fmt: skip


def test_import_zoo_is_light() -> None:
    """In a fresh process; the time it takes is printed by scripts/measure_overhead.py, since machines differ."""
    code = f"import sys, zoo; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_what_zoo_offers_is_there() -> None:
    import zoo

    missing = [name for name in zoo.__all__ if not hasattr(zoo, name)]
    assert missing == []
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        zoo.lode  # noqa: B018
