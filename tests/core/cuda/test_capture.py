"""Capture on the cuda device: a step becomes a graph, and a replay gives the bits that the step itself would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core import ops
from zoo.core.capture import Capture
from zoo.core.errors import ZooError
from zoo.core.stats import stats
from zoo.core.tensor import Tensor
from zoo.core.testing.emulator import emulated

WIDTH, HEADS, ROOM = 32, 4, 40


@pytest.fixture
def device() -> Any:
    return emulated()


def decoder(device: Any, layers: int = 3) -> Any:
    """A few layers that keep what they have seen, as a decoder does."""
    rng = np.random.default_rng(3)
    weights = [zoo.tensor(rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 6, device=device) for _ in range(layers)]
    norm = ops.ones((WIDTH,), device=device)
    caches = [ops.zeros((1, ROOM, HEADS, WIDTH // HEADS), device=device) for _ in range(layers)]

    def step(x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        for i, weight in enumerate(weights):
            h = ops.linear(ops.rms_norm(x, norm), weight).reshape(1, 1, HEADS, WIDTH // HEADS)
            caches[i] = seen = ops.update_rows(caches[i], h, position, donate=True)
            x = x + ops.attention(h, seen, seen, None, position + 1, causal=True).reshape(1, 1, WIDTH)
        return x, position + 1

    return step


def inputs(i: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(i).normal(size=(1, 1, WIDTH)).astype(np.float32)
    return x, np.array([i], np.int32)


def test_a_decoder(device: Any) -> None:
    """State in tensors goes on from step to step, the first one too, which is run and not only recorded."""
    eager, captured = decoder(device), Capture(decoder(device), device)
    stats(reset=True)
    for i in range(5):
        x, at = inputs(i)
        wanted, after = eager(zoo.tensor(x, device=device), zoo.tensor(at, device=device))
        found, position = captured(x, at)
        assert found.numpy().tobytes() == wanted.numpy().tobytes()
        assert position.tolist() == after.tolist() == [i + 1]
    assert stats()["capture.recorded"] == 1 and stats()["capture.replayed"] == 4


def test_a_replay_is_launches_alone(device: Any) -> None:
    """No op is bound: what the step did in Python is not done again."""
    captured = Capture(decoder(device), device)
    captured(*inputs(0))
    stats(reset=True)
    captured(*inputs(1))
    assert stats() == {"capture.replayed": 1}


def test_results_and_inputs_stay_where_they_are(device: Any) -> None:
    captured = Capture(lambda x: {"twice": x * 2.0, "more": [x + 1.0, None]}, device)
    first = captured(np.arange(3, dtype=np.float32))
    assert first["twice"].tolist() == [0, 2, 4]
    second = captured(np.full(3, 5, np.float32))
    assert second is first
    assert first["twice"].tolist() == [10, 10, 10] and first["more"][0].tolist() == [6, 6, 6]


def test_what_is_done_in_place_is_done_once(device: Any) -> None:
    """A running sum: a step that were done twice when it is recorded would count double."""
    total = ops.zeros((1, 2), device=device)

    def step(x: Tensor) -> Tensor:
        return ops.update_slice(total, total + x, (0, 0), donate=True)

    captured = Capture(step, device)
    for n in range(1, 4):
        assert captured(np.ones((1, 2), np.float32)).tolist() == [[n, n]]


def test_array_code_is_replayed(device: Any) -> None:
    """Ops without a kernel of their own (float64 here) run as array code on the same stream."""
    captured = Capture(lambda x: ops.attention(x, x, x), device)
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=(1, 2, 2, 4))
        wanted = ops.attention(*[zoo.tensor(x, device=device)] * 3).numpy()
        assert captured(x).numpy().tobytes() == wanted.tobytes()


def test_constants_of_the_step(device: Any) -> None:
    captured = Capture(lambda x: x + zoo.tensor([1.0, 2.0], device=device), device)
    for n in (1, 2, 3):
        assert captured(np.full(2, n, np.float32)).tolist() == [n + 1, n + 2]


def test_shapes_are_recorded_apart(device: Any) -> None:
    captured = Capture(lambda x: x * 2.0, device)
    stats(reset=True)
    for n in (3, 4, 3, 4):
        assert captured(np.arange(n, dtype=np.float32)).tolist() == [2.0 * i for i in range(n)]
    assert stats()["capture.recorded"] == 2 and stats()["capture.replayed"] == 2


def test_reading_a_value_is_refused(device: Any) -> None:
    with pytest.raises(ZooError, match="cannot be captured"):
        Capture(lambda x: x * float(x.sum()), device)(np.ones(3, np.float32))
    assert (zoo.tensor([1.0], device=device) + 1.0).item() == 2, "nothing is recorded any more"


def test_results_that_a_replay_cannot_give_are_refused(device: Any) -> None:
    with pytest.raises(ZooError, match="it returns float; a replay can give tensors only"):
        Capture(lambda x: (x, 1.5), device)(np.ones(3, np.float32))


def test_a_step_that_keeps_memory_is_refused(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arena is as large after each capture as if something had been kept of it."""
    sizes = iter(range(100))
    arena = type(device.driver.arena())
    monkeypatch.setattr(arena, "size", property(lambda self: next(sizes)))
    with pytest.raises(ZooError, match="it took more memory each time") as refused:
        Capture(lambda x: x + 1.0, device)(np.ones(3, np.float32))
    assert len(str(refused.value).splitlines()) == 3


def test_off_switch(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "off", {"capture"})
    stats(reset=True)
    captured = Capture(lambda x: x + 1.0, device)
    assert [captured(np.array([i], np.float32)).item() for i in (1, 2)] == [2, 3]
    assert stats()["capture.eager"] == 2
