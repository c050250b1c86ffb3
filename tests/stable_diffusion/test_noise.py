"""Normal numbers as torch draws them, bit for bit, live and as stored."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from zoo.stable_diffusion.noise import Generator, latents

# checksums of the float32 bits that torch 2.13 draws with AVX2, by seed and sizes drawn in a row
STORED = {
    (0, (16384,)): 2554053263,
    (42, (16384, 5, 17)): 1911004299,
    (2**32 + 5, (3, 3, 100)): 1697541357,
    (1234567890123, (1, 15, 16, 31, 4096)): 2540884675,
}


def drawn(seed: int, sizes: tuple[int, ...]) -> np.ndarray:
    generator = Generator(seed)
    return np.concatenate([generator.normal((n,)) for n in sizes])


@pytest.mark.parametrize(("seed", "sizes"), list(STORED))
def test_numbers_are_those_that_were_stored(seed: int, sizes: tuple[int, ...]) -> None:
    assert zlib.crc32(drawn(seed, sizes).tobytes()) == STORED[seed, sizes]


@pytest.mark.parametrize(("seed", "sizes"), [*STORED, (7, (1_000_003,)), (2**63, (64,)), (-3, (64, 2, 2))])
def test_numbers_are_torchs(seed: int, sizes: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(seed)
    known = np.concatenate([torch.randn(n, generator=generator).numpy() for n in sizes])
    mine = drawn(seed, sizes)
    assert np.abs(mine - known).max() < 2e-6  # whatever torch's functions are on this processor
    if "AVX2" in torch.backends.cpu.get_cpu_capability() or "AVX512" in torch.backends.cpu.get_cpu_capability():
        np.testing.assert_array_equal(mine, known)


def test_latents_are_drawn_with_channels_first() -> None:
    both = latents([Generator(1), Generator(2)], (3, 5, 4))
    assert both.shape == (2, 3, 5, 4) and both.flags.c_contiguous
    np.testing.assert_array_equal(both[1], Generator(2).normal((4, 3, 5)).transpose(1, 2, 0))


def test_they_are_normal() -> None:
    x = Generator(11).normal((400_000,)).astype(np.float64)
    assert abs(x.mean()) < 0.008 and abs(x.std() - 1) < 0.006  # five standard errors
    assert abs(np.mean(np.abs(x) < 1) - 0.6827) < 0.004 and np.abs(x).max() < 6
