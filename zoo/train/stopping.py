"""Ctrl-C and SIGTERM as a request: the step at hand is finished and saved, then the program ends as it was asked to."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """While this context is open, the first Ctrl-C or SIGTERM sets `asked`. A second Ctrl-C interrupts at once. In
    threads other than the main one, signals cannot be caught and stay as they are."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
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

    def end(self, message: str) -> None:
        """Ends the program as the signal would have: KeyboardInterrupt, or exit code 143."""
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise SystemExit(128 + int(self.asked or 0))
