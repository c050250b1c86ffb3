"""A case, as data: what one run computes, and where its candidates are built.

A port states its cases in a module that its record names, `Port(bench="zoo.my_model.bench")`, as `CASES`:

    CASES = (
        Case(
            "my_model batch 8", unit="pictures/s", work=8,
            ours="zoo.my_model.bench:forward", peers={"torch": "zoo.my_model.peers:forward"},
            settings={"batch": 8},
        ),
    )

`forward(batch)` there builds the model, its weights and its input (from seeds, so that every candidate has the same),
and returns a function without arguments that runs it once and returns what it computed. It may return several such
functions by name, {"contiguous": run, "channels_last": run}: the fastest is taken, for a peer runs at its best setting.
Where memory is measured, they are `Variants`: each is also built alone.
On a GPU every function also gets `device="cuda"`; a peer's that has no such argument is left out, and named. A port's
`CUDA_CASES`, if it has them, stand there for its CASES.
A peer is named as its package on PyPI; its module may import it, and is imported in the peer's own process alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Run = Callable[[], Any]
Build = Callable[..., "Run | Mapping[str, Run]"]


class ProcessorOnly(Exception):
    """Raised by a builder that cannot use the device it is told: no figure, and no fault."""


class Variants(Mapping[str, Run]):
    """Runs by name, each built when it is first asked for."""

    def __init__(self, builders: Mapping[str, Callable[[], Run]]):
        self._builders, self._built = builders, dict[str, Run]()

    def __getitem__(self, name: str) -> Run:
        if name not in self._built:
            self._built[name] = self._builders[name]()
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)

    def __len__(self) -> int:
        return len(self._builders)


ROOFS = {"fma": "GFLOP/s", "int8": "GOP/s", "bf16": "GFLOP/s", "read": "GB/s", "copy": "GB/s"}
"""What a case may be limited by, as `machine` measures it, and its unit."""


@dataclass(frozen=True)
class Case:
    name: str
    unit: str
    """Of the figures, which are all rates: more is better."""
    work: float
    """How much one run does, in the unit's own terms: operations / 1e9 for GFLOP/s, pictures for pictures/s."""
    ours: str
    """`package.module:function` that builds our candidate."""
    peers: Mapping[str, str] = field(default_factory=dict)
    """Package on PyPI -> `package.module:function`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of all these functions: numbers, text, lists."""
    roof: str | None = None
    """One of ROOFS, or None if no single one limits it."""
    group: str = ""
    """Cases of one kind, which are summed up together; the first word of the name, if empty."""
    agree: float = 1e-3
    """Largest relative difference between root mean squares of what the candidates compute: equal work, or no ratio.
    The order of values does not matter, so layouts may differ."""

    memory: bool = False
    """Whether to measure the most memory that each candidate takes, too."""
    flops: float = 0.0
    """Of one run, multiply and add counted each, of products alone; 0 where nobody has counted them."""
    floor_bytes: float = 0.0
    """What one run must read and write at least: weights, caches, states of the optimizer; activations are left out."""

    @property
    def limited_by_memory(self) -> bool:
        return self.roof in ("read", "copy")

    @property
    def numbers(self) -> str:
        """The kind of product that its flops are: f32, bf16, f16, int8, int4."""
        return str(self.settings.get("format") or self.settings.get("dtype") or "f32")

    @property
    def kind(self) -> str:
        return self.group or self.name.partition(" ")[0]

    def rate(self, seconds: float) -> float:
        return self.work / seconds
