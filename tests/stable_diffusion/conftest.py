"""Where the real files are."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


@pytest.fixture(scope="session")
def real() -> Any:
    """A file of the real test material; the test is skipped where it is absent."""

    def find(*parts: str) -> Path:
        path = DATA.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"no real data: {path} does not exist (set ZOO_TEST_DATA)")
        return path

    return find


BEGIN, END = "<|startoftext|>", "<|endoftext|>"
SIGNS = "abcdefghijklmnopqrstuvwxyz0123456789,!.-:()"


def _write_tokenizer(directory: Path, pad: str = END) -> None:
    """CLIP's, of 99 tokens: signs, signs at the end of a word, a few pairs, begin and end."""
    directory.mkdir(parents=True)
    names = [*SIGNS, *(f"{sign}</w>" for sign in SIGNS)]
    merges = [("r", "e"), ("re", "d</w>"), ("t", "h"), ("th", "e</w>")]
    names += ["".join(pair) for pair in merges]
    names += [f"<|{i}|>" for i in range(97 - len(names))] + [BEGIN, END]
    (directory / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": pad, "unk_token": END}
    (directory / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def write_tokenizer() -> Any:
    return _write_tokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: Any) -> Any:
    """tiny(family): a published directory of random weights, by diffusers; with a tokenizer and a scheduler."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            for module in ("torch", "diffusers", "transformers"):
                pytest.importorskip(module, reason=f"{module} is not installed; it is the reference")
            from zoo.stable_diffusion.reference import FAMILIES, save_random

            directory = tmp_path_factory.mktemp("tiny") / family
            if family == "inpainting":  # SD 1, whose U-Net is shown the mask and the rest of the picture
                nine = dataclasses.replace(FAMILIES["1"].unet, in_channels=9)
                with mock.patch.dict(FAMILIES, {family: dataclasses.replace(FAMILIES["1"], unet=nine)}):
                    save_random(family, directory)
            else:
                save_random(family, directory)
            _write_tokenizer(directory / "tokenizer")
            if family == "xl":
                _write_tokenizer(directory / "tokenizer_2", pad="!")
            made[family] = directory
        return made[family]

    return make
