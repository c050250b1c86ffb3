"""`zoo pull`, `zoo export`, `zoo rm`: weights from the Hub, back to the published layout, and away."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from zoo.cli.console import Console, Stopwatch, columns, print_json, size
from zoo.cli.list import tree_size
from zoo.core.errors import DownloadError, WeightsError


def pull(ref: str, revision: str | None, dtype: str | None, as_json: bool, quiet: bool) -> None:
    """Fetches, translates and keeps a repository; prints where."""
    from zoo.hub.pull import pull as pull_repository

    repo_id, revision = parse(ref, revision)
    with Console(quiet=quiet, as_json=as_json) as console:
        watch = Stopwatch()
        made = pull_repository(repo_id, revision, dtype=numpy_dtype(dtype), progress=console.progress)
        nbytes = tree_size(made.directory)
        console.say(f"{repo_id} · {made.port} · {size(nbytes)}" + ("" if made.fresh else " · was here already"))
        if as_json:
            print_json({"model": made.port, "repo": repo_id, "path": str(made.directory), "bytes": nbytes,
                        "fresh": made.fresh})  # fmt: skip
        else:
            print(made.directory, flush=True)
        console.say(f"  {watch}\n  zoo run {made.port} --weights {repo_id}")


def check(ref: str, revision: str | None, dtype: str | None, as_json: bool, quiet: bool) -> None:
    """Prints what `pull` would do, from headers alone. Raises WeightsError, after the table, if there are gaps."""
    from zoo.hub import remote
    from zoo.hub.pull import preview

    repo_id, revision = parse(ref, revision)
    with Console(quiet=quiet, as_json=as_json), tempfile.TemporaryDirectory() as directory:
        seen = preview(remote.find(repo_id, revision), Path(directory), numpy_dtype(dtype))
    plan, repo = seen.plan, seen.repo
    document: dict[str, Any] = {
        "model": seen.known.port.name,
        "repo": repo.id,
        "revision": repo.revision,
        "commit": repo.commit,
        "licence": repo.licence,
        "files": {file.name: file.size for file in seen.files},
        "download_bytes": seen.to_fetch,
        "memory_bytes": seen.memory,
        "tensors": [
            {
                "source": step.source,
                "target": step.target,
                "operations": list(step.names),
                "shape": list(seen.target[step.target].shape),
                "dtype": seen.target[step.target].dtype.name,
                "bytes": seen.target[step.target].nbytes,
            }
            for step in plan.steps
        ],
        "dropped": dict(plan.dropped),
        "gaps": plan.report(limit=1000).splitlines(),
    }
    if as_json:
        print_json(document)
    else:
        print(_text(document), flush=True)
    plan.check(repo.id, seen.known.port.name, "Use a checkpoint of this architecture.")


def _text(document: dict[str, Any]) -> str:
    facts = [
        ("model", document["model"]),
        ("commit", f"{document['commit']} ({document['revision']})"),
        ("licence", document["licence"]),
        ("to fetch", f"{size(document['download_bytes'])} in {len(document['files'])} files"),
        ("memory", f"{size(document['memory_bytes'])} of weights"),
        ("gaps", str(len(document["gaps"])) if document["gaps"] else "none: every tensor has its place"),
    ]
    rows: list[tuple[object, ...]] = [("published", "becomes", "shape", "dtype", "size")]
    for entry in document["tensors"]:
        becomes = " ".join([entry["target"], *entry["operations"]])
        rows.append((entry["source"], becomes, tuple(entry["shape"]), entry["dtype"], size(entry["bytes"])))
    rows += [(name, f"left out: {why}", "", "", "") for name, why in document["dropped"].items()]
    return columns(facts) + "\n\n" + columns(rows)


def export(ref: str, directory: Path, merge: bool, as_json: bool, quiet: bool) -> None:
    """Writes a checkpoint in the published layout; prints where."""
    from zoo.hub.export import export as export_checkpoint

    with Console(quiet=quiet, as_json=as_json) as console:
        made = export_checkpoint(ref, directory, console.progress, merge=merge)
        console.say(f"{ref} · {made.port} · {made.tensors} tensors, {size(made.nbytes)}, under their published names")
        if as_json:
            print_json({"model": made.port, "path": str(made.directory), "tensors": made.tensors})
        else:
            print(made.directory, flush=True)


def remove(ref: str, quiet: bool) -> None:
    """Takes a pulled checkpoint away."""
    from zoo.hub import store

    place = store.remove(ref)
    with Console(quiet=quiet) as console:
        console.say(f"removed {place}")


def parse(ref: str, revision: str | None) -> tuple[str, str | None]:
    """(owner/name, revision) of what the user typed. Raises DownloadError if it is no repository's name."""
    from zoo.hub import refs

    known = refs.hub_id(ref)
    if known is None or "--" in known[0]:
        fix = "Give owner/name, as on https://huggingface.co; what is on this machine needs no pull."
        raise DownloadError(f"cannot fetch {ref}", "that is no repository of the Hugging Face Hub", fix)
    if known[1] is not None and revision not in (None, known[1]):
        raise WeightsError(f"cannot fetch {ref}", f"--revision says {revision}", "Give the revision once.")
    return known[0], revision or known[1]


def numpy_dtype(name: str | None) -> Any:
    """The dtype of this name; int8 and int4, which are ways of rounding, stay names."""
    from zoo.core.dtype import dtype

    return name if name in (None, "int8", "int4") else dtype(str(name))
