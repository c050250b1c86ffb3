"""Files of rows in every format, by place; what is wrong with a row is said of that row, and nothing leads outside."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.core.errors import DataError
from zoo.data import rows as tables
from zoo.data.bad import Skipped
from zoo.data.files import HELD_OUT, find, held_out, media
from zoo.data.folder import Pictures, read_split
from zoo.data.loader import Loader
from zoo.data.rows import Row

FORM = 'A row is {"text": ...}.'


def read(path: Path, skipped: Skipped | None = None) -> list[Row]:
    return list(tables.read(path, lambda row: (row.text("text"), row)[1], form=FORM, skipped=skipped))


ROWS = [{"text": "a\u2028b"}, {"text": 'say "x",\nand y'}, {"text": "ö"}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_formats(tmp_path, name, mark):
    path = tmp_path / name
    if name.endswith(".csv"):
        text = 'n,text\n1,a\u2028b\n\n,"say ""x"",\nand y"\n3,ö\n'
        places = [2, 4, 6]
    else:
        text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
        places = [1, 3, 5]
    data = (mark + text).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = read(path)
    assert [row.values["text"] for row in found] == [row["text"] for row in ROWS]
    assert [row.place for row in found] == [f"{path}:{n}" for n in places]
    if name.endswith(".csv"):
        assert "n" in found[0].values and "n" not in found[1].values  # an empty place is no value


def test_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        path.write_bytes(b"PAR1")
        with pytest.raises(DataError, match="pip install pyarrow"):
            read(path)
        return
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*ROWS, {"text": None}]), path)
    skipped = Skipped()
    assert [row.values["text"] for row in read(path, skipped)] == [row["text"] for row in ROWS]
    assert list(skipped.rows) == [f"{path}:4"]
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="cannot read"):
        read(path)


BAD = [
    (b"{", "Expecting property name"), (b"[1]", "no JSON object"), (b'{"words": 1}', "'words', and no text"),
    (b'{"text": 3}', "text is no text but 3"), (b'{"text": "\xe9"}', "not UTF-8"), (b"[" * 100_000, "recursion"),
]  # fmt: skip


def test_every_bad_row_is_named_at_once_and_left_out_when_asked(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([b'{"text": "good"}', *(line for line, _ in BAD), b'{"text": "last"}']))
    with pytest.raises(DataError, match=f"{len(BAD)} of {len(BAD) + 2} rows") as raised:
        read(path)
    told = raised.value.why.splitlines()
    for number, (line, (_, why)) in enumerate(zip(told, BAD, strict=True), 2):
        assert line.startswith(f"{path}:{number}: ") and why in line
    assert raised.value.fix.startswith(FORM) and "--skip-bad" in raised.value.fix
    skipped = Skipped(tmp_path / "out")
    assert [row.values["text"] for row in read(path, skipped)] == ["good", "last"]
    written = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [row["row"] for row in written] == [f"{path}:{n}" for n in range(2, 2 + len(BAD))]
    path.write_bytes(b"{")
    with pytest.raises(DataError, match="no row can be used"):
        read(path, Skipped())
    path.write_bytes(b"\n \n")
    with pytest.raises(DataError, match="it has no rows"):
        read(path)


def test_bad_rows_of_a_table(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'text,n\na,1\nb\n"c"x,2\n\xe9,3\nd,4\n')
    skipped = Skipped()
    assert [row.values["text"] for row in read(path, skipped)] == ["a", "d"]
    assert [place.rpartition(":")[2] for place in skipped.rows] == ["3", "4", "5"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_line_without_end_takes_no_memory(tmp_path, name, monkeypatch):
    monkeypatch.setattr(tables, "ROW_BYTES", 1000)
    monkeypatch.setattr(tables, "_CHUNK", 100)
    path = tmp_path / name
    head, good = ("text\n", "{}") if name.endswith("csv") else ("", '{{"text": "{}"}}')
    path.write_text(f"{head}{good.format('a')}\n{good.format('x' * 50_000)}\n{good.format('b')}\n")
    kept = []
    original = tables._lines
    monkeypatch.setattr(tables, "_lines", lambda file: (kept.append(len(line)) or line for line in original(file)))
    skipped = Skipped()
    assert [row.values["text"] for row in read(path, skipped)][-1] == "b"
    assert max(kept) <= 1001 and len(skipped) == 1


def test_damaged_archives_are_told(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    for data in (whole[: len(whole) // 2], b"no archive", whole[:20] + b"\0\0\0\0" + whole[24:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match="cannot read"):
            read(path)


def test_nothing_leads_out_of_the_data(tmp_path):
    data = tmp_path / "data"
    (data / "part").mkdir(parents=True)
    (tmp_path / "secret.png").write_text("x")
    (data / "a.png").write_text("x")
    (data / "link.png").symlink_to(tmp_path / "secret.png")
    manifest = data / "part" / "metadata.jsonl"

    def at(name: str) -> Path:
        return media(Row("m:1", {"file_name": name}), manifest, data)

    assert at("../a.png") == at(str(data / "a.png")) == data / "a.png"
    assert at("../link.png") == data / "link.png"  # links are this user's own
    for name in ("../../secret.png", str(tmp_path / "secret.png"), "/etc/passwd", "../../data2/../secret.png", ".."):
        with pytest.raises(ValueError, match=r"lies outside|is no file"):
            at(name)
    for name in ("absent.png", "a\0.png", "x" * 5000, "", "https://example.org/1.png"):
        with pytest.raises((ValueError, OSError)):
            at(name)
    skipped = Skipped()
    names = ["../a.png", "../../secret.png", "x" * 5000, "a\0b"]
    manifest.write_text("\n".join(json.dumps({"file_name": name}) for name in names))
    assert list(tables.read(manifest, lambda row: media(row, manifest, data), form="", skipped=skipped)) == [
        data / "a.png"
    ]
    assert len(skipped) == 3


def test_parts_are_found_by_the_same_names(tmp_path):
    def made(*names: str) -> Path:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if name.endswith("/") else path.write_text("x")
        return root

    root = made("train.jsonl", "val.csv")
    assert find(root) == find(root) and (find(root).train, find(root).valid) == (root / "train.jsonl", root / "val.csv")
    for name in ("valid", "validation", "val", "test"):
        root = made("train/metadata.csv", f"{name}/x.png")
        assert (find(root).train, find(root).valid) == (root / "train" / "metadata.csv", root / name)
    root = made("metadata.jsonl.gz", "1.png")
    assert (find(root).train, find(root).valid, find(root).root) == (root / "metadata.jsonl.gz", None, root)
    assert find(root / "1.png").train == root / "1.png"
    root = made("cat/1.png")
    assert (find(root).train, find(root).valid) == (root, None)
    with pytest.raises(DataError, match="no such file or directory"):
        find(tmp_path / "absent")


def test_every_tenth_row_is_held_out():
    assert np.flatnonzero(held_out(25)).tolist() == [0, HELD_OUT, 2 * HELD_OUT] and held_out(2).tolist() == [
        True,
        False,
    ]
    with pytest.raises(DataError, match="too little data"):
        held_out(1)


def fill(root: Path, rows: list[dict], name: str = "metadata.jsonl") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i, row in enumerate(rows):
        file = root / str(row["file_name"])
        if i % 7 == 3:
            file.write_bytes(b"no picture")
        else:
            Image.new("RGB", (4, 4), (i, 0, 0)).save(file)
    (root / name).write_text("\n".join(map(json.dumps, rows)))
    return root


def test_pictures_with_labels_in_rows(tmp_path):
    rows = [{"file_name": f"{i}.png", "label": i % 3 + 8} for i in range(30)]
    train, unseen = read_split(fill(tmp_path, rows))
    assert train.classes == unseen.classes == ("8", "9", "10")  # numbers are in the order of numbers
    assert [path.name for path in unseen.files] == ["0.png", "1.png", "2.png"] and len(train) == 27
    assert train.labels[:3].tolist() == [0, 0, 0] and train.places[0] == f"{tmp_path / 'metadata.jsonl'}:4"

    def seen(labelled, skipped):
        pictures = Pictures(labelled, lambda image: np.asarray(image))
        return np.concatenate([labels for _, labels in Loader(pictures, 5, shuffle=False, skipped=skipped)])

    with pytest.raises(DataError, match=r"metadata\.jsonl:\d+, .*png\n.*not an image"):
        seen(train, None)
    skipped = Skipped()
    assert len(seen(train, skipped)) == len(train) - len(skipped) and len(skipped) == 4
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "label": true}\n{"file_name": "1.png"}')
    with pytest.raises(DataError, match="label is True") as raised:
        read_split(tmp_path)
    assert "has no label" in raised.value.why


def test_an_unknown_label_of_the_held_out_rows_is_named(tmp_path):
    fill(tmp_path / "train", [{"file_name": "a.png", "label": "cat"}, {"file_name": "b.png", "label": "dog"}])
    fill(tmp_path / "valid", [{"file_name": "c.png", "label": "cow"}])
    with pytest.raises(DataError, match=r"metadata\.jsonl:1: its label 'cow' is none of cat, dog"):
        read_split(tmp_path)


def test_metadata_without_labels_beside_folders_of_classes(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / name, [{"file_name": f"{i}.png"} for i in range(2)], "notes.txt")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "cat/0.png", "text": "a cat"}')
    assert read_split(tmp_path)[0].classes == ("cat", "dog")
