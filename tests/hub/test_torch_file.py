"""What torch.save wrote: read as torch reads it, and nothing in it is ever run. Files are assembled here, byte by byte;
where torch is installed it writes and reads some too."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from torch_files import SIX, WRITERS, Call, Name, Storage, code, legacy, program, refused, tensor, zipped

from zoo.hub import torch_file
from zoo.hub.formats import read
from zoo.hub.mapped import MappedFile, TensorInfo

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
REAL = {
    "mnist-cnn-weights/mnist_cnn_20_50_fc500.pt": (8, "conv1.weight", (20, 1, 5, 5)),
    "resnet-cifar10/resnet20-12fca82f.th": (97, "layer1.0.conv1.weight", (16, 16, 3, 3)),
}


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


class Counted:
    """The bytes of a file, as they are had over a network: what was looked at is counted."""

    def __init__(self, path: Path):
        self.file, self.size, self.seen = MappedFile(path), path.stat().st_size, 0

    def __getitem__(self, part: slice) -> bytes:
        found = self.file[part]
        self.seen += len(found)
        return found

    def find_last(self, needle: bytes, start: int) -> int:
        return self.file.find_last(needle, start)


@WRITERS
def test_the_description_alone(tmp_path, write):
    value = {f"layer.{i}": tensor((2**20,), (1,), key=str(i), size=2**20) for i in range(5)}
    contents = [np.full(2**20, i, np.float32).tobytes() for i in range(5)]
    if write is zipped:
        zipped(tmp_path / "a", value, {f"data/{i}": content for i, content in enumerate(contents)})
    else:
        legacy(tmp_path / "a", value, [(str(i), 2**20, content) for i, content in enumerate(contents)])
    file = Counted(tmp_path / "a")
    assert torch_file.describe(file, "cannot use it")[0] == read(tmp_path / "a").infos
    assert file.seen < 10_000 < file.size


@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    if not (DATA / name).exists():
        pytest.skip(f"no {name} in {DATA} (ZOO_TEST_DATA)")
    count, tensor_name, shape = REAL[name]
    with read(DATA / name) as tensors:
        assert torch_file.describe(Counted(DATA / name), "cannot use it")[0] == tensors.infos
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


def test_bfloat16_is_mapped_not_widened(tmp_path):
    array = np.arange(4096).astype(ml_dtypes.bfloat16)
    value = {"w": tensor((4096,), (1,), size=4096, kind="BFloat16")}
    zipped(tmp_path / "a", value, {"data/0": array.tobytes()})
    found = read(tmp_path / "a")["w"]
    at = read(tmp_path / "a").places["w"].offset
    assert found.dtype == array.dtype and found.tobytes() == array.tobytes()
    assert found.flags.owndata is False or at % 2
