"""The runner with candidates that behave in every way; no time is asserted but that slow is slower than quick."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from zoo.bench.case import Case
from zoo.bench.report import cells, entry, heading
from zoo.bench.runner import OURS, Row, Runner


def case(ours: str = "quick", roof: str | None = None, agree: float = 1e-3, **peers: str) -> Case:
    module = "fake_candidates"
    return Case(
        "a case", "runs/s", 1, f"{module}:{ours}", {n: f"{module}:{f}" for n, f in peers.items()}, {}, roof, agree=agree
    )


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Other processes of a busy machine do not count here."""
    monkeypatch.setattr("zoo.bench.runner.WAITED", 1e9)


def measure(machine, of: Case, *, peers: bool = True) -> Row:
    with Runner(machine, peers=peers, seconds=0) as runner:
        return runner.measure(of)


def test_candidates_take_turns_and_rates_compare(machine):
    row = measure(machine(), case(numpy="slow"))
    assert set(row.taken) == {OURS, "numpy"} and not row.failed
    ours, peer = row.taken[OURS], row.taken["numpy"]
    assert ours.rate > peer.rate and 1 < peer.rate <= 50  # 20 ms each
    assert (ours.repetitions, ours.kept, ours.clean) == (3, 3, True)
    found = entry(row)
    assert found["ratio"] == ours.rate / peer.rate and found["versions"]["numpy"]


def test_peers_run_only_if_asked_for(machine):
    assert set(measure(machine(), case(numpy="slow"), peers=False).taken) == {OURS}


def test_the_fastest_variant_is_taken(machine):
    row = measure(machine(), case(numpy="two_layouts"))
    assert row.taken["numpy"].variant == "quick" and row.taken["numpy"].rate > 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of a process is read from /proc")
def test_memory_is_measured_of_each_variant_alone(machine):
    row = measure(machine(), replace(case(numpy="large"), memory=True))
    assert row.memory["numpy"] / (1 << 20) == pytest.approx(31, abs=5), "of the one that takes least; 1 MB is a copy"
    assert row.memory[OURS] < 8 << 20 and not row.failed
    found = entry(row)
    assert cells(found, ["numpy"], memory=True)[-1].endswith("of theirs")
    assert "memory" in heading(["numpy"], memory=True) and not measure(machine(), case(numpy="large")).memory


def test_unclean_repetitions_are_not_kept(machine):
    # a probe before the first repetition and one after each: the second repetition has a bad probe at its end, and so
    # the third at its beginning
    row = measure(machine(95, 95, 50, 95), case())
    assert (row.taken[OURS].kept, row.taken[OURS].repetitions, row.taken[OURS].clean) == (1, 3, True)


def test_if_none_is_clean_the_best_one_stands_and_is_marked(machine):
    row = measure(machine(50), case(numpy="slow"))
    taken = row.taken[OURS]
    assert not taken.clean and taken.kept == 0 and taken.rate == max(taken.rates)
    found = entry(row)
    assert found["clean"] is False and cells(found, ["numpy"])[2].startswith("~")


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not count waiting")
def test_a_repetition_that_had_to_share_its_core_is_not_clean(machine, monkeypatch):
    monkeypatch.setattr("zoo.bench.runner.WAITED", 0.05)
    taken = measure(machine(), case(ours="crowded")).taken[OURS]
    assert not taken.clean and taken.repetitions == 3


def test_the_bandwidth_is_measured_beside_what_memory_limits(machine):
    fake = machine()
    fake.bandwidths = [10.0, 30.0, 30.0, 80.0]
    row = measure(fake, case(roof="read"))
    taken = row.taken[OURS]
    assert fake.looked == ["read"] * 4 and taken.bandwidths == [20.0, 30.0, 55.0]
    found = entry(row)
    assert found["of_roof"] == sorted(r / b for r, b in zip(taken.rates, taken.bandwidths, strict=True))[1]
    assert found["ceiling"] == 30.0


def test_a_repetition_that_is_not_kept_takes_its_bandwidth_along(machine):
    fake = machine(95, 95, 50, 95)
    fake.bandwidths = [10.0, 30.0, 99.0, 99.0]
    taken = measure(fake, case(roof="copy")).taken[OURS]
    assert taken.kept == 1 and taken.bandwidths == [20.0] and taken.share == taken.rate / 20.0


def test_arithmetic_is_compared_with_the_highest_rate_seen(machine):
    fake = machine()
    row = measure(fake, case(roof="fma"))
    assert fake.looked == [] and entry(row)["of_roof"] == row.taken[OURS].rate / 100.0


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("raising", "ValueError: no such shape"),
        ("crashing", "its process ended (exit code 7): out of luck"),
        ("crashing_later", "its process ended (SIGKILL)"),
        ("no_such_function", "AttributeError"),
    ],
)
def test_a_broken_peer_is_told_and_disturbs_nobody(machine, function, why):
    with Runner(machine(), peers=True, seconds=0) as runner:
        row = runner.measure(case(numpy=function))
        assert set(row.taken) == {OURS} and row.failed["numpy"].startswith(why)
        assert "numpy" in runner.measure(case(numpy="slow")).taken  # a new process


def test_a_missing_package_is_told_by_name(machine):
    row = measure(machine(), case(torch="missing"))
    assert row.missing == {"torch": "a_package_that_is_not_there"} and entry(row)["ratio"] is None


def test_what_computes_something_else_gets_no_ratio(machine):
    with Runner(machine(), peers=True, seconds=0) as runner:
        row = runner.measure(Case("c", "runs/s", 1, "fake_candidates:quick", {"numpy": "fake_candidates:slow"}, {}))
        assert "numpy" in row.taken
        row = runner.measure(
            Case("c", "runs/s", 1, "fake_candidates:process", {"numpy": "fake_candidates:process"}, {}, agree=0)
        )
    assert row.failed["numpy"].startswith("computes something else") and set(row.taken) == {OURS}


def test_a_broken_candidate_of_ours_leaves_the_peers(machine):
    found = entry(measure(machine(), case(ours="raising", numpy="slow")))
    assert found["ours"] is None and found["ratio"] is None and found["peers"]["numpy"] > 0


def test_what_a_candidate_prints_is_not_an_answer(machine):
    assert OURS in measure(machine(), case(ours="noisy")).taken


def test_no_process_is_left(machine):
    with Runner(machine(), peers=True, seconds=0) as runner:
        runner.measure(case(numpy="slow"))
        processes = [w._process for w in runner._workers.values()]
    assert len(processes) == 2 and all(p is not None and p.returncode is not None for p in processes)
