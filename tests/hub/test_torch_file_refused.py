"""Files of torch.save that are damaged, hostile, or something else: one clear error each, and nothing is ever run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_files import SIX, WRITERS, Call, Name, Storage, code, legacy, program, refused, tensor, zipped

from zoo.core.errors import WeightsError
from zoo.hub import torch_file, unpickle
from zoo.hub.formats import read

# damaged text of protocol 0, as pickletools reads it
pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")


class Evil:
    """Pickles as a call of `function`, as any class can ask to be."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@WRITERS
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, eval, exec, open, getattr, __import__, hashlib.sha256, io.open])
def test_nothing_is_run(tmp_path, write, protocol, function):
    flag = tmp_path / "ran"
    text = f"touch {flag}" if function is os.system else f"open({str(flag)!r}, 'w')"
    evil = pickle.dumps({"w": Evil(function, text)}, protocol)
    text = evil.removeprefix(b"\x80" + bytes([protocol]))[:-1]
    error = refused(write(tmp_path / "a", text))
    assert "which is not data: nothing was run" in error.why and not flag.exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"cos\nsystem\n", "'os.system'"),
        (b"\x8c\x02os\x8c\x06system\x93", "'os.system'"),
        (b"ctorch.serialization\nload\n", "'torch.serialization.load'"),
        (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n", "not data"),
        (b"\x8c\x0ccollections\n\x8c\x0bOrderedDict\x93", "not data"),
        (b"cnumpy.core.multiarray\n_reconstruct\n", "numpy.core.multiarray._reconstruct"),
        (b"ccollections\nOrderedDict\n)\x81", "NEWOBJ"),
        (b"(ios\nsystem\n", "INST"),
        (b"(cos\nsystem\no", "os.system"),
        (b"\x82\x01", "EXT1"),
        (b"Pname\n", "PERSID"),
        (b"K\x01)R", "no function"),
        (b"ctorch\nFloatStorage\n)R", "no function"),
        (b"ccollections\nOrderedDict\n]R", "no function"),
        (b"ccollections\nOrderedDict\n" + code((1,)) + b"R", "not made of pairs"),
        (b"ccollections\nOrderedDict\n" + code(({}, 2, 3)) + b"R", "does not take"),
        (b"ccollections\nOrderedDict\n}b", "no list or dict"),  # attributes of a function
        (b"]}b", "no list or dict"),
        (b"ctorch._utils\n_rebuild_tensor\n}b", "no list or dict"),
        (b"}]K\x01s", "a key in it is a list"),
        (b"}" + code((1, 2)) + b"K\x01s", "a key in it is a tuple"),
        (b"}\x8a\x09" + b"\x01" * 9 + b"K\x01s", "a key in it is a int"),
        (b"h\x07", "not there"),
        (b"j\xff\xff\xff\xff", "not there"),
        (b"s", "not there"),
        (b"t", "not opened"),
        (b"R", "not there"),
        (b"]a", "no list or dict"),
        (b"}(K\x01u", "a key without a value"),
        (b"\xff", "damaged"),
        (b"X\xff\xff\xff\x7fabc", "its"),
        (b"\x8d" + b"\xff" * 8, "damaged"),
        (b"\x8b\xff\xff\xff\x7f", "its"),
        (b"I" + b"9" * 5000 + b"\n", "damaged"),
        (b"K\x01", "holds no state dict"),
        (b"}", "holds no state dict"),
        (code({"optimizer": {"a": tensor()}}), "it holds optimizer"),
        (code({"model": {"model": {"model": {"model": {"model": {"w": tensor()}}}}}}), "no state dict"),
        (b"}" + code("state_dict") + b"h\x00s", "it holds state_dict"),
    ],
)  # fmt: skip
@WRITERS
def test_a_pickle_that_is_no_state_dict(tmp_path, write, text, why):
    assert why in refused(write(tmp_path / "a", text)).why


@WRITERS
@pytest.mark.parametrize(
    "value",
    [
        tensor((2, 4), (3, 1)),
        tensor(offset=1),
        tensor((2**40,), (0,)),  # a terabyte of one number
        tensor((2**40, 0), (1, 1), offset=-1),
        tensor((-2, 3)),
        tensor((2, 3), (3, -1), offset=3),
        tensor((2, 3), (3,)),
        tensor((2**61, 2**61), (0, 0)),
        tensor((1,) * 65, (1,) * 65),
        tensor((2.0, 3)),
        tensor((True, 3)),
        tensor([2, 3]),
        tensor(storage=3),
        tensor(storage=Storage(("module", Name("torch.FloatStorage"), "0", "cpu", 6))),
        tensor(storage=Storage(("storage", "torch.FloatStorage", "0", "cpu", 6))),
        tensor(storage=Storage(("storage", Name("torch.FloatStorage"), ["0"], "cpu", 6))),
        tensor(storage=Storage(("storage", Name("torch.FloatStorage"), "0", "cpu", -6))),
        tensor(storage=Storage(("storage", Name("torch.FloatStorage"), "0", "cpu", 6, (1, 2, 3, 4)))),
        tensor(storage=Storage(("storage",))),
        tensor(key="../../etc/passwd", size=1, shape=(1,), strides=(1,)),
        tensor(size=2**50),
        Call(("torch._utils._rebuild_tensor_v2", 1)),
        Call(("torch._utils._rebuild_parameter", 1)),
    ],
)
def test_tensors_that_lie(tmp_path, write, value):
    refused(write(tmp_path / "a", {"w": value}))


def test_bombs_are_cut_short(tmp_path):
    """A list that holds itself a billion times over, depth, many instructions, a dict copied again and again."""
    doubled = b"]" + b"q\x00" + b"(h\x00h\x00eq\x00" * 100
    for text in (doubled, b"]" * 5000 + b"a" * 4999, b")" + b"\x85" * 200_000):
        assert "no state dict" in refused(zipped(tmp_path / "a", text)).why
    assert "instructions" in refused(zipped(tmp_path / "a", b"}" * (unpickle.LIMIT_WORK + 1))).why
    for opened, closed in ((b"](", b"e"), (b"(", b"t")):
        pairs = opened + code(("a", 1)) * 1000 + closed + b"q\x00"
        copies = b"ccollections\nOrderedDict\nh\x00\x85R0" * 2000
        assert "instructions" in refused(zipped(tmp_path / "a", pairs + copies)).why
    assert "data.pkl takes" in refused(zipped(tmp_path / "a", b"N0" * (unpickle.LIMIT_BYTES // 2))).why


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = zipped(tmp_path / "a", {"w": tensor()}, {"data/0": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000 and "compressed" in refused(path).why


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({}, "'model/data/0', which is not there"),
        ({"data/0": bytes(20)}, "shorter than"),
        ({"data/0": bytes(24), "constants.pkl": b""}, "TorchScript"),
        ({"data/0": bytes(24), "../model/data.pkl": b""}, None),
    ],
)
def test_zip_members(tmp_path, members, why):
    path = zipped(tmp_path / "a", {"w": tensor()}, members)
    if why is None:
        assert read(path)["w"].shape == (2, 3) and sorted(os.listdir(tmp_path)) == ["a"]
    else:
        assert why in refused(path).why


def test_members_that_are_there_twice(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "a", "w") as archive:
        for content in ({}, {"w": 1}):
            archive.writestr("model/data.pkl", program(content))
    assert "there twice" in refused(tmp_path / "a").why


def test_another_zip_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("letter.txt", "hello")
    assert "no data.pkl" in refused(tmp_path / "a").why


def test_a_zip64_file(tmp_path):
    """As files beyond 4 GB are: sizes and offsets in extra fields, the directory's in a record of its own."""
    path = zipped(tmp_path / "a", {"w": tensor()})
    content = path.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    count, _, start = struct.unpack_from("<H2L", content, end + 10)
    directory = b""
    at = start
    for _ in range(count):
        fields = list(struct.unpack_from("<4s6H3L5H2L", content, at))
        name = content[at + 46 : at + 46 + fields[10]]
        extra = struct.pack("<2H3Q", 1, 24, fields[9], fields[8], fields[16])
        at += 46 + fields[10] + fields[11] + fields[12]
        fields[8] = fields[9] = fields[16] = 0xFFFFFFFF
        fields[11], fields[12] = len(extra), 0
        directory += struct.pack("<4s6H3L5H2L", *fields) + name + extra
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(directory), 1)
    last = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "b").write_bytes(content[:start] + directory + record + locator + last)
    with read(tmp_path / "b") as tensors:
        assert tensors["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    (tmp_path / "c").write_bytes(content[:start] + directory + locator + last)
    assert "zip64" in refused(tmp_path / "c").why


@WRITERS
@pytest.mark.parametrize("keep", [3, 20, 60, 200, -1])
def test_a_truncated_file(tmp_path, write, keep):
    content = write(tmp_path / "a", {"w": tensor()}).read_bytes()
    (tmp_path / "b").write_bytes(content[:keep])
    assert any(word in refused(tmp_path / "b").why for word in ("truncated", "damaged", "not a safetensors file"))


def test_legacy_files_that_do_not_agree_with_themselves(tmp_path):
    for storages, why in (
        ([], "not those it holds"),
        ([("0", 6, SIX.tobytes()), ("1", 0, b"")], "not those it holds"),
        ([("0", 5, SIX.tobytes())], "5 elements, 6 were said"),
        ([("0", 6, bytes(23))], "truncated"),
    ):
        assert why in refused(legacy(tmp_path / "a", {"w": tensor()}, storages)).why
    twice = {"w": tensor(), "v": tensor((1,), (1,), size=1)}
    assert "in two ways" in refused(legacy(tmp_path / "a", twice)).why


def test_a_length_that_is_a_lie_takes_no_memory(tmp_path):
    legacy(tmp_path / "a", {"w": tensor()})
    content = (tmp_path / "a").read_bytes()
    at = content.index(b"\x80\x02", 2)  # the second program: its version
    for opcode in (b"\x8e", b"\x8d"):  # BINBYTES8, BINUNICODE8
        (tmp_path / "b").write_bytes(content[: at + 2] + opcode + (2**60).to_bytes(8, "little") + content[at + 2 :])
        assert "damaged" in refused(tmp_path / "b").why or "truncated" in refused(tmp_path / "b").why


def test_a_pickle_of_something_else(tmp_path):
    (tmp_path / "a").write_bytes(pickle.dumps(OrderedDict(a=1), 2))
    assert "not one of torch.save" in refused(tmp_path / "a").why
    (tmp_path / "b").write_bytes(program(torch_file.MAGIC_NUMBER) + program([1001]))
    assert "version" in refused(tmp_path / "b").why


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=800, deadline=None)
@given(data=st.data())
def test_damaged_files_never_crash(tmp_path, data):
    """A valid file with bytes changed, cut or added: read, or refused with a WeightsError."""
    write = data.draw(st.sampled_from([zipped, legacy]))
    value = {"state_dict": {"module.w": tensor(), "module.v": tensor((3, 2), (1, 3)), "module.x": tensor((), (), 2)}}
    content = bytearray(write(tmp_path / "a", value).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    (tmp_path / "b").write_bytes(bytes(content[:cut]) + data.draw(st.binary(max_size=4)))
    try:
        with torch_file.read(tmp_path / "b") as tensors:
            for name in tensors:
                assert tensors[name].shape == tensors.infos[name].shape
                np.add.reduce(np.asarray(tensors[name], order="C").reshape(-1).view(np.uint8), dtype=np.int64)
    except WeightsError:
        pass


WORDS = [bytes([n]) for n in range(256)]
PHRASES = [code(tensor()), b"ccollections\nOrderedDict\n", code("w"), b"(", b"h\x00", b"q\x00", b"K\x01"]


@settings(max_examples=1500, deadline=None)
@given(text=st.lists(st.sampled_from(WORDS) | st.sampled_from(PHRASES), max_size=30))
def test_any_program_ends(text):
    with contextlib.suppress(unpickle.Refused):
        unpickle.Machine(torch_file.NAMES, torch_file._storage).run(io.BytesIO(b"".join(text) + b"."))
