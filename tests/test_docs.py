"""What the documentation tells the reader to do, works.

Blocks of ```python run, a page's in one namespace. Lines `$ ...` of ```console blocks run, in order, in an empty
directory. Every other `zoo ...` line, in docs/, the READMEs and CONTRIBUTING, is parsed by the program itself:
commands, options and their values exist. (Those need the network, or a user's own files.)
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from zoo.cli.main import app, main

ROOT = Path(__file__).parents[1]
DOCS = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "decisions.md")
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "zoo").glob("*/README.md"))]


def blocks(page: Path, *kinds: str) -> list[tuple[str, str]]:
    """(language, text) of a page's code blocks."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block for block in found if not kinds or block[0] in kinds]


def commands(text: str) -> Iterator[str]:
    """The `zoo ...` commands of a block, without what is said behind them."""
    for line in text.splitlines():
        line = re.sub(r"^\$ ", "", line.strip())
        if not line.startswith("zoo ") and "&& zoo " not in line:
            continue
        line = re.split(r"\s+#\s|\s{2,}(?=\S)", line)[0]
        for part in re.split(r"\s+(?:&&|;|\|)\s+", line):
            if part.startswith("zoo "):
                yield part.split(" < ")[0]


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for _, code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), names)


WITH_CONSOLE = [page for page in DOCS if blocks(page, "console")]


@pytest.mark.parametrize("page", WITH_CONSOLE, ids=lambda page: page.name)
def test_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line[2:] for _, text in blocks(page, "console") for line in text.splitlines() if line.startswith("$ ")]
    assert lines
    for line in lines:
        words = shlex.split(line)
        if words[0] == "zoo":
            code = main(words[1:])
        else:
            assert words[0] == "python"
            code = subprocess.run([sys.executable, *words[1:]]).returncode
        told = capfd.readouterr()
        assert code == 0, f"{line}\n{told.err}"
        assert told.out or words[0] == "python", f"{line} gave nothing"


PARSED = sorted({(page, line) for page in PAGES for _, text in blocks(page) for line in commands(text)})


@pytest.mark.parametrize(("page", "line"), PARSED, ids=[f"{page.parent.name}: {line[:60]}" for page, line in PARSED])
def test_commands_are_understood(page: Path, line: str) -> None:
    words = shlex.split(line.replace("...", "x"))[1:]
    command: Any = typer.main.get_command(app)
    if words[0] in ("NAME", "MODEL") or "MODEL" in words[:2]:
        pytest.skip("a pattern, not a command")
    context = typer.Context(command)
    while hasattr(command, "get_command"):
        name, words = words[0], words[1:]
        found = command.get_command(context, name)
        assert found is not None, f"{page.name}: there is no command {name}"
        command, context = found, typer.Context(found, parent=context)
    command.make_context(command.name, list(words))


def test_the_pages_are_all_read() -> None:
    assert len(PARSED) > 60 and len(WITH_CONSOLE) >= 4
