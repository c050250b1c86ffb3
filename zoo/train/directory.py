"""The directory of a run: its checkpoints, which are rotated, and a lock, so that it belongs to one process at a time.

    DIR/checkpoints/step-00000800.safetensors     the newest `keep`, each whole; what --resume goes on from
    DIR/best/                                     the weights that validated best, as `zoo run --weights` takes them
    DIR/.lock                                     held while a process trains

A checkpoint is added before an older one is taken away: at every moment, whatever happens to the process or the disk,
there are as many whole ones as there were.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.core.errors import WeightsError, ZooError
from zoo.hub.files import writing
from zoo.train import checkpoint
from zoo.train.checkpoint import Checkpoint, Damaged

BEST = "best"
_NAME = re.compile(r"step-(\d{8,})\.safetensors")
_RESUME = "Continue it with --resume (in Python: learner.resume()), or choose another directory."


class RunDirectory:
    def __init__(self, path: str | Path, keep: int = 2):
        if keep < 1:
            raise ZooError(f"cannot keep {keep} checkpoints", "a run goes on from the newest", "Keep 1 or more.")
        self.path, self.keep = Path(path), keep
        self._damaged: list[Path] = []

    def checkpoints(self) -> list[Path]:
        """Their files, the newest first."""
        folder = self.path / "checkpoints"
        found = [f for f in folder.iterdir() if _NAME.fullmatch(f.name)] if folder.is_dir() else []
        return sorted(found, key=_step, reverse=True)

    def newest(self, say: Callable[[str], None]) -> Checkpoint:
        """The newest whole checkpoint; `say` is told of any that are newer and damaged.

        Raises WeightsError if there is none, or it is of another version.
        """
        damaged: list[Damaged] = []
        for path in self.checkpoints():
            try:
                found = checkpoint.load(path)
            except Damaged as error:
                damaged.append(error)
                self._damaged.append(path)
                continue
            for one in damaged:
                say(f"{one.what}: {one.why}")
            if damaged:
                say(f"going on from {path}, the newest that is whole")
            return found
        why = "\n".join(f"{e.what.removeprefix('cannot read ')}: {e.why}" for e in damaged)
        fix = "Begin anew: without --resume, in another directory." if damaged else "Name the directory of a run."
        raise WeightsError(f"cannot resume from {self.path}", why or "there is no checkpoint in it", fix)

    def save(self, step: int, groups: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
        """Adds a checkpoint, then takes away what is too many; or raises as `checkpoint.save`, and none is gone."""
        try:
            checkpoint.save(self.path / "checkpoints" / f"step-{step:08d}.safetensors", groups, facts)
        except WeightsError as error:
            raise WeightsError(error.what, f"{error.why}; {self.kept()}", error.fix) from error
        for old in self.checkpoints()[self.keep :]:
            with contextlib.suppress(OSError):  # where files that are open cannot be removed, it goes next time
                old.unlink()

    def kept(self) -> str:
        """What one can go on from, in words."""
        found = self.checkpoints()
        return f"{found[0]} is the last good checkpoint" if found else "there is no checkpoint yet"

    @contextlib.contextmanager
    def held(self, resumed: bool) -> Iterator[None]:
        """Makes the directory this process's; what a process that was killed left half done is cleared away.

        resumed: the run in it goes on. Raises ZooError if it does not and there is one, or finished weights; if another
        process trains into it; and WeightsError if it cannot be written to.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".lock", timeout=0)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout as error:
                why = "two runs in one directory would take each other's checkpoints away"
                fix = "Wait until it has ended, or choose another directory."
                raise ZooError(f"another process is training into {self.path}", why, fix) from error
        try:
            if not resumed:
                self._check_empty()
            for folder in (self.path, self.path / "checkpoints", self.path / BEST):
                for part in folder.glob(".*.tmp"):
                    part.unlink(missing_ok=True)
            for path in self._damaged:  # out of the way of the checkpoint that will be of the same step
                path.replace(path.with_name(f"{path.name}.damaged"))
            self._damaged = []
            yield
        finally:
            lock.release()

    def _check_empty(self) -> None:
        what = f"{self.path} holds a run already"
        if found := self.checkpoints():
            raise ZooError(what, f"its checkpoints would be lost: {found[0]}", _RESUME)
        if weights := sorted(self.path.glob("*.safetensors")):
            fix = "Choose another directory."
            raise ZooError(f"{self.path} holds weights already", f"they would be overwritten: {weights[0]}", fix)


class SaveEvery:
    """When a checkpoint is due between the ends of epochs: after so many steps (500, "500"), or so much time ("90s",
    "10min", "2h"); None: never. Raises ZooError for what is neither."""

    def __init__(self, pace: str | int | None):
        self._steps, self._seconds, self._step, self._time = 0, 0.0, 0, 0.0
        if pace is None:
            return
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h|)", str(pace).strip())
        if found is None or float(found[1]) == 0 or (not found[2] and "." in found[1]):
            fix = "Give steps (500) or time (90s, 10min, 2h)."
            raise ZooError(f"cannot save every {pace!r}", "it is neither a number of steps nor a time", fix)
        if found[2]:
            self._seconds = float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]]
        else:
            self._steps = int(found[1])

    def saved(self, step: int) -> None:
        self._step, self._time = step, time.monotonic()

    def due(self, step: int) -> bool:
        if self._steps:
            return step - self._step >= self._steps
        return bool(self._seconds) and time.monotonic() - self._time >= self._seconds


def _step(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1])
