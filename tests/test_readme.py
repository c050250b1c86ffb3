"""What the README tells the reader to do works: its Python runs, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo.cli.main import main
from zoo.cli.signature import describe
from zoo.options import GIVEN
from zoo.port import get

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^\$ zoo (\w+(?: mnist_cnn)?)", README, re.MULTILINE))))
def test_commands_exist(line: str, capsys: Any) -> None:
    assert main([*line.split(), "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def finetune_lines() -> list[str]:
    """Of the README and of the ports' own."""
    pages = [README, *(path.read_text(encoding="utf-8") for path in Path(zoo.__file__).parent.glob("*/README.md"))]
    return sorted({line for page in pages for line in re.findall(r"^\$ zoo (finetune \w+ .*)", page, re.MULTILINE)})


@pytest.mark.parametrize("line", finetune_lines())
def test_options_of_fine_tuning_exist(line: str) -> None:
    described = describe(get(line.split()[1]).finetune, GIVEN, {})
    known = {name.replace("_", "-") for name in described.options} | {"weights", "device", "dtype", "config", "set"}
    assert set(re.findall(r" --([a-z][a-z-]*)", line.split("      ")[0])) <= known


def test_the_result_that_it_shows(capsys: Any) -> None:
    shown = re.search(r"^\$ zoo run mnist_cnn (\S+samples\S+)\n(.*?)```", README, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert main(["run", "mnist_cnn", str(Path(__file__).parents[1] / shown[1])]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("3 ") and told.out.split()[0] == shown[2].splitlines()[-2].split()[0]
    summary = re.search(r"\(.*unseen digits\)", told.err)
    assert summary is not None and summary[0] in shown[2]
