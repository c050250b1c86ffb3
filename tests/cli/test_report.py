"""`zoo report`: where it writes, and what is no run."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def run(tmp_path):
    records = [{"step": s, "epoch": 1, "loss": 1 / s, "lr": 0.1, "seconds": float(s)} for s in range(1, 9)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return tmp_path / "run"


def test_the_report_is_in_the_directory_of_the_run_or_where_one_says(zoo, run, tmp_path):
    code, out, err = zoo("report", str(run))
    assert (code, out.strip(), err) == (0, str(run / "report.html"), "")
    assert "Learning rate" in (run / "report.html").read_text()
    code, out, _ = zoo("report", str(run), str(run), "--out", str(tmp_path / "two.html"))
    assert (code, out.strip()) == (0, str(tmp_path / "two.html")) and (tmp_path / "two.html").stat().st_size > 5000
    code, out, _ = zoo("report", str(run), str(run))
    assert out.strip() == str(run / "comparison.html")


def test_what_is_no_run_is_told(zoo, run, tmp_path):
    code, out, err = zoo("report", str(run), str(tmp_path), "--out", str(tmp_path / "no.html"))
    assert code == 1 and out == "" and f"{tmp_path} holds no run" in err and not (tmp_path / "no.html").exists()
