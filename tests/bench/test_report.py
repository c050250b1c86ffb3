"""The document, the tables made of it, the picture."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from zoo.bench import chart, report
from zoo.bench.case import Case
from zoo.bench.runner import Row, Taken
from zoo.core.errors import DataError

MACHINE = {"processor": "a <fast> one", "isa": "avx9", "threads": 2, "python": "3.12"}
CEILINGS = {"fma": 100.0, "int8": 400.0, "read": 10.0, "copy": 20.0}


def row(name: str, ours: float | None, **peers: float) -> report.Entry:
    taken = {} if ours is None else {"ours": Taken([ours, ours], True, 2, 2)}
    taken |= {peer: Taken([rate, rate * 1.1], True, 2, 3, "channels_last", "1.0") for peer, rate in peers.items()}
    return report.entry(
        Row(Case(name, "GFLOP/s", 2.0, "m:f", dict.fromkeys(peers, "m:f"), {}, "fma"), taken, {}, {}, 100.0)
    )


@pytest.fixture
def document():
    rows = [row("f32 8x8", 50.0, torch=25.0, numpy=20.0), row("f32 & <9x9>", 10.0, torch=100.0), row("rows alone", 5.0)]
    return report.document(MACHINE, CEILINGS, rows)


def test_the_document_has_what_the_design_says(document):
    document = json.loads(json.dumps(document, allow_nan=False))
    for entry in document["rows"]:
        assert {"case", "unit", "ours", "peers", "ratio"} <= entry.keys()
    first, second, third = document["rows"]
    assert first["ours"] == 50 and first["peers"] == {"torch": 26.25, "numpy": 21.0}
    assert first["ratio"] == pytest.approx(50 / 26.25) and second["ratio"] < 1 and third["ratio"] is None
    assert first["of_roof"] == 0.5 and first["milliseconds"]["ours"] == 40
    assert first["kept"] == {"ours": 2, "torch": 2, "numpy": 2}


def test_a_row_as_text(document):
    assert report.peers_of(document["rows"]) == ["torch", "numpy"]
    assert report.cells(document["rows"][0], ["torch", "numpy"]) == [
        "f32 8x8", "GFLOP/s", "50.0 ±0%", "0.50", "26.2 ±2%", "21.0 ±2%", "1.90 ±2%",
    ]  # fmt: skip
    assert report.cells(document["rows"][2], ["torch"])[-2:] == ["-", "-"]


def test_markdown_has_a_table_for_each_group(document):
    text = report.markdown(document)
    assert text.count("| case | unit |") == 2 and "torch 1.0" in text and "| fma | 100 GFLOP/s |" in text
    # 2 / 50 + 2 / 10 s against 2 / 26.25 + 2 / 105
    assert "**f32**: ours 240 ms, best peers 95.24 ms in sum: 0.40; lowest ratio 0.10" in text
    assert "**rows**\n" in text, "one case is no sum"


def test_the_chart_is_a_picture_with_a_bar_for_each_ratio(document):
    root = ElementTree.fromstring(chart.svg(document))
    name = "{http://www.w3.org/2000/svg}"
    bars = [r for r in root.iter(f"{name}rect") if r.get("fill") in (chart.FASTER, chart.SLOWER)]
    assert [bar.get("fill") for bar in bars] == [chart.FASTER, chart.SLOWER]
    assert all(float(bar.get("width")) > 0 for bar in bars)
    texts = [text.text for text in root.iter(f"{name}text")]
    assert "f32 & <9x9>" in texts and "1.90 torch" in texts


def test_a_file_that_is_no_document(tmp_path):
    for text in ("{", "{}", '{"rows": [1]}'):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(DataError, match="zoo bench --save"):
            report.read(tmp_path / "f.json")
