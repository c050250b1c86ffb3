"""Where the members of a zip file lie in it, for members that are stored as they are.

torch.save compresses nothing, so each member is a span of the file that can be mapped; a compressed one is refused, and
with it every zip bomb. Names are keys here, never paths: nothing is unpacked. Format: PKWARE's APPNOTE.TXT 6.3.10,
sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14-16 (its end, zip64), 4.5.3 (zip64 extra field).
"""

from __future__ import annotations

import struct

from zoo.hub.mapped import Bytes
from zoo.hub.unpickle import Refused

LIMIT_DIRECTORY = 16 << 20
"""Bytes of the central directory; a member takes about a hundred."""

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # the real number is in the zip64 record
_ENCRYPTED = 1
_DAMAGED = "it is truncated, or damaged: its zip directory "


def members(file: Bytes) -> dict[str, tuple[int, int]]:
    """Member name -> (offset of its local header, bytes), as the central directory says. Raises Refused."""
    count, size, start = _directory(file)
    if size > LIMIT_DIRECTORY:
        raise Refused(f"its zip directory takes {size:,} bytes: no checkpoint has that many tensors")
    directory = file[start : start + size]
    if start + size > file.size:
        raise Refused(_DAMAGED + "lies behind its end")
    found: dict[str, tuple[int, int]] = {}
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > size:
            raise Refused(_DAMAGED + "has fewer entries than it says")
        (magic, _, _, flags, method, _, _, _, packed, full, name_size, extra_size, comment_size, _, _, _, offset) = (
            _CENTRAL.unpack_from(directory, at)
        )
        name_at = at + _CENTRAL.size
        at = name_at + name_size + extra_size + comment_size
        if magic != b"PK\x01\x02" or at > size:
            raise Refused(_DAMAGED + "has an entry that is none")
        name = directory[name_at : name_at + name_size].decode("utf-8", "replace")
        extra = directory[name_at + name_size : name_at + name_size + extra_size]
        full, packed, offset = _zip64(extra, [full, packed, offset])
        if method != 0 or packed != full or flags & _ENCRYPTED:
            raise Refused(f"its member {name[:80]!r} is compressed or encrypted, which torch.save never does")
        if name in found:
            raise Refused(f"its member {name[:80]!r} is there twice")
        found[name] = offset, full
    return found


def _directory(file: Bytes) -> tuple[int, int, int]:
    """(entries, bytes, offset) of the central directory."""
    at = file.find_last(b"PK\x05\x06", max(0, file.size - _END.size - _FULL16))
    if at < 0 or at + _END.size > file.size:
        raise Refused(_DAMAGED + "is missing; it stands at the end of the file")
    _, _, _, _, count, size, start, _ = _END.unpack(file[at : at + _END.size])
    if (count == _FULL16 or _FULL32 in (size, start)) and at >= _LOCATOR.size:
        magic, _, at64, _ = _LOCATOR.unpack(file[at - _LOCATOR.size : at])
        record = file[at64 : at64 + _END64.size] if at64 < file.size else b""
        if magic != b"PK\x06\x07" or len(record) < _END64.size or not record.startswith(b"PK\x06\x06"):
            raise Refused(_DAMAGED + "has no zip64 record")
        *_, count, size, start = _END64.unpack(record)
    return count, size, start


def _zip64(extra: bytes, values: list[int]) -> list[int]:
    """(uncompressed, compressed, offset), the full ones taken from the zip64 field, where they stand in this order."""
    if _FULL32 not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            numbers = [extra[i : i + 8] for i in range(at + 4, at + 4 + length, 8)]
            numbers = [n for n in numbers if len(n) == 8]
            if len(numbers) >= values.count(_FULL32):
                taken = iter(numbers)
                return [int.from_bytes(next(taken), "little") if v == _FULL32 else v for v in values]
        at += 4 + length
    raise Refused(_DAMAGED + "lacks a size")


def span(file: Bytes, name: str, offset: int, size: int) -> tuple[int, int]:
    """(offset, bytes) of a member's content, within the file. Raises Refused."""
    header = file[offset : offset + _LOCAL.size] if offset < file.size else b""
    if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
        raise Refused(_DAMAGED + f"points to no member {name[:80]!r}")
    *_, name_size, extra_size = _LOCAL.unpack(header)
    start = offset + _LOCAL.size + name_size + extra_size
    if start + size > file.size:
        raise Refused(f"it is truncated: its member {name[:80]!r} ends behind the file's {file.size:,} bytes")
    return start, size
