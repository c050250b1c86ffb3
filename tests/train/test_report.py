"""The report: what it says of runs that finished, stopped, failed, go on or died; and what a browser shows of it."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from small_run import loss, make

import zoo
from zoo.train import constant, report
from zoo.train.figure import figure, label, series, thinned, ticks
from zoo.train.journal import FACTS, LOG, read

BLUE, ORANGE = (0x1F, 0x6F, 0xEB), (0xD9, 0x48, 0x0F)  # --c0 and --c1 by day
WIDTH, HEIGHT = 1000, 1600


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium or Chrome on this machine to open the report in")

    def run(*arguments):
        always = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
        ]
        size = f"--window-size={WIDTH},{HEIGHT}"
        done = subprocess.run([found, *always, size, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    make(out / "first", settings={"lr": 0.05}).fit(epochs=5)
    make(out / "second", settings={"lr": 0.01}, schedule=constant(0.01)).fit(epochs=4)
    return out


def test_a_run_leaves_its_report(runs):
    text = (runs / "first" / report.REPORT).read_text()
    for title in ("Loss", "Accuracy", "Learning rate", "Gradient norm", "Speed", "Memory"):
        assert f"<figcaption>{title}" in text
    for said in (">finished<", "195 parameters trained", "optimizer.weight_decay", "numpy", ">40<"):
        assert said in text
    assert not re.search(r"(src|href)=|https?://|@import|url\(", text)  # it needs nothing else
    assert len(text) < 150_000


def test_it_shows_what_was_logged(runs):
    """The values that a browser looks up are those of the log, and the lines go through them."""
    log = read(runs / "first")
    found = {f.title: f for f in report.figures(["first"], [log])}
    assert list(found) == ["Loss", "Accuracy", "Learning rate", "Gradient norm", "Speed", "Memory"]
    training, validation = found["Loss"].data["series"]
    assert training["x"] == [r["step"] for r in log.steps] and validation["x"] == [r["step"] for r in log.epochs]
    assert validation["y"] == pytest.approx([r["metrics"]["loss"] for r in log.epochs], rel=1e-4)
    rates = found["Learning rate"]
    assert rates.data["series"][0]["y"] == pytest.approx([r["lr"] for r in log.steps], rel=1e-4)
    path = re.search(r'<path class="line"[^>]*d="M([^"]+)"', rates.svg)[1]
    heights = np.array([float(point.split()[1]) for point in path.split("L")])
    lr = np.array([r["lr"] for r in log.steps])
    assert np.corrcoef(heights, lr)[0, 1] == pytest.approx(-1, abs=1e-4)  # up is where the rate is high


def test_two_runs_side_by_side(runs, tmp_path):
    report.write([runs / "first", runs / "second"], tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text()
    assert "<title>first and second</title>" in text and "first training" in text and "second validation" in text
    assert re.search(r'<tr class="differs"><td>lr</td><td>0.05</td><td>0.01</td></tr>', text)
    assert re.search(r"<tr><td>clip</td><td>1.0</td><td>1.0</td></tr>", text)
    speed = next(
        f for f in report.figures(["a", "b"], [read(runs / "first"), read(runs / "second")]) if f.title == "Speed"
    )
    assert [name for name, _, _ in speed.legend] == ["a", "b"] and speed.unit == "examples/s"


def test_how_it_ended(tmp_path):
    def said(out):
        return re.search(r'class="state[^>]*>([^<]+)<', report.page([out]))[1]

    with pytest.raises(zoo.ZooError):
        make(tmp_path / "nan", loss=lambda model, batch: loss(model, batch) * float("nan")).fit(steps=3)
    text = (tmp_path / "nan" / report.REPORT).read_text()
    assert (
        said(tmp_path / "nan") == "failed" and "the loss is nan at step 1" in text and "Nothing was logged yet" in text
    )
    make(tmp_path / "run").fit(steps=5)
    facts = json.loads((tmp_path / "run" / FACTS).read_text())
    for change, state in [
        ({}, "finished"),
        ({"ended": "stopped"}, "stopped"),
        ({"ended": None, "pid": os.getpid()}, "running"),
        ({"ended": None, "pid": 2**22 + 1}, "ended without a word"),  # above what Linux gives
        ({"ended": None, "host": "elsewhere"}, "ended without a word"),
    ]:
        (tmp_path / "run" / FACTS).write_text(json.dumps({**facts, **change}))
        assert said(tmp_path / "run") == state
    (tmp_path / "run" / FACTS).unlink()
    with (tmp_path / "run" / LOG).open("a") as log:
        log.write('{"step": 6, "lo')  # killed while it wrote
    assert said(tmp_path / "run") == "unknown"
    with pytest.raises(zoo.DataError, match="holds no run"):
        report.page([tmp_path])


def test_names_are_text_and_numbers_that_are_none_are_left_out(tmp_path):
    out = tmp_path / "<script>alert(1)<"
    make(out, settings={"note": "</script><b>bold"}).fit(epochs=2)
    with (out / LOG).open("a") as log:
        log.write('{"step": 17, "epoch": 3, "loss": NaN, "lr": 0.1, "seconds": 1, "grad_norm": null, "memory": null}\n')
    text = report.page([out])
    assert "<script>alert" not in text and "<b>bold" not in text and html.escape("</script><b>bold") in text
    for data in re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL):
        assert "NaN" not in data and json.loads(data)["series"]


def test_a_report_that_cannot_be_written_does_not_end_a_run(tmp_path):
    (tmp_path / report.REPORT).mkdir()
    assert make(tmp_path).fit(steps=2) is not None


def test_ticks_are_round_and_spikes_stay():
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] and ticks(0.13, 0.87)[0] == 0.0
    assert [label(t, ticks(3, 12_345)) for t in ticks(3, 12_345)] == ["0", "5k", "10k", "15k"]
    assert [label(t, ticks(0, 1e-3)) for t in ticks(0, 1e-3)][-2:] == ["8e-4", "1e-3"]
    assert label(2e-5, [1e-5, 2e-5]) == "2e-5" and label(0.25, [0.2, 0.25]) == "0.25"
    x, y = np.arange(20_000), np.zeros(20_000)
    y[777] = 5.0
    made = series("s", x.tolist(), y.tolist(), 0)
    assert len(thinned(made)[0]) <= 1000 and thinned(made)[1].max() == 5.0
    assert series("none", [1, 2], [None, float("nan")], 0) is None
    assert "<circle" in figure("One point", "", [series("s", [1], [2.0], 0)]).svg


PROBE = """
<script>
const errors = []; window.addEventListener("error", e => errors.push(e.message));
window.addEventListener("load", () => {
  const found = [...document.querySelectorAll("figure")].map(f => {
    const svg = f.querySelector("svg"), b = svg.getBoundingClientRect();
    svg.dispatchEvent(new PointerEvent("pointermove", {clientX: b.left + b.width * 0.6, clientY: b.top + 50}));
    const t = f.querySelector(".tip"), r = t.getBoundingClientRect(), o = f.getBoundingClientRect();
    return {title: f.querySelector("figcaption").firstChild.textContent.trim(), box: [b.left, b.top, b.right, b.bottom],
            tip: t.hidden ? null : t.textContent, within: r.left >= o.left && r.right <= o.right};
  });
  const pre = document.createElement("pre"); pre.id = "probe";
  pre.textContent = JSON.stringify({figures: found, errors: errors, width: innerWidth,
    wide: document.documentElement.scrollWidth}); document.body.append(pre);
});
</script>
"""


def probe(browser, page, directory):
    file = directory / "probe.html"
    file.write_text(page.replace("<head>", "<head>" + PROBE))
    dom = browser("--dump-dom", file.as_uri())
    return json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)[1]))


def near(picture, colour, within=40):
    return (np.abs(picture.astype(int) - colour).max(axis=-1) < within).sum()


def test_a_browser_shows_the_plots(browser, runs, tmp_path):
    page = (runs / "first" / report.REPORT).read_text()
    found = probe(browser, page, tmp_path)
    assert found["errors"] == [] and found["width"] == WIDTH and found["wide"] == WIDTH
    expected = report.figures(["first"], [read(runs / "first")])
    assert [f["title"] for f in found["figures"]] == [f.title for f in expected]
    log = {r["step"]: r for r in read(runs / "first").steps}
    for f in found["figures"]:
        step = re.match(r"step (\d+)\n", f["tip"])
        assert step and f["within"]
        if f["title"] == "Learning rate":
            shown = float(f["tip"].split()[-1])
            assert shown == pytest.approx(log[int(step[1])]["lr"], rel=1e-3) and 20 < int(step[1]) < 28
    browser(f"--screenshot={tmp_path / 'day.png'}", (runs / "first" / report.REPORT).as_uri())
    with Image.open(tmp_path / "day.png") as image:
        day = np.asarray(image.convert("RGB"))
    boxes = {
        f["title"]: day[int(b[1]) : int(b[3]), int(b[0]) : int(b[2])] for f in found["figures"] for b in [f["box"]]
    }
    for title, box in boxes.items():
        assert box.shape[0] > 150 and box.shape[1] > 400
        # a level line may lie across two rows of pixels, each half as dark
        assert near(box, ORANGE if title == "Accuracy" else BLUE, within=120) > 200, title
        assert (near(box, ORANGE) > 100) == (title in ("Loss", "Accuracy")), title
        assert near(box, (255, 255, 255)) > box.shape[0] * box.shape[1] * 0.8  # a plot, no blot
    assert near(day[:, :16], BLUE) == 0  # beside the plots there is nothing of them


def test_a_browser_shows_it_by_night_and_on_a_phone(browser, runs, tmp_path):
    file = runs / "first" / report.REPORT
    browser("--blink-settings=preferredColorScheme=0", f"--screenshot={tmp_path / 'night.png'}", file.as_uri())
    with Image.open(tmp_path / "night.png") as image:
        night = np.asarray(image.convert("RGB"))
    assert tuple(night[2, 2]) == (0x0F, 0x12, 0x17) and near(night, (0x58, 0xA6, 0xFF)) > 1000
    frame = f'<iframe src="{file.as_uri()}" width="375" height="800"></iframe>'
    (tmp_path / "phone.html").write_text(f"<body style='margin:0'>{frame}</body>")
    browser(f"--screenshot={tmp_path / 'phone.png'}", (tmp_path / "phone.html").as_uri())
    with Image.open(tmp_path / "phone.png") as image:
        phone = np.asarray(image.convert("RGB"))[:800, :375]
    assert near(phone, BLUE) > 200 and near(phone[:, 371:], BLUE) == 0  # nothing is cut off
