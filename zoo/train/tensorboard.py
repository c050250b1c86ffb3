"""What a run tells, as TensorBoard reads it: an event file in the run's directory, where TensorBoard is installed.

Written by us: the format is a list of records (length, its crc, bytes, their crc) of small protobuf messages
(tensorflow/core/lib/io/record_writer.cc and tensorflow/core/util/event.proto); why: docs/decisions.md.
"""

from __future__ import annotations

import importlib.util
import platform
import struct
import time
from functools import cache
from pathlib import Path
from typing import BinaryIO

from zoo.hub.files import writing
from zoo.train.watch import Epoch, Pace, Run, Step, Watcher


def installed() -> bool:
    """Whether there is somebody to read the files; nothing is imported."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoard(Watcher):
    """An event file for each time the run is started, written every so many steps. One that goes on tells TensorBoard
    to forget what came after the step it goes on from."""

    def __init__(self, out: Path, every: int = 1):
        self.out, self.every = out, every
        self._file: BinaryIO | None = None
        self._pace = Pace()

    def opened(self, run: Run) -> None:
        self.closed("")
        now, self._unit = time.time_ns(), run.unit
        path = self.out / f"events.out.tfevents.{now // 10**9:010d}.{now % 10**9:09d}.{platform.node() or 'host'}"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        self._write(_text(3, b"brain.Event:2"), 0)  # file_version
        self._write(_text(7, _number(1, 1)), run.step + 1)  # session_log { status: START }
        self._pace.start()

    def stepped(self, step: Step) -> None:
        self._pace.step(step)
        if step.step % self.every == 0:
            values = {"loss": step.loss, "lr": step.lr, **self._pace.rates(self._unit)}
            values |= {} if step.grad_norm is None else {"grad_norm": step.grad_norm}
            values |= {} if step.memory is None else {"memory": float(step.memory)}
            self._scalars({f"train/{name}": value for name, value in values.items()}, step.step)
            self._pace.start()

    def validated(self, epoch: Epoch) -> None:
        values = {f"validation/{name}": value for name, value in epoch.metrics.items()}
        self._scalars({"train/epoch_loss": epoch.loss, **values}, epoch.step)

    def closed(self, reason: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _scalars(self, values: dict[str, float], step: int) -> None:
        """summary { value { tag, simple_value } ... }"""
        each = (_text(1, tag.encode()) + _float(2, value) for tag, value in values.items())
        self._write(_text(5, b"".join(_text(1, value) for value in each)), step)

    def _write(self, what: bytes, step: int) -> None:
        """An event: wall_time, step, and what it is of."""
        event = _key(1, 1) + struct.pack("<d", time.time()) + _number(2, step) + what
        length = struct.pack("<Q", len(event))
        assert self._file is not None
        with writing(self.out):
            self._file.write(length + _masked(length) + event + _masked(event))
            self._file.flush()


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _key(field, 5) + struct.pack("<f", value)


def _text(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _varint(len(value)) + value


def _masked(data: bytes) -> bytes:
    """CRC-32C (Castagnoli), rotated and shifted as TFRecord wants it, so that a crc of a crc is no special case."""
    crc, table = 0xFFFFFFFF, _table()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _table() -> tuple[int, ...]:
    """Of CRC-32C by bytes; its polynomial, bits reversed, is 0x82F63B78."""
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        found.append(byte)
    return tuple(found)
