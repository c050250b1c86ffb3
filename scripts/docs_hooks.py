"""What mkdocs does beside reading docs/: takes each port's README and CONTRIBUTING from where they lie.

Links to other files of the repository lead to the repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"contributing.md": ROOT / "CONTRIBUTING.md"}
PAGES |= {f"models/{path.parent.name}.md": path for path in sorted((ROOT / "zoo").glob("*/README.md"))}
PICTURE = re.compile(r"\.(png|svg|jpg|jpeg|gif)$")


def on_config(config: Any) -> Any:
    models = [{path.stem: path.as_posix()} for path in map(Path, PAGES) if path.parent.name == "models"]
    config["nav"] = [{"Models": models} if "Models" in entry else entry for entry in config["nav"]]
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for name, source in PAGES.items():
        files.append(File.generated(config, name, content=rewritten(source)))
        for picture in source.parent.glob("*.*") if source.parent != ROOT else ():
            if PICTURE.search(picture.name):
                files.append(File.generated(config, f"models/{picture.name}", abs_src_path=str(picture)))
    return files


def rewritten(source: Path) -> str:
    """A page's text; links to what is no page are written out as paths in the repository."""

    def link(found: re.Match[str]) -> str:
        text, target = found.groups()
        if re.match(r"[a-z]+:|#", target) or PICTURE.search(target):
            return found[0]
        place = (source.parent / target.partition("#")[0]).resolve()
        for page, path in PAGES.items():
            if path == place:
                return f"[{text}]({_relative(source, page)})"
        if place.parent == ROOT / "docs" and place.suffix == ".md":
            return f"[{text}]({_relative(source, place.name)})"
        return f"{text} (`{place.relative_to(ROOT)}`)" if place.is_relative_to(ROOT) else text

    return re.sub(
        r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)",
        link,
        source.read_text(encoding="utf-8").replace("](../../docs/pictures/", "](../pictures/"),
    )


def _relative(source: Path, page: str) -> str:
    return page if source.parent == ROOT else f"../{page}"
