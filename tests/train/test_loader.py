"""Batches: every row once, an order that follows from the seed, exact resume."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from zoo.data.loader import Loader, stream


def rows(batches):
    return np.concatenate([b[0] for b in batches])


def data(n=23):
    return np.arange(n), np.arange(n) * 10


def test_an_epoch_holds_every_row_once_and_pairs_arrays():
    loader = Loader(data(), 5, seed=1)
    batches = list(loader)
    assert len(batches) == len(loader) == 5 and [len(b[0]) for b in batches] == [5, 5, 5, 5, 3]
    assert sorted(rows(batches)) == list(range(23))
    assert all(np.array_equal(y, x * 10) for x, y in batches)
    assert (loader.epoch, loader.position) == (1, 0)


def test_orders_differ_by_epoch_and_seed_and_repeat():
    a, b, c = Loader(data(), 5, seed=1), Loader(data(), 5, seed=1), Loader(data(), 5, seed=2)
    first, second = rows(a), rows(a)
    assert not np.array_equal(first, second) and not np.array_equal(first, rows(c))
    assert np.array_equal(first, rows(b)) and np.array_equal(second, rows(b))


def test_without_shuffling_and_without_the_rest():
    loader = Loader(data(), 5, shuffle=False, drop_last=True)
    assert len(loader) == 4 and np.array_equal(rows(loader), np.arange(20))


def test_state_resumes_anywhere():
    whole = Loader(data(), 4, seed=3)
    expected = [b[0] for _ in range(3) for b in whole]
    for stop in (0, 2, 6, 7, 13):
        part, seen = Loader(data(), 4, seed=3), []
        while len(seen) < stop:
            for batch in part:
                seen.append(batch[0])
                if len(seen) == stop:
                    break
        again = Loader(data(), 4, seed=3)
        again.load(part.state())
        while again.epoch < 3:
            seen += [b[0] for b in again]
        assert len(seen) == len(expected) and all(map(np.array_equal, seen, expected)), stop


def test_a_transform_draws_the_same_for_the_same_batch():
    def noise(batch, rng):
        return batch[0] + rng.uniform(batch[0].shape, device="numpy").numpy(), batch[1]

    loader = Loader(data(), 5, transform=noise)
    first, second = [b[0] for b in loader.batches(0)], [b[0] for b in loader.batches(1)]
    resumed = [b[0] for b in loader.batches(0, start=3)]
    assert all(map(np.array_equal, resumed, first[3:]))
    assert not np.array_equal(np.sort(np.concatenate(first)), np.sort(np.concatenate(second)))
    assert (loader.epoch, loader.position) == (0, 0)


def test_dicts_and_objects_that_take_row_numbers():
    class Squares:
        def __len__(self):
            return 6

        def __getitem__(self, indices):
            return {"square": indices**2}

    assert sorted(np.concatenate([b["square"] for b in Loader(Squares(), 4)])) == [0, 1, 4, 9, 16, 25]
    batch = next(iter(Loader({"a": np.arange(3), "b": np.ones((3, 2))}, 2)))
    assert batch["a"].shape == (2,) and batch["b"].shape == (2, 2)


def test_errors():
    with pytest.raises(zoo.DataError, match="different lengths"):
        Loader((np.arange(3), np.arange(4)), 2)
    with pytest.raises(zoo.DataError, match="nothing to load"):
        Loader((np.arange(0),), 2)
    with pytest.raises(zoo.DataError, match="batches of 8 are not filled"):
        Loader((np.arange(3),), 8, drop_last=True)
    with pytest.raises(zoo.DataError, match="at least one row"):
        Loader((np.arange(3),), 0)
    with pytest.raises(zoo.DataError, match="batch was 4 and is 5"):
        Loader(data(), 5).load(Loader(data(), 4).state())


def test_streams_are_their_own():
    draws = [
        tuple(stream(*key).integers(0, 1 << 30, 4)) for key in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", 1)]
    ]
    assert len(set(draws)) == 5
    assert draws[0] == tuple(stream(0, "a").integers(0, 1 << 30, 4))


def test_the_rows_at_hand_are_named():
    loader = Loader(data(), 5, seed=1)
    for batch in loader:
        assert np.array_equal(loader.at, batch[0])

    class Named:
        def __len__(self):
            return 3

        def __getitem__(self, rows):
            return rows

        def place(self, row):
            return f"train.jsonl:{row + 1}"

    assert Loader(Named(), 2).places([0, 2]) == ["train.jsonl:1", "train.jsonl:3"]
    assert loader.places([4]) == ["row 4"]


@pytest.mark.parametrize("transformed", [False, True])
def test_parts_make_up_the_batches_of_one_process(transformed):
    def mixed(batch, rng):
        """Draws, a mix of rows, two blocks of rows, and a number."""
        x = batch[0] + rng.uniform(batch[0].shape, device="numpy").numpy()
        return x + x[::-1], np.concatenate([batch[0], -batch[0]]), 0.5

    given = {"seed": 4, "transform": mixed if transformed else None}
    whole = Loader(data(), 4, **given)
    parts = [Loader(data(), 4, part=(rank, 3), **given) for rank in range(3)]
    assert [len(part) for part in parts] == [len(whole)] * 3
    for _ in range(2):
        for together in zip(whole, *parts, strict=True):
            batch, divided = together[0], together[1:]
            n = len(whole.at)
            for rank, own in enumerate(divided):
                mine = np.arange(n * rank // 3, n * (rank + 1) // 3)
                assert np.array_equal(parts[rank].at, whole.at[mine])
                assert np.array_equal(own[0], batch[0][mine])
                if transformed:
                    assert np.array_equal(own[1], batch[1][np.concatenate([mine, n + mine])]) and own[2] == 0.5
    assert whole.state() == parts[2].state()


def test_a_batch_of_fewer_rows_than_processes_leaves_arrays_of_no_rows():
    left = list(Loader((np.arange(5), np.ones((5, 2))), 4, shuffle=False, part=(0, 3)))[-1]
    assert left[0].shape == (0,) and left[1].shape == (0, 2)
