"""The distinct convolutions of ResNet-50 (224 px, batch 1) and of Stable Diffusion 1.5 at 512 px, by architecture.

ResNet-50 (He et al. 2016, with the stride in the 3x3 as torchvision has it): four stages of bottlenecks 1x1, 3x3, 1x1
of width 64, 128, 256, 512 on 56, 28, 14, 7 pixels; the first block of stages 2 to 4 halves the size in its 3x3 and in a
1x1 shortcut.

UNet of SD 1.5 (batch 2: with and without the prompt; latents 4 x 64 x 64): channels 320, 640, 1280, 1280 on 64, 32, 16,
8 pixels. A residual block is conv(in -> out), conv(out -> out). Down: in is the previous level's width, then out; each
level but the last ends with a strided conv. Up: in is the width below plus that of the skip (1280 + 1280, 1280 + 640,
640 + 320, 320 + 320, ...), three blocks a level, each level but the last ends with nearest upsampling and a conv on the
larger picture.

VAE (batch 1): decoder widths 512, 512, 256, 128 on 64, 128, 256, 512 pixels; encoder the other way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Conv:
    """A square convolution with padding kernel // 2 on `size` x `size` pixels."""

    network: str
    batch: int
    size: int
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1

    @property
    def size_out(self) -> int:
        return (self.size - 1) // self.stride + 1

    @property
    def name(self) -> str:
        """Network, kernel, /stride, pixels, channels: `unet 3x3 64 320->320`."""
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.network} {self.kernel}x{self.kernel}{stride} {self.size} {self.inputs}->{self.outputs}"


def _resnet50() -> Iterator[Conv]:
    yield Conv("resnet50", 1, 224, 3, 64, 7, 2)
    size, inputs = 56, 64
    for width in (64, 128, 256, 512):
        stride = 1 if width == 64 else 2
        yield Conv("resnet50", 1, size, inputs, width, 1)
        yield Conv("resnet50", 1, size, width, width, 3, stride)
        yield Conv("resnet50", 1, size, inputs, 4 * width, 1, stride)
        size, inputs = size // stride, 4 * width
        yield Conv("resnet50", 1, size, width, 4 * width, 1)
        yield Conv("resnet50", 1, size, inputs, width, 1)
        yield Conv("resnet50", 1, size, width, width)


def _block(network: str, batch: int, size: int, inputs: int, outputs: int) -> Iterator[Conv]:
    yield Conv(network, batch, size, inputs, outputs)
    yield Conv(network, batch, size, outputs, outputs)


def _unet() -> Iterator[Conv]:
    widths, sizes = (320, 640, 1280, 1280), (64, 32, 16, 8)
    yield Conv("unet", 2, 64, 4, 320)
    skips, last = [320], 320
    for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
        for _ in range(2):
            yield from _block("unet", 2, size, last, width)
            last = width
            skips.append(width)
        if level < 3:
            yield Conv("unet", 2, size, width, width, 3, 2)
            skips.append(width)
    yield from _block("unet", 2, 8, 1280, 1280)
    for level, (width, size) in enumerate(zip(widths[::-1], sizes[::-1], strict=True)):
        for _ in range(3):
            yield from _block("unet", 2, size, last + skips.pop(), width)
            last = width
        if level < 3:
            yield Conv("unet", 2, 2 * size, width, width)
    yield Conv("unet", 2, 64, 320, 4)


def _vae() -> Iterator[Conv]:
    widths, sizes = (512, 512, 256, 128), (64, 128, 256, 512)
    yield Conv("vae", 1, 64, 4, 512)
    last = 512
    for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
        yield from _block("vae", 1, size, last, width)
        last = width
        if level < 3:
            yield Conv("vae", 1, 2 * size, width, width)
    yield Conv("vae", 1, 512, 128, 3)
    yield Conv("vae", 1, 512, 3, 128)  # the encoder from here
    last = 128
    for level, (width, size) in enumerate(zip((128, 256, 512, 512), sizes[::-1], strict=True)):
        yield from _block("vae", 1, size, last, width)
        last = width
        if level < 3:
            yield Conv("vae", 1, size, width, width, 3, 2)  # padded by one on two sides there: the same work
    yield Conv("vae", 1, 64, 512, 8)


def _by_kind(convolutions: Iterable[Conv]) -> list[Conv]:
    """Each once: 3x3, then strided, then 1x1."""
    return sorted(dict.fromkeys(convolutions), key=lambda c: (c.stride > 1, c.kernel == 1))


CONVOLUTIONS = (*_by_kind(_resnet50()), *_by_kind(_unet()), *_by_kind(_vae()))
