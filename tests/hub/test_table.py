"""The translation table: forwards, backwards, and what it says when a checkpoint does not fit."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.core.errors import WeightsError
from zoo.hub.safetensors import TensorInfo
from zoo.hub.table import Table, drop, flatten_channels_last, permute, row, tie, transpose

TABLE = Table(
    row("conv{i}.weight", "net.{i}.conv.weight", permute(0, 2, 3, 1), why="channels-last"),
    row("fc.weight", "head.weight", flatten_channels_last(lambda c: c.chw), why="flattened channels-last"),
    row("mix.weight", "mix.kernel", transpose(), why="(in, out)"),
    drop("net.{i}.steps", why="a counter"),
    tie("out.weight", "mix.weight", when=lambda c: c.tied),
)


def infos(arrays):
    return {name: TensorInfo(a.shape, a.dtype) for name, a in arrays.items()}


def published(rng, chw=(3, 2, 4), dtype=np.float32):
    c, h, w = chw
    shapes = {"net.0.conv.weight": (5, 1, 3, 3), "net.1.conv.weight": (c, 5, 3, 3), "head.weight": (7, c * h * w),
              "mix.kernel": (7, 2), "mix.bias": (2,), "out.weight": (2, 7)}  # fmt: skip
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def ours(chw=(3, 2, 4)):
    c, h, w = chw
    shapes = {"conv0.weight": (5, 3, 3, 1), "conv1.weight": (c, 3, 3, 5), "fc.weight": (7, h * w * c),
              "mix.weight": (2, 7), "mix.bias": (2,), "out.weight": (2, 7)}  # fmt: skip
    return {name: TensorInfo(shape, np.dtype(np.float32)) for name, shape in shapes.items()}


UNTIED = SimpleNamespace(chw=(3, 2, 4), tied=False)
TIED = SimpleNamespace(chw=(3, 2, 4), tied=True)


def test_translates_names_and_layouts():
    source = published(np.random.default_rng(0))
    plan = TABLE.load(infos(source), ours(), UNTIED).check("here", "it")
    made = dict(plan.translate(source))
    assert {name: a.shape for name, a in made.items()} == {name: p.shape for name, p in ours().items()}
    assert np.array_equal(made["conv1.weight"][1, 2, 0, 4], source["net.1.conv.weight"][1, 4, 2, 0])
    assert np.array_equal(made["mix.weight"], source["mix.kernel"].T)
    assert made["mix.bias"] is source["mix.bias"]  # names and layouts that agree: the array itself


def test_flatten_channels_last_is_what_a_channels_last_network_needs():
    rng = np.random.default_rng(1)
    activation = rng.standard_normal((3, 2, 4))  # (C, H, W), as the published network flattens it
    weight = rng.standard_normal((7, 24))
    here = flatten_channels_last(lambda c: c.chw).forward(weight, UNTIED)
    assert np.allclose(here @ activation.transpose(1, 2, 0).ravel(), weight @ activation.ravel(), rtol=1e-12)


@given(
    chw=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([np.float32, np.float16, np.float64, ml_dtypes.bfloat16]),
)
def test_there_and_back_is_byte_identical(chw, seed, dtype):
    config = SimpleNamespace(chw=chw, tied=False)
    source = published(np.random.default_rng(seed), chw, dtype)
    made = dict(TABLE.load(infos(source), ours(chw), config).check("here", "it").translate(source))
    back = dict(TABLE.export(infos(made), config).translate(made))
    assert back.keys() == source.keys()
    for name, array in source.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes(), name


@given(st.permutations(range(4)), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_permute_is_undone_by_its_inverse(axes, shape):
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    operation = permute(*axes)
    assert np.array_equal(operation.inverse(operation.forward(array, None), None), array)


def test_tied_tensors_are_filled_from_their_twin_and_not_exported():
    source = published(np.random.default_rng(2))
    del source["out.weight"]
    plan = TABLE.load(infos(source), ours(), TIED).check("here", "it")
    made = dict(plan.translate(source))
    assert np.array_equal(made["out.weight"], made["mix.weight"])
    assert {step.target for step in TABLE.export(infos(made), TIED).steps} == set(source)


def test_a_tied_tensor_in_the_file_is_ignored_with_a_reason():
    source = published(np.random.default_rng(3))
    plan = TABLE.load(infos(source), ours(), TIED).check("here", "it")
    assert dict(plan.dropped)["out.weight"] == "the model uses mix.weight in its place (tied)"


def test_dropped_tensors_keep_their_reason():
    source = published(np.random.default_rng(4)) | {"net.1.steps": np.zeros(())}
    assert TABLE.load(infos(source), ours(), UNTIED).check("here", "it").dropped == (("net.1.steps", "a counter"),)


def test_one_report_of_every_gap_with_the_nearest_names():
    source = published(np.random.default_rng(5))
    source["mix.biass"] = source.pop("mix.bias")
    source["net.0.conv.weight"] = np.zeros((5, 1, 5, 5))
    source["fully.unrelated"] = np.zeros(3)
    with pytest.raises(WeightsError) as raised:
        TABLE.load(infos(source), ours(), UNTIED).check("weights/mine", "demo", "Use another.")
    assert raised.value.what == "cannot use weights/mine: 4 tensors do not fit demo"
    assert raised.value.why.splitlines() == [
        "net.0.conv.weight is (5, 1, 5, 5); (5, 1, 3, 3) was expected",
        "mix.bias is missing (did you mean mix.biass?)",
        "mix.biass has no place in the model (did you mean mix.bias?)",
        "fully.unrelated has no place in the model",
    ]
    assert raised.value.fix == "Use another."


def test_a_long_report_is_cut_and_says_so():
    target = {f"layer{i}": TensorInfo((1,), np.dtype(np.float32)) for i in range(30)}
    report = Table().load({}, target, None).report(limit=3)
    assert report.splitlines()[-1] == "... and 27 more missing"
    assert len(report.splitlines()) == 4


def test_a_shape_that_an_operation_cannot_take_is_a_misfit():
    source = published(np.random.default_rng(6))
    source["head.weight"] = np.zeros((7, 23))
    plan = TABLE.load(infos(source), ours(), UNTIED)
    assert [(m.source, m.shape, m.expected) for m in plan.misfits] == [("head.weight", (7, 23), (7, 24))]


def test_our_name_in_a_published_file_is_not_taken_for_the_published_one():
    """A row gives `mix.weight` another published name; a file that has `mix.weight` instead is not understood."""
    source = published(np.random.default_rng(7))
    source["mix.weight"] = source.pop("mix.kernel").T
    plan = TABLE.load(infos(source), ours(), UNTIED)
    assert plan.missing == (("mix.weight", "mix.kernel"),) and plan.unused == ("mix.weight",)


def test_numbers_mean_the_same_on_both_sides():
    table = Table(row("a.{i}.{j}", "b.{j}.{i}", why="swapped"))
    assert table.published("a.1.22")[0] == "b.22.1"
    assert Table(row("a.{i}.{i}", "b.{i}", why="twice")).published("a.1.2")[0] == "a.1.2"
    with pytest.raises(ValueError, match="same fields"):
        row("a.{i}", "b.{j}", why="a mistake")


def test_planning_reads_no_data():
    """A terabyte tensor is planned from its shape."""
    big = TensorInfo((1 << 20, 1 << 20), np.dtype(np.float32))
    table = Table(
        row("w", "v", transpose(), why="(in, out)"),
        row("f", "g", flatten_channels_last(lambda c: (1 << 10, 1 << 5, 1 << 5)), why="flattened"),
    )
    assert table.load({"v": big, "g": big}, {"w": big, "f": big}, None).gaps == 0
