"""`zoo new`: the folder of a port, from the headers of a checkpoint."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from zoo.core.errors import ZooError
from zoo.new import fields, rows
from zoo.new.classes import Skeleton, camel
from zoo.new.source import Source
from zoo.new.tree import Read, read
from zoo.port import package_of

TEMPLATES = Path(__file__).parent / "templates"
TEST = "test_parity.py"
LAYERS = ("BatchNorm", "Conv1d", "Conv2d", "Embedding", "LayerNorm", "Linear", "RMSNorm")


def make(name: str, source: Source, out: Path, ref: str) -> Path:
    """Writes out/name and returns it; of a port of the zoo itself, the test goes to tests/name. A folder appears whole
    or not at all.

    Raises ZooError if the name cannot be a package's, or the folder is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ZooError(f"a port cannot be called {name!r}", "its folder is a Python package", "Use a-z, 0-9 and _.")
    place = out / name
    if place.exists():
        raise ZooError(f"{place} is there already", "a port would be written over", "Choose another name or --out.")
    package = package_of(place)[0]
    files = contents(name, source, package, ref, place)
    tests = place.resolve().parents[1] / "tests" / name if package == f"zoo.{name}" else place
    out.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=out))
    try:
        for file, text in files.items():
            if tests == place or file != TEST:
                (part / file).write_text(text, encoding="utf-8")
        if tests != place:
            tests.mkdir(parents=True, exist_ok=True)
            (tests / TEST).write_text(files[TEST], encoding="utf-8")
        part.chmod(0o755)
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place


def contents(name: str, source: Source, package: str, ref: str, place: Path) -> dict[str, str]:
    """File name -> text of everything in the folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    engine = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    known = facts(name, source, package, ref, place)
    engine.globals["imports"] = lambda *lines: imports(package, lines)
    return {
        template.removesuffix(".j2"): engine.get_template(template).render(known)
        for template in sorted(os.listdir(TEMPLATES))
    }


def imports(package: str, lines: tuple[str, ...]) -> str:
    """`MODULE: NAMES` of each import as a sorted block; `.module` is one of the port: absolute within the zoo, as its
    neighbours have it, relative elsewhere."""
    own = [line for line in lines if line.startswith(".")]
    rest = [line for line in lines if line and not line.startswith(".")]
    if package.startswith("zoo."):
        rest, own = [*rest, *(f"{package}{line}" if line[1] != ":" else package + line[1:] for line in own)], []
    blocks = [sorted(block, key=lambda line: line.split(": ")[0]) for block in (rest, own) if block]
    return "\n\n".join("\n".join("from {} import {}".format(*one.split(": ")) for one in block) for block in blocks)


def facts(name: str, source: Source, package: str, ref: str, place: Path) -> dict[str, Any]:
    """What the templates fill in."""
    found = read(source.infos)
    skeleton = Skeleton(found.root, name, fields.kept(source.config))
    classes = skeleton.sources()
    lines = fields.sources(source.config)
    model_type = str(source.config.get("model_type", ""))
    operations = ["Table", *rows.operations(found)]
    layers = ["Module", *(kind for kind in LAYERS if kind in skeleton.used)]
    bare = "Param" in skeleton.used
    without_config = not model_type and bool(source.infos)
    return {
        "name": name, "camel": camel(name), "package": package, "ref": ref, "shown": source.shown,
        "licence": source.licence, "where": name if package.startswith("zoo.") else place,
        "reference": fields.literal(str(Path(ref).resolve()) if Path(ref).exists() else ref),
        "fields": lines, "typed": any("Any" in line for line in lines) or without_config,
        "mapping": any("Mapping[" in line for line in lines) or without_config,
        "factory": any("field(" in line for line in lines),
        "model_type": model_type, "first": next(iter(source.infos), ""),
        "tensors": len(source.infos), "classes": classes, "bare": bare,
        "layers": ", ".join(sorted([*layers, *(["init"] if bare else [])], key=lambda word: (word.islower(), word))),
        "rows": rows.table_rows(found), "operations": ", ".join(operations),
        "architecture": (source.config.get("architectures") or ["AutoModel"])[0],
        **example_of(source.config, found),
    }  # fmt: skip


def example_of(config: dict[str, Any], found: Read) -> dict[str, str]:
    """What goes in: ids where there is a vocabulary, else pictures, by the config's names; the reference's name of it,
    and how it gets there."""
    if "vocab_size" in config:
        return {
            "about": "Token ids (1, 12), of the upper half: special tokens have low numbers.",
            "value": "rng.integers(config.vocab_size // 2, config.vocab_size, (1, 12)).astype(np.int32)",
            "argument": "ids",
            "conversion": "return module(input_ids=torch.tensor(ids.astype(np.int64)))",
        }
    size = config.get("image_size", 224)
    side = "config.image_size" if isinstance(config.get("image_size"), int) else str(size if type(size) is int else 224)
    channels = "config.num_channels" if "num_channels" in config else "3"
    return {
        "about": "A picture (1, height, width, channels).",
        "value": f"rng.standard_normal((1, {side}, {side}, {channels})).astype(np.float32)",
        "argument": "pixels",
        "conversion": "return module(torch.tensor(pixels.transpose(0, 3, 1, 2).copy()))",
    }
