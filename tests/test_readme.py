"""What the README tells the reader to do works: its Python runs, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from zoo.cli.main import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^\$ zoo (\w+(?: mnist_cnn)?)", README, re.MULTILINE))))
def test_commands_exist(line: str, capsys: Any) -> None:
    assert main([*line.split(), "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def test_the_result_that_it_shows(capsys: Any) -> None:
    shown = re.search(r"^\$ zoo run mnist_cnn (\S+samples\S+)\n(.*?)```", README, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert main(["run", "mnist_cnn", str(Path(__file__).parents[1] / shown[1])]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("3 ") and told.out.split()[0] == shown[2].splitlines()[-2].split()[0]
    summary = re.search(r"\(.*unseen digits\)", told.err)
    assert summary is not None and summary[0] in shown[2]
