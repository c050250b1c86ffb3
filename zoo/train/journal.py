"""The log of a run: one JSON object per line, with the step it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from zoo.hub.files import atomic


class Journal:
    """Appends records to a file. A run that goes on from a checkpoint first drops what came after it."""

    def __init__(self, path: Path):
        self.path = path
        self._file: TextIO | None = None

    def write(self, **record: Any) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", buffering=1)  # by line, for who watches the file
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def cut(self, step: int) -> None:
        """Keeps the records up to `step`. A last line that a crash left unfinished goes too."""
        self.close()
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record.get("step", 0) <= step:
                kept.append(line + "\n")
        with atomic(self.path) as part:
            part.write_text("".join(kept), encoding="utf-8")
