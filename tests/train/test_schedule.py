"""Schedules: where they begin, peak and end."""

from __future__ import annotations

import math

import pytest

from zoo.train import constant, cosine, linear, one_cycle, step_decay


@pytest.mark.parametrize(
    "make", [constant, lambda lr, warmup: cosine(lr, 100, warmup), lambda lr, warmup: linear(lr, 100, warmup)]
)
def test_warm_up_rises_in_a_line_to_the_peak(make):
    schedule = make(0.4, warmup=9)
    assert [schedule(i) for i in range(10)] == pytest.approx([0.04 * (i + 1) for i in range(10)])
    assert max(schedule(i) for i in range(200)) == pytest.approx(0.4)


def test_shapes_of_the_decay():
    assert [linear(1.0, 4, final=0.2)(i) for i in range(6)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    assert cosine(1.0, 8)(4) == pytest.approx(0.5) and cosine(1.0, 8)(8) == 0.0 and cosine(1.0, 8)(99) == 0.0
    assert cosine(1.0, 8)(2) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert [step_decay(1.0, 2, 0.1)(i) for i in range(5)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_one_cycle_rises_and_falls():
    schedule = one_cycle(1.0, 100, rise=0.3)
    rates = [schedule(i) for i in range(100)]
    top = rates.index(max(rates))
    assert rates[0] == pytest.approx(1 / 25) and top == 29 and rates[29] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 / 25e4)
    assert rates[:30] == sorted(rates[:30]) and rates[29:] == sorted(rates[29:], reverse=True)
    assert schedule(1000) == pytest.approx(1 / 25e4)


def test_a_schedule_is_a_pure_function():
    schedule = cosine(1.0, 50, warmup=5)
    assert [schedule(i) for i in (7, 3, 7)] == [schedule(7), schedule(3), schedule(7)]
