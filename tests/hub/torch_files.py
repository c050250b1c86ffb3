"""Files of torch.save, assembled byte by byte."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from zoo.core.errors import WeightsError
from zoo.hub import torch_file
from zoo.hub.formats import read


class Call(tuple):
    """(name, *arguments): REDUCE of a global."""


class Storage(tuple):
    """A persistent id."""


class Name(str):
    """A global."""


def code(value: object) -> bytes:
    """The instructions that push a value, protocol 2."""
    if isinstance(value, Call):
        return code(Name(value[0])) + code(tuple(value[1:])) + b"R"
    if isinstance(value, Storage):
        return code(tuple(value)) + b"Q"
    if isinstance(value, Name):
        module, _, name = value.rpartition(".")
        return f"c{module}\n{name}\n".encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(code, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(code, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(code(part) for pair in value.items() for part in pair) + b"u"
    return pickle.dumps(value, 2)[2:-1]


def program(value: object) -> bytes:
    return b"\x80\x02" + (value if isinstance(value, bytes) else code(value)) + b"."


def tensor(shape=(2, 3), strides=(3, 1), offset=0, key="0", size=6, kind="Float", **changed) -> Call:
    storage = changed.get("storage", Storage(("storage", Name(f"torch.{kind}Storage"), key, "cpu", size)))
    return Call(("torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False,
                 Call(("collections.OrderedDict",))))  # fmt: skip


SIX = np.arange(6, dtype=np.float32)


def zipped(path: Path, value: object, members: dict[str, bytes] | None = None, **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("model/data.pkl", program(value))
        for name, content in ({"data/0": SIX.tobytes()} if members is None else members).items():
            archive.writestr(f"model/{name}", content)
    return path


def legacy(path: Path, value: object, storages: list[tuple[str, int, bytes]] | None = None) -> Path:
    stored = [("0", 6, SIX.tobytes())] if storages is None else storages
    parts = [torch_file.MAGIC_NUMBER, 1001, {"little_endian": True}, value, [key for key, _, _ in stored]]
    body = b"".join(program(part) for part in parts)
    path.write_bytes(body + b"".join(struct.pack("<q", size) + content for _, size, content in stored))
    return path


def refused(path: Path) -> WeightsError:
    with pytest.raises(WeightsError) as raised:
        read(path)
    assert raised.value.what == f"cannot read {path}" and raised.value.why and raised.value.fix
    assert len(str(raised.value).splitlines()) == 3
    return raised.value


WRITERS = pytest.mark.parametrize("write", [zipped, legacy])
