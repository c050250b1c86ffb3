"""A program in a terminal of a given size, and what stands on its screen: Python's pty, and pyte, which reads the
control codes as a terminal does."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte

import zoo

PROGRAM = """
import time, sys, warnings
sys.path.insert(0, {here!r})
from small_run import *
def slow(model, batch):
    time.sleep({pause})
    return loss(model, batch)
learner = make({out!r}, quiet=False, loss=slow, log_every=1)
{before}
learner.fit(epochs={epochs})
print("the result")
"""


class Terminal:
    """Runs a small training in it."""

    def __init__(
        self,
        columns: int,
        lines: int,
        *,
        epochs: int = 3,
        pause: float = 0.02,
        out: Path | None = None,
        before: str = "",
    ):  # fmt: skip
        where = None if out is None else str(out)
        here = str(Path(__file__).parent)
        program = PROGRAM.format(here=here, pause=pause, out=where, epochs=epochs, before=before)
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        self._stream = pyte.ByteStream(self.screen)
        self._fd, inner = pty.openpty()
        self.resize(columns, lines)
        env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "TTY_COMPATIBLE")}
        env |= {"TERM": "xterm-256color", "PYTHONPATH": str(Path(zoo.__file__).parents[1]), "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=inner, stdout=inner, stderr=inner, env=env, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(inner)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def until(self, true: Callable[[list[str]], bool], seconds: float = 30.0) -> list[str]:
        """Reads until the screen is as wanted (a picture comes in pieces); its rows then."""
        end = time.monotonic() + seconds
        while not true(self.shown()):
            assert self._read(1.0) and time.monotonic() < end, "\n".join(self.shown())
        return self.shown()

    def end(self) -> int:
        """Reads to the end; the exit code."""
        while self._read(30.0):
            pass
        os.close(self._fd)
        return self.process.wait()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def shown(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    def everything(self) -> list[str]:
        """What has scrolled away, too."""
        gone = ["".join(line[i].data for i in range(self.screen.columns)).rstrip() for line in self.screen.history.top]
        return [*gone, *self.shown()]

    def _read(self, seconds: float) -> bool:
        if select.select([self._fd], [], [], seconds)[0]:
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # Linux: the other side is closed
                return False
            if not data:
                return False
            self._stream.feed(data)
        return True
