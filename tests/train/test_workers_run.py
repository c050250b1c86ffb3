"""A run whose batches are made by worker processes has the bits of one without, also when it is stopped and resumed."""

from __future__ import annotations

import pytest
from small_run import bits, blobs, jitter, make

from zoo.train import Loader


def loader(workers: int) -> Loader:
    return Loader(blobs(123, 1), 16, seed=7, transform=jitter, workers=workers)


@pytest.mark.parametrize("stop", [5, 16])
def test_the_bits_are_those_of_a_run_without_workers(tmp_path, stop):
    plain, working = make(data=loader(0)), make(data=loader(2))
    plain.fit(steps=27), working.fit(steps=27)
    assert bits(plain) == bits(working)
    first = make(tmp_path / "out", data=loader(2))
    first.fit(steps=stop)
    first.data.close()
    again = make(tmp_path / "out", data=loader(1)).resume()
    again.fit(steps=27)
    assert bits(again) == bits(plain)
    working.data.close(), again.data.close()
