"""Files that are read, written, or refused with a reason."""

from __future__ import annotations

import errno
import gc
import io
import json
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file

from zoo.core.errors import WeightsError
from zoo.hub import files, safetensors
from zoo.hub.safetensors import DTYPES, TensorInfo, read, write


def refused(path: Path) -> WeightsError:
    with pytest.raises(WeightsError) as raised:
        read(path)
    assert raised.value.what == f"cannot read {path}" and raised.value.why and raised.value.fix
    return raised.value


def raw(path: Path, header: object, body: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_as_it_was(tmp_path, name):
    array = np.arange(6).astype(DTYPES[name]).reshape(2, 3)
    write(tmp_path / "t", {"a": array, "scalar": array[0, 1], "empty": array[:0], "turned": array.T})
    with read(tmp_path / "t") as tensors:
        assert tensors.infos["a"] == TensorInfo((2, 3), DTYPES[name])
        assert tensors.infos["scalar"].shape == () and tensors.infos["empty"].shape == (0, 3)
        assert tensors["a"].tobytes() == array.tobytes() and tensors["a"].dtype == array.dtype
        assert tensors["turned"].tobytes() == array.T.tobytes()
        assert tensors["scalar"].shape == () and tensors["empty"].size == 0


def test_metadata_and_sizes(tmp_path):
    write(tmp_path / "t", {"a": np.zeros((2, 3), ml_dtypes.bfloat16)}, {"zoo.port": "demo", "é": "ü"})
    tensors = read(tmp_path / "t")
    assert tensors.metadata == {"zoo.port": "demo", "é": "ü"}
    assert tensors.infos["a"].size == 6 and tensors.infos["a"].nbytes == 12
    assert list(tensors) == ["a"] and len(tensors) == 1 and "b" not in tensors


def test_big_endian_arrays_are_stored_right(tmp_path):
    write(tmp_path / "t", {"a": np.arange(3, dtype=">f4")})
    assert read(tmp_path / "t")["a"].tolist() == [0, 1, 2]


def test_what_is_no_file(tmp_path):
    assert "no such file" in refused(tmp_path / "absent").why
    assert "directory" in refused(tmp_path).why
    assert "ordinary file" in refused(Path("/dev/null")).why


def test_an_empty_file(tmp_path):
    (tmp_path / "t").touch()
    assert refused(tmp_path / "t").why == "it is empty"


def zip_checkpoint() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (zip_checkpoint(), "torch.save writes (.pt"),
        (pickle.dumps({}, protocol=2), "before 1.6"),
        (b"GGUF" + bytes(60), "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
        (b"\x93NUMPY" + bytes(60), ".npy"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"hello, this is a letter", "not a safetensors file"),
        (b"abc", "not a safetensors file"),
    ],
)
def test_other_formats_are_named(tmp_path, content, why):
    (tmp_path / "t").write_bytes(content)
    assert why in refused(tmp_path / "t").why


@pytest.mark.parametrize("keep", [9, 40, -1, -24])
def test_a_truncated_file(tmp_path, keep):
    write(tmp_path / "t", {"a": np.arange(6.0)})
    whole = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(whole[:keep])
    assert "truncated" in refused(tmp_path / "t").why


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({"a": {**F32, "shape": [3]}}, bytes(8)),  # shape and bytes disagree
        ({"a": {**F32, "shape": [-2]}}, bytes(8)),
        ({"a": {**F32, "shape": [2**62, 4]}}, bytes(8)),  # the product overflows
        ({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8)),
        ({"a": {**F32, "data_offsets": [0, 2**63]}}, bytes(8)),
        ({"a": F32, "b": F32}, bytes(8)),  # overlapping
        ({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, bytes(20)),  # a hole
        ({"a": F32}, bytes(12)),  # bytes that belong to nobody
        ({"a": {**F32, "dtype": "F99"}}, bytes(8)),
        ({"a": 3}, b""),
        (b'{"a":', b""),
        (b"{\xff\xfe}", b""),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},' * 2 + b"}", bytes(8)),
    ],
)
def test_a_header_that_lies(tmp_path, header, body):
    refused(raw(tmp_path / "t", header, body))


def test_a_header_of_2_to_the_60_bytes(tmp_path):
    (tmp_path / "t").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    assert "truncated" in refused(tmp_path / "t").why


def test_a_dtype_that_the_zoo_does_not_use(tmp_path):
    raw(tmp_path / "t", {"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, bytes(2))
    assert "F8_E4M3" in refused(tmp_path / "t").why


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=800, deadline=None)
@given(data=st.data())
def test_damaged_files_never_crash(tmp_path, data):
    """A valid file with bytes changed, cut or added: read, or refused with a WeightsError."""
    arrays = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.float16)}
    content = bytearray(save(arrays, {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    (tmp_path / "u").write_bytes(bytes(content[:cut]) + data.draw(st.binary(max_size=4)))
    try:
        with read(tmp_path / "u") as tensors:
            for name in tensors:
                assert tensors[name].shape == tensors.infos[name].shape
    except WeightsError:
        pass


SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, 12, 16, -1, 2**31, 2**62, 2**63, 2**64, True, 1.0, "2", None])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "U8", "BOOL", "F8_E5M2", "f32", "", 3, None]),
        "shape": st.lists(SIZES, max_size=3) | SIZES,
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | st.lists(SIZES, max_size=3),
    },
    optional={"more": st.none()},
)
HEADER = st.dictionaries(
    st.sampled_from(["a", "b", "c", "__metadata__"]), ENTRY | st.dictionaries(st.text(), st.text())
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=1500, deadline=None)
@given(header=HEADER, body=st.sampled_from([0, 2, 4, 8, 12, 16]))
def test_what_is_read_is_what_the_library_reads(tmp_path, header, body):
    """Whatever the header says: refused, or the same tensors as the safetensors library gives."""
    path = raw(tmp_path / "t", header, bytes(range(body)))
    try:
        tensors = read(path)
    except WeightsError:
        return
    theirs = load_file(path)
    assert theirs.keys() == tensors.keys()
    for name, array in theirs.items():
        assert array.dtype == tensors[name].dtype and array.shape == tensors[name].shape
        assert array.tobytes() == tensors[name].tobytes()


def test_honest_headers_are_read_as_the_library_reads_them(tmp_path):
    """Also where the order of names is not that of the bytes, with empty tensors, blanks and metadata."""
    header = {
        "__metadata__": {"k": "v"},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        "none": {"dtype": "F32", "shape": [0, 5], "data_offsets": [4, 4]},
        "a": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]},
    }
    path = raw(tmp_path / "t", json.dumps(header).encode() + b"   ", bytes(range(12)))
    theirs = load_file(path)
    with read(path) as tensors:
        assert tensors.metadata == {"k": "v"} and list(tensors) == ["b", "none", "a"]
        for name, array in theirs.items():
            assert (tensors[name].shape, tensors[name].tobytes()) == (array.shape, array.tobytes())


def test_a_name_that_is_there_twice(tmp_path):
    entry = json.dumps({**F32, "shape": [1], "data_offsets": [0, 4]})
    text = f'{{"a":{entry},"a":{entry.replace("[0, 4]", "[4, 8]")}}}'.encode()
    assert "twice" in refused(raw(tmp_path / "t", text, bytes(8))).why


def test_a_header_too_long_to_be_one(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "LIMIT_HEADER", 10)
    assert "no checkpoint has that many" in refused(raw(tmp_path / "t", {"a": F32}, bytes(8))).why


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_tensors_are_views_of_the_file(tmp_path, dtype):
    array = np.arange(1000).astype(dtype)
    write(tmp_path / "t", {"a": array, "b": array})
    with read(tmp_path / "t") as tensors:
        a, again = tensors["a"], tensors["a"]
    assert np.shares_memory(a, again) and not a.flags.owndata and not a.flags.writeable
    (tmp_path / "t").unlink()  # the map lives as long as its arrays do
    del tensors, again
    gc.collect()
    assert a.tobytes() == array.tobytes()


def test_tensors_that_are_not_aligned_are_copied(tmp_path):
    text = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    path = raw(tmp_path / "t", text + b" " * (1 - len(text) % 4), np.array([1, 2], np.float32).tobytes())
    a = read(path)["a"]
    assert (
        a.tolist() == [1, 2] and a.flags.aligned and not a.flags.writeable and not np.shares_memory(a, read(path)["a"])
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def test_writing_makes_directories_and_leaves_nothing_else(tmp_path):
    write(tmp_path / "new" / "t.safetensors", {"a": np.zeros(2)})
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["t.safetensors"]
    (tmp_path / "other").touch()  # readable for whom any new file is
    assert (tmp_path / "new" / "t.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write(tmp_path / "t", {"a": np.zeros(2, np.float32)})
    before = (tmp_path / "t").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(WeightsError) as raised:
        write(tmp_path / "t", {"a": np.ones(2, np.float32)})
    assert raised.value.why == "the disk is full"
    assert (tmp_path / "t").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["t"]


def test_the_same_content_is_the_same_bytes(tmp_path):
    """Whatever the order in which it is given."""
    arrays = {"b": np.ones(3, np.float32), "a": np.zeros((), np.int64), "c": np.ones((2, 2), ml_dtypes.bfloat16)}
    facts = {f"fact {i}": str(i) for i in range(9)}
    write(tmp_path / "1", arrays, facts)
    write(tmp_path / "2", dict(reversed(arrays.items())), dict(reversed(facts.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_what_the_library_writes_and_what_we_write_read_alike(tmp_path):
    arrays = {"b": np.ones(3, np.float32), "a": np.zeros((2, 1), np.int64), "c": np.ones((2, 2), np.float16)}
    save_file(arrays, tmp_path / "theirs")
    write(tmp_path / "ours", arrays)
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "ours").read_bytes()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError) as raised:
        write(tmp_path / "file" / "t", {"a": np.zeros(2)})
    assert raised.value.what.startswith("cannot write")


def test_a_dtype_without_a_name(tmp_path):
    with pytest.raises(WeightsError) as raised:
        write(tmp_path / "t", {"a": np.zeros(2, np.complex128)})
    assert "complex128" in raised.value.why and not (tmp_path / "t").exists()


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b"[" * 100000])
def test_json_that_is_not_an_object(tmp_path, content):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(WeightsError) as raised:
        files.read_json(tmp_path / "c.json")
    assert raised.value.what == f"cannot read {tmp_path / 'c.json'}"
