"""Random numbers: the published vectors of the cipher, the distributions, the same numbers everywhere and always."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import zoo
from zoo.core import philox
from zoo.core.dtype import bfloat16, float32
from zoo.core.errors import ShapeError
from zoo.core.random import Generator
from zoo.core.testing import ref

# Random123 1.14, tests/kat_vectors, the lines "philox4x32 10": counter, key, result
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hexes(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize("counter, key, result", KNOWN)
def test_philox4x32_10_known_answers(counter: str, key: str, result: str) -> None:
    words = [np.array([w], np.uint64) for w in hexes(counter)]
    out = philox.philox4x32(np, tuple(words), hexes(key))  # type: ignore[arg-type]
    assert tuple(int(w[0]) for w in out) == hexes(result)
    assert ref.philox(hexes(counter), hexes(key)) == hexes(result)  # type: ignore[arg-type]


def test_the_first_words_of_stream_0_are_the_first_known_answer() -> None:
    assert philox.bits(np, 0, 0, 4).tolist() == list(hexes(KNOWN[0][2]))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 8), st.integers(0, 13))
def test_words_of_every_seed_and_offset(seed: int, offset: int, n: int) -> None:
    """Against the cipher in Python integers: blocks follow one another, also over 2^32."""
    source = ref.words(seed, offset)
    assert philox.bits(np, seed, offset, n).tolist() == [next(source) for _ in range(n)]


def test_a_stream_can_be_entered_anywhere() -> None:
    whole = philox.bits(np, 7, 0, 40)
    assert np.array_equal(philox.bits(np, 7, 5, 20), whole[20:])


# crc32 of 1000 float32 values of stream 42, as ref.py makes them from Python integers and math.log
UNIFORM_42, NORMAL_42 = 3122743318, 3754335399


def test_every_device_draws_the_same_numbers(device: Any) -> None:
    """Bit for bit; against stored checksums, so that a change of the stream shows on one device too."""

    def checksum(draw: Any) -> int:
        return zlib.crc32(np.ascontiguousarray(np.asarray(draw)).tobytes())

    g = Generator(42)
    assert checksum(g.uniform((10, 100), device=device)) == UNIFORM_42
    assert checksum(g.normal((10, 100), device=device)) == NORMAL_42
    assert g.offset == 500


def test_uniform_moments() -> None:
    n = 200_000
    u = Generator(1).uniform((n,)).numpy().astype(float)
    assert 0 <= u.min() < 1e-4 and 1 - 1e-4 < u.max() < 1
    for k in range(1, 5):  # E u^k = 1/(k+1), its variance 1/(2k+1) - 1/(k+1)^2; four standard deviations
        allowed = 4 * math.sqrt((1 / (2 * k + 1) - 1 / (k + 1) ** 2) / n)
        assert abs((u**k).mean() - 1 / (k + 1)) < allowed
    counts = np.bincount((u * 64).astype(int), minlength=64)
    chi2 = ((counts - n / 64) ** 2 / (n / 64)).sum()
    assert 63 - 4 * math.sqrt(126) < chi2 < 63 + 4 * math.sqrt(126)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / math.sqrt(n)


def test_normal_moments() -> None:
    n = 200_000
    z = Generator(2).normal((n,)).numpy().astype(float)
    for k, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # E z^k and Var z^k
        assert abs((z**k).mean() - moment) < 4 * math.sqrt(spread / n)
    below = (z < 1).mean()
    assert abs(below - 0.841345) < 4 * math.sqrt(0.1335 / n)
    assert abs(np.corrcoef(z[0::2], z[1::2])[0, 1]) < 4 / math.sqrt(n / 2), "the two values of a pair are independent"
    assert np.isfinite(z).all()


def test_ranges_dtypes_and_shapes() -> None:
    g = Generator(3)
    x = g.uniform((1000,), low=-2, high=3)
    assert (x.numpy() >= -2).all() and (x.numpy() < 3).all() and x.dtype == float32
    z = g.normal((1000,), mean=5.0, std=0.1, dtype=bfloat16)
    assert z.dtype == bfloat16 and abs(z.numpy().astype(float).mean() - 5) < 0.1
    assert [g.uniform(s).shape for s in (3, (2, 2), (), (0, 4))] == [(3,), (2, 2), (), (0, 4)]
    with pytest.raises(ShapeError):
        g.uniform((-1,))


def test_the_state_is_two_integers() -> None:
    g = Generator(5)
    g.normal((7,))
    g.permutation(5)
    resumed = Generator(g.seed, g.offset)
    assert repr(resumed) == repr(g) == f"Generator(seed=5, offset={g.offset})"
    for draw in (lambda r: r.uniform((9,)).numpy(), lambda r: r.permutation(9), lambda r: r.integers(0, 5, 9)):
        assert np.array_equal(draw(g), draw(resumed))


def test_draws_do_not_overlap() -> None:
    g = Generator(6)
    drawn = np.concatenate([g.uniform((n,)).numpy() for n in (1, 2, 3, 4, 5, 1000)])
    assert len(np.unique(drawn)) == drawn.size


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000])
def test_permutations(n: int) -> None:
    p = Generator(7).permutation(n)
    assert p.dtype == np.int64 and sorted(p.tolist()) == list(range(n))


def test_permutations_are_even() -> None:
    """Each of the 24 orders of 4 things about equally often."""
    g, trials = Generator(8), 4800
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(trials):
        order = tuple(g.permutation(4).tolist())
        counts[order] = counts.get(order, 0) + 1
    expected = trials / 24
    chi2 = sum((c - expected) ** 2 / expected for c in counts.values())
    assert len(counts) == 24 and chi2 < 23 + 4 * math.sqrt(46)


def test_integers() -> None:
    x = Generator(9).integers(-3, 4, 7000)
    assert x.dtype == np.int64 and sorted(set(x.tolist())) == list(range(-3, 4))
    counts = np.bincount(x + 3)
    assert ((counts - 1000) ** 2 / 1000).sum() < 6 + 4 * math.sqrt(12)


def test_seeds_of_any_size() -> None:
    assert Generator(-1).seed == 2**64 - 1
    assert Generator(2**64 + 3).seed == 3
    assert zoo.random.Generator is Generator
    streams = [Generator(s).uniform((4,)).tolist() for s in (0, 1, 2**32, 2**63)]
    assert len({tuple(s) for s in streams}) == 4
