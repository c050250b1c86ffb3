"""What torch.save wrote: read as torch reads it, and nothing in it is ever run. Files are assembled here, byte by byte;
where torch is installed it writes and reads some too."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo.core.errors import WeightsError
from zoo.hub import torch_file, unpickle
from zoo.hub.formats import read
from zoo.hub.mapped import MappedFile, TensorInfo

# damaged text of protocol 0, as pickletools reads it
pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
REAL = {
    "mnist-cnn-weights/mnist_cnn_20_50_fc500.pt": (8, "conv1.weight", (20, 1, 5, 5)),
    "resnet-cifar10/resnet20-12fca82f.th": (97, "layer1.0.conv1.weight", (16, 16, 3, 3)),
}


# --- an assembler of pickles ------------------------------------------------------------------------------------------


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


# --- what is read -----------------------------------------------------------------------------------------------------


@WRITERS
def test_a_tensor(tmp_path, write):
    with read(write(tmp_path / "a.pt", {"w": tensor()})) as tensors:
        assert tensors.infos == {"w": TensorInfo((2, 3), np.dtype(np.float32))} and list(tensors) == ["w"]
        array = tensors["w"]
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]] and not array.flags.writeable  # after closing too


@WRITERS
@pytest.mark.parametrize("inner", [{"w": tensor()}, {"module.w": tensor()}])
@pytest.mark.parametrize("keys", [(), ("state_dict",), ("model",), ("model_state_dict",), ("model", "state_dict")])
def test_wherever_a_training_program_put_it(tmp_path, write, inner, keys):
    for key in reversed(keys):
        inner = {"epoch": 3, key: inner, "loss": 0.5, "seen": tensor(), "args": None}
    assert list(read(write(tmp_path / "a", inner))) == ["w"]


def test_module_is_kept_where_only_some_names_have_it(tmp_path):
    assert list(read(zipped(tmp_path / "a", {"module.w": tensor(), "b": tensor()}))) == ["module.w", "b"]


@WRITERS
@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((3, 2), (1, 3), 0, [[0, 3], [1, 4], [2, 5]]),  # a transposed view
        ((2,), (2,), 1, [1, 3]),
        ((), (), 5, 5),
        ((0, 7), (7, 1), 6, []),
        ((1, 2), (999, 1), 2, [[2, 3]]),  # the stride of an axis of one says nothing
        ((2, 2), (0, 1), 0, [[0, 1], [0, 1]]),
    ],
)
def test_views(tmp_path, write, shape, strides, offset, expected):
    with read(write(tmp_path / "a", {"w": tensor(shape, strides, offset)})) as tensors:
        assert tensors["w"].tolist() == expected and tensors["w"].shape == shape


@WRITERS
def test_shared_storages_are_one_in_memory(tmp_path, write):
    with read(write(tmp_path / "a", {"whole": tensor(), "row": tensor((3,), (1,), 3)})) as tensors:
        whole, row = tensors["whole"], tensors["row"]
    assert row.tolist() == [3, 4, 5]
    if write is zipped:  # aligned there, so both are the mapped file itself
        assert np.shares_memory(whole, row) or not whole.flags.owndata


@WRITERS
@pytest.mark.parametrize("kind", torch_file._ELEMENTS)
def test_every_dtype(tmp_path, write, kind):
    array = np.array([0, 1, 1]).astype(torch_file._ELEMENTS[kind])
    value = {"w": tensor((3,), (1,), size=3, kind=kind)}
    content = array.tobytes()
    write(tmp_path / "a", value, {"data/0": content} if write is zipped else [("0", 3, content)])
    with read(tmp_path / "a") as tensors:
        assert tensors["w"].dtype == array.dtype and tensors["w"].tobytes() == content


def test_big_endian_storages_are_turned(tmp_path):
    members = {"data/0": SIX.astype(">f4").tobytes(), "byteorder": b"big"}
    assert read(zipped(tmp_path / "a", {"w": tensor()}, members))["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert "byte order" in refused(zipped(tmp_path / "b", {"w": tensor()}, {**members, "byteorder": b"middle"})).why


def test_an_ordered_dict_as_python_2_wrote_it(tmp_path):
    value = Call(("collections.OrderedDict", [["w", tensor()], ["v", tensor((6,), (1,))]]))
    text = program(value).replace(b"X\x01\x00\x00\x00w", b"U\x01w")  # names as byte strings
    assert b"U\x01w" in text
    assert list(read(legacy(tmp_path / "a", text[2:-1]))) == ["w", "v"]


def test_an_ordered_dict_with_attributes_and_a_parameter(tmp_path):
    parameter = Call(("torch._utils._rebuild_parameter", tensor(), True, Call(("collections.OrderedDict",))))
    text = b"ccollections\nOrderedDict\n)R" + code("w") + code(parameter) + b"s" + code({"_metadata": {"": 1}}) + b"b"
    assert list(read(zipped(tmp_path / "a", text))) == ["w"]


def test_a_view_of_a_storage_as_old_files_have_them(tmp_path):
    storage = Storage(("storage", Name("torch.FloatStorage"), "0", "cuda:3", 6, ("view", 2, 3)))
    assert read(legacy(tmp_path / "a", {"w": tensor((2,), (1,), 1, storage=storage)}))["w"].tolist() == [3, 4]
    outside = Storage(("storage", Name("torch.FloatStorage"), "0", "cpu", 6, ("view", 4, 3)))
    assert "out of its storage" in refused(legacy(tmp_path / "b", {"w": tensor((2,), (1,), storage=outside)})).why


@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    if not (DATA / name).exists():
        pytest.skip(f"no {name} in {DATA} (ZOO_TEST_DATA)")
    count, tensor_name, shape = REAL[name]
    with read(DATA / name) as tensors:
        assert len(tensors) == count and tensors.infos[tensor_name].shape == shape
        torch = pytest.importorskip("torch", reason="torch is not installed; it is what is compared with")
        theirs = torch.load(DATA / name, map_location="cpu", weights_only=False)
        theirs = {k.removeprefix("module."): v.numpy() for k, v in theirs.get("state_dict", theirs).items()}
        assert theirs.keys() == tensors.keys()
        assert all(tensors[k].tobytes() == v.tobytes() for k, v in theirs.items())


def torch_values(torch):
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
             torch.uint8, torch.bool)  # fmt: skip
    return {
        "a module": module.state_dict(),
        "parameters": dict(module.named_parameters()),
        "views": {"t": base.permute(2, 0, 1), "s": base[1, ::2, 1:3], "all": base, "one": base[0, 0, 0]},
        "dtypes": {str(kind): base.to(kind) for kind in kinds},
        "empty": {"none": torch.zeros(0, 3), "scalar": torch.tensor(2.5)},
        "nested": {"state_dict": module.state_dict(), "optimizer": {"state": {0: {"step": torch.tensor(1)}}},
                   "best": np.float64(0.9), "top": np.int64(3),
                   "shape": base.shape, "device": torch.device("cpu"), "dtype": torch.float32},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["a module", "parameters", "views", "dtypes", "empty", "nested"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("new", [True, False])
def test_what_torch_writes_is_read_as_torch_reads_it(tmp_path, kind, protocol, new):
    torch = pytest.importorskip("torch", reason="torch is not installed; it writes the files of this test")
    value = torch_values(torch)[kind]
    torch.save(value, tmp_path / "a", pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    theirs = value.get("state_dict", value)
    with read(tmp_path / "a") as tensors:
        assert list(tensors) == list(theirs)
        for name, expected in theirs.items():
            bits = expected.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert tensors[name].shape == tuple(expected.shape) and tensors[name].tobytes() == bits
            assert tensors[name].dtype.name == str(expected.dtype).removeprefix("torch.")


# --- what is refused --------------------------------------------------------------------------------------------------


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
        ({"data/0": bytes(20)}, "needs more"),
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


def test_bfloat16_is_mapped_not_widened(tmp_path):
    array = np.arange(4096).astype(ml_dtypes.bfloat16)
    value = {"w": tensor((4096,), (1,), size=4096, kind="BFloat16")}
    zipped(tmp_path / "a", value, {"data/0": array.tobytes()})
    found = read(tmp_path / "a")["w"]
    at = torch_file.spans(MappedFile(tmp_path / "a"))["model/data/0"][0]
    assert found.dtype == array.dtype and found.tobytes() == array.tobytes()
    assert found.flags.owndata is False or at % 2
