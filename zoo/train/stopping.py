"""Signals that end a process, as requests: the step at hand is finished and saved, then the program ends as asked to.

Ctrl-C (SIGINT)                the step is finished and saved; exit code 130
Ctrl-C again                   ends at once; the step at hand is lost, and nothing is half-written
SIGTERM                        as the first Ctrl-C; exit code 143
SIGHUP (the terminal closed)   as the first Ctrl-C; exit code 129. Under nohup, which ignores it, training goes on
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class StopRequest:
    """While this context is open, the first signal sets `asked`, and a second Ctrl-C interrupts at once. What the
    process was started to ignore stays ignored. In threads other than the main one, signals cannot be caught and stay
    as they are."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> StopRequest:
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]  # which nobody can tell once it is gone
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, _HANGUP):
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt("interrupted twice: the step at hand is lost")
        self.asked = number
        if number == _HANGUP:  # what would be said to a terminal that is gone, and fail, goes nowhere
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in self._terminals:
                os.dup2(nowhere, stream)
            os.close(nowhere)

    def end(self, message: str) -> None:
        """Ends the program as the signal would have: KeyboardInterrupt, or exit code 143 or 129."""
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise SystemExit(128 + int(self.asked or 0))
