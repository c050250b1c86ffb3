"""Where pulled checkpoints are kept: a directory each, which is whole or not there.

`weights_dir()/owner--name/` is put in place by a rename, so whoever is killed at any moment leaves the old one or the
new one. Beside it, hidden: `.owner--name.lock`, and while a pull is under way `.owner--name.pull/` with what was
fetched so far, for the next attempt to go on with.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.core.errors import WeightsError
from zoo.hub import refs
from zoo.hub.files import read_json, sync_directory, writing


def place(repo_id: str) -> Path:
    """The directory of a pulled repository, there or not."""
    return refs.weights_dir() / refs.folder(repo_id)


def provenance(repo_id: str) -> dict[str, Any]:
    """Where the checkpoint at a repository's place comes from; {} if none is there, or not a whole one.

    Raises WeightsError if something else is there: a directory that nobody pulled is not replaced.
    """
    directory = place(repo_id)
    if (directory / refs.PROVENANCE_FILE).is_file():
        with contextlib.suppress(WeightsError):
            source = read_json(directory / refs.PROVENANCE_FILE)
            return source if (directory / refs.WEIGHTS_FILE).is_file() and "port" in source else {}
        return {}
    if os.path.lexists(directory):
        raise WeightsError(
            f"cannot keep {repo_id} in {directory}",
            "something is there that was not pulled",
            "Move it away, or set ZOO_WEIGHTS to another directory.",
        )
    return {}


@contextlib.contextmanager
def locked(repo_id: str) -> Iterator[Path]:
    """One process at a time; gives the directory to work in. What an earlier process left half done is set right."""
    from filelock import FileLock

    target = place(repo_id)
    work = target.with_name(f".{target.name}.pull")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        lock.acquire()
    try:
        if (work / "old").exists() and not target.exists():  # killed between the two renames of `install`
            (work / "old").rename(target)
        yield work
    finally:
        lock.release()


def install(made: Path, work: Path, repo_id: str) -> Path:
    """Puts a whole directory in its place; an older one goes. Returns the place."""
    target = place(repo_id)
    with writing(target):
        sync_directory(made)
        remove_tree(work / "old")
        if target.exists():
            target.rename(work / "old")
        made.rename(target)
        sync_directory(target.parent)
        remove_tree(work)
    return target


def remove(ref: str) -> Path:
    """Takes a pulled checkpoint away, and what is left of pulls of it; returns where it was.

    Raises WeightsError for anything that was not pulled: a directory of the user's, or what ships.
    """
    known = refs.hub_id(ref)
    repo_id = known[0] if known else ref.replace("--", "/", 1)
    if known is None and refs.hub_id(repo_id) is None:
        why = "only what `zoo pull` fetched is removed, and that is named owner/name"
        raise WeightsError(f"cannot remove {ref}", why, "Delete a directory of your own yourself.")
    target = place(repo_id)
    work = target.with_name(f".{target.name}.pull")
    if not target.exists() and not work.exists():
        raise WeightsError(f"cannot remove {repo_id}", f"it is not in {target.parent}", "`zoo list` shows what is.")
    with locked(repo_id):
        provenance(repo_id)
        with writing(target):
            if target.exists():
                work.mkdir(exist_ok=True)
                remove_tree(work / "removed")
                target.rename(work / "removed")
            remove_tree(work)
    return target


def remove_tree(path: Path) -> None:
    """A directory and all below it, if it is there; links are removed, not followed."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
