"""The dashboard in a real terminal (a pty): what stands on the screen while it runs, and what stays."""

from __future__ import annotations

import re
import sys
import time

import numpy as np
import pytest
from small_run import make

from zoo.train import progress
from zoo.train.plot import Line, blocks, bounds, braille, trailing
from zoo.train.watch import Run, Step

terminal = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")


def start(*arguments, **settings):
    pytest.importorskip("pyte")
    from terminal import Terminal

    return Terminal(*arguments, **settings)


def says(pattern, rows):
    return re.search(pattern, "\n".join(rows)) is not None


def has_dots(text):
    return any(0x2800 < ord(c) <= 0x28FF for c in text)


@terminal
@pytest.mark.parametrize("columns, lines", [(80, 24), (120, 40)])
def test_it_fills_the_screen_and_leaves_it_clean(columns, lines):
    shown = start(columns, lines, epochs=12)
    plots = (lines - 4) // 2 if lines < 36 else 16
    screen = shown.until(lambda rows: says("epoch [5-9]/12", rows) and sum(map(has_dots, rows)) >= plots // 2 + 2)
    text = "\n".join(screen)
    assert all(len(row) < columns for row in screen) and sum(has_dots(row) or "│" in row for row in screen) == plots
    assert re.search(r"loss 0\.\d+ now \d\.\d+ +validation \d\.\d+ ", text) and "accuracy" in text
    assert re.search(r"epoch \d+/12 ━+ \d+/96 steps +0:\d\d, 0:\d\d left", text)
    assert re.search(r"learning rate \d.*gradient norm \d", text) and re.search(
        r"examples/s .*memory \d+ MB, peak \d+ MB", text
    )
    assert any(row.startswith("epoch 4: loss") for row in screen)  # lines that were said stand above
    assert shown.end() == 0
    after = [row for row in shown.everything() if row]
    assert [int(m[1]) for row in after if (m := re.match(r"epoch (\d+): loss", row))] == list(range(1, 13))
    assert after[-3].startswith("trained Net: 195 parameters, 96 steps in 0:0") and after[-1] == "the result"
    assert after[-2].startswith("best epoch: ") and not has_dots("\n".join(after)) and "━" not in "".join(after)
    assert not shown.screen.cursor.hidden


@terminal
def test_warnings_and_what_is_said_stay_and_a_resize_is_followed():
    before = """
from zoo.train import Watcher
class Talks(Watcher):
    def stepped(self, step):
        if step.step == 20:
            learner.watch.say("[bold]as it is[/bold]")
            warnings.warn("mind the gap", stacklevel=1)
learner.watch.each.append(Talks())
"""
    shown = start(100, 30, epochs=100, before=before)
    rows = shown.until(lambda rows: says("mind the gap", rows) and sum("│" in row for row in rows) == 13)
    assert "[bold]as it is[/bold]" in rows
    shown.resize(64, 20)

    def whole(rows):
        """One picture of the new size, and nothing left of the one before."""
        ours = [row for row in rows if "│" in row or "━" in row]
        return len(ours) == 9 and all(len(row) < 64 for row in ours)

    shown.until(whole)
    shown.interrupt()
    assert shown.end() != 0
    assert not has_dots("\n".join(shown.shown())) and says("stopped after step", shown.shown())


@terminal
@pytest.mark.parametrize("how", ["interrupt", "error"])
def test_after_an_interrupt_or_an_error_the_terminal_is_as_it_was(how, tmp_path):
    fails = """
from zoo.train import Watcher
class Fails(Watcher):
    def stepped(self, step):
        if step.step == 40:
            raise RuntimeError("it broke")
learner.watch.each.append(Fails())
"""
    shown = start(80, 24, epochs=30, out=tmp_path, before=fails if how == "error" else "")
    shown.until(lambda rows: says("epoch 3/30", rows))
    if how == "interrupt":
        shown.interrupt()
    code = shown.end()
    text = "\n".join(shown.shown())
    assert code != 0 and not has_dots(text) and "━" not in text and not shown.screen.cursor.hidden
    assert ("it broke" if how == "error" else "KeyboardInterrupt: stopped after step") in text


@terminal
def test_a_run_that_goes_on_shows_where_it_came_from(tmp_path):
    make(tmp_path, validation=None).fit(steps=40)
    shown = start(100, 30, epochs=30, out=tmp_path, before="learner.resume()")
    rows = shown.until(lambda rows: says("epoch 6/30", rows) and sum("│" in row for row in rows) == 13)
    assert says("╰1─+[4-9]\\d", rows)  # the steps of the plot: from the first
    shown.interrupt()
    shown.end()


@terminal
def test_on_a_very_small_screen_there_are_words_only():
    shown = start(36, 8, epochs=4)
    assert not any(map(has_dots, shown.until(lambda rows: says("epoch 2/4", rows))))
    assert shown.end() == 0


def test_nothing_with_quiet_and_lines_elsewhere(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN", 0.0)
    make(quiet=False, unit="tokens", counts=lambda batch: 1000 * len(batch[0])).fit(epochs=1)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"step 3/8  epoch 1  loss \d\.\d{4}  [\d.]+[kMB] tokens/s, 0:00 left", lines[2])
    make(quiet=True).fit(epochs=1)
    assert capsys.readouterr() == ("", "")


def test_a_step_pays_next_to_nothing(monkeypatch):
    """Under 1 % of 5 ms; drawing is a thread's, which holds itself to 1 % (measured: docs/decisions.md)."""
    from zoo.train.dashboard import Dashboard

    class Terminal:
        encoding = "utf-8"

        def write(self, text):
            return len(text)

        def flush(self):
            pass

        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    board = Dashboard()
    board.opened(Run("Net", 0, 10**6, 1000, 1, 1, "cpu", "examples"))
    step = Step(1, 1, 0.5, 1e-3, 16, 16.0, 1.0, 1.0, 0.005, 10**8)
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            board.stepped(step)
        best = min(best, (time.perf_counter() - start) / 100)
    board.closed("stopped")
    assert best < 50e-6


def test_a_curve_keeps_its_shape_in_bounded_memory():
    from zoo.train.dashboard import POINTS, Curve

    curve = Curve()
    for step in range(1, 20_001):
        curve.add(step, step / 10)
    line = curve.line("")
    assert POINTS // 2 <= len(line.x) < POINTS and line.x[-1] > 19_980
    np.testing.assert_allclose(line.y, line.x / 10, atol=1.0)


def test_plots_show_what_they_are_given():
    x = np.arange(100.0)
    rows = braille([Line(x, x, "a")], 10, 5, 0.0, 99.0)
    text = ["".join(piece for piece, _ in row) for row in rows]
    assert all(len(row) == 10 for row in text)
    filled = [[i for i, c in enumerate(row) if c != "\u2800"] for row in text]
    assert filled[0] == [8, 9] and filled[2] == [4, 5, 6] and filled[4] == [0, 1, 2]  # a diagonal, from below
    assert braille([Line(x[:1], x[:1], "a")], 1, 1, 0.0, 1.0) == [[("\u2840", "a")]]  # one dot, below at the left
    two = braille([Line(x, x, "under"), Line(x, x, "over")], 4, 4, 0.0, 99.0)
    assert {style for row in two for _, style in row} == {"over", ""}
    assert blocks(x, x, 8) == "▁▂▃▄▅▆▇█" and blocks(x[:3], np.ones(3), 5).strip() == "▄▄▄"
    np.testing.assert_allclose(trailing(np.array([1.0, 3, 5, 7]), 0.5), [1, 2, 4, 6])
    assert bounds([Line(x, np.where(x == 3, 1e9, 1.0), "a")])[1] < 2  # one that stands out does not flatten the rest
