"""Data-parallel training: one run on several processes, each with its rows of every batch, over MPI (mpi4py).

    mpirun -n 2 zoo finetune mnist_cnn

A step is that of one process with the whole batch, to within rounding: each rank works out the gradient of its rows, as
a share of the mean over all entries of the batch, and the shares are added up. Every rank then moves the same weights
by the same gradient, so that weights never travel; that they stay the same is checked. Where a model looks at a batch
as a whole, each rank looks at its rows: batch norm normalises by them (as torch's DistributedDataParallel has it), and
the running statistics are the mean of the ranks'.

Sums are in order of rank: they do not depend on which MPI it is, nor on how it would add. For that, each rank gets a
slice of everybody's numbers, adds it up and hands it round (Rabenseifner 2004). In buckets of 4 MB on two ranks of one
machine, 33 MB take 5.1 ms (1 MB: 4.7, 64 MB: 10.6; Allreduce, whose order is its own affair, 3.3). A model of so many
weights trains for hundreds of milliseconds on a step, so that adding up during backward would gain next to nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.core.device import root
from zoo.core.dtype import float32, is_float
from zoo.core.errors import ZooError
from zoo.core.random import BLOCK, Generator
from zoo.core.tensor import Tensor
from zoo.train.stopping import StopRequest

BUCKET = 4 << 20  # bytes that are summed at once
LINE = 16  # float32 in a cache line: tensors in a bucket begin at one, as kernels like it
PATIENCE = 5.0  # seconds in which the other ranks should have failed too, if it is an error of all
LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI, and others that start with Hydra
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),  # MVAPICH
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # srun
)


def launched(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, size) as the launcher of this process says; (0, 1) without one."""
    for rank, size in LAUNCHERS:
        if environ.get(rank, "").isdecimal() and environ.get(size, "").isdecimal():
            return int(environ[rank]), int(environ[size])
    return 0, 1


@functools.cache
def ranks() -> Ranks:
    """Those among which this process was started; one alone, where no launcher says otherwise. Raises ZooError where
    one does and the ranks cannot talk: they would all train the same model, each for itself."""
    _, size = launched()
    if size == 1:
        return Ranks()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: there is no MPI library that it can load
        why = f"mpirun started them, but mpi4py, through which they would, cannot be used ({error})"
        fix = "Install it beside an MPI: pip install 'zoo-models[mpi]'; or start one process, without mpirun."
        raise ZooError(f"this is one of {size} processes that cannot talk to each other", why, fix) from None
    found = MPI.COMM_WORLD.Get_size()
    if found != size:
        name = MPI.Get_library_version().split(",")[0]
        why = f"{size} were started, and mpi4py, which uses {name}, knows of {found}: the launcher is of another MPI"
        fix = "Use the mpirun of that MPI, or let mpi4py use the other one: MPI4PY_LIBMPI=/path/to/libmpi.so."
        raise ZooError("the processes of this run do not find each other", why, fix)
    return Ranks(MPI.COMM_WORLD)


@dataclass(frozen=True)
class Share:
    """What a rank has of a batch: rows from number `start` of the `total`."""

    start: int
    rows: int
    total: int


@dataclass(frozen=True)
class Whole:
    """The batches of a step on all ranks: entries that the mean of the loss is over, rows, and of each batch the share
    of this rank."""

    count: float
    rows: int
    shares: list[Share]


class Finished(SystemExit):
    """A rank that has nothing left to do."""


class Ranks:
    """The processes of a run. With one (no `comm`), every method is what it would be without any."""

    def __init__(self, comm: Any = None):
        self.comm, self.rank, self.size = comm, 0, 1
        if comm is not None:
            self.comm, self._last = comm.Dup(), comm.Dup()
            self.rank, self.size = comm.Get_rank(), comm.Get_size()

    @property
    def first(self) -> bool:
        """Of the one that writes files and shows what goes on."""
        return self.rank == 0

    # what they tell each other

    def gather(self, numbers: Any) -> np.ndarray:
        """The numbers (float64, of one shape everywhere) of each, in order of rank: (size, ...)."""
        mine = np.array(numbers, np.float64)
        if self.comm is None:
            return mine[None]
        every = np.empty((self.size, *mine.shape))
        self.comm.Allgather(mine, every)
        return every

    def first_says(self, word: bool) -> bool:
        """What the first says, on all."""
        return bool(self.gather(word)[0])

    def wait(self) -> None:
        """Until all are here."""
        self.gather(0)

    def objects(self, value: Any) -> list[Any]:
        """What each has, in order of rank: anything that can be pickled."""
        return [value] if self.comm is None else self.comm.allgather(value)

    def whole(self, counts: list[float], rows: list[int]) -> Whole:
        """A step, given this rank's entries and rows of each of its batches."""
        every = self.gather([counts, rows])  # (size, 2, batches)
        before, total = every[: self.rank, 1].sum(axis=0), every[:, 1].sum(axis=0)
        shares = [Share(int(a), own, int(n)) for a, own, n in zip(before, rows, total, strict=True)]
        return Whole(float(every[:, 0].sum()), int(total.sum()), shares)

    def sum(self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each tensor added up over the ranks that have it, in float32; `like`: all that there may be, in an order
        that is the same everywhere."""
        if self.comm is None:
            return dict(tensors)
        there = self.gather([path in tensors for path in like]).sum(axis=0)
        summed: dict[str, Tensor] = {}
        for bucket in _buckets([path for path, some in zip(like, there, strict=True) if some], like):
            flat = np.zeros(-(-bucket[-1].stop // (self.size * LINE)) * self.size * LINE, float32)
            for place in bucket:
                if place.path in tensors:
                    flat[place.start : place.stop] = np.asarray(tensors[place.path]).reshape(-1)
            self._add_up(flat)
            for place in bucket:
                device, shape = root(like[place.path].device), like[place.path].shape
                part = flat[place.start : place.stop].reshape(shape)
                summed[place.path] = Tensor(device.from_host(part), device)
        return summed

    def mean(self, tensors: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
        """What the ranks have, each by its weight; of integers, the largest. Nothing, where that changes nothing."""
        every = self.gather(weight).sum()
        if self.comm is None or every == 0:
            return {}
        weight = weight / every
        floats = {path: t for path, t in tensors.items() if is_float(t.dtype)}
        summed = self.sum({path: t.astype(float32) * weight for path, t in floats.items()} if weight else {}, floats)
        found = {path: summed[path].astype(t.dtype) for path, t in floats.items()}
        for path, t in tensors.items():
            if path not in floats:
                largest = self.gather(np.asarray(t)).max(axis=0).astype(t.dtype)
                found[path] = Tensor(t.device.from_host(largest), t.device)
        return found

    def means(self, sums: Mapping[str, float], weight: float) -> dict[str, float]:
        """The sums of all by the weights of all. A rank without any data has no sums."""
        every = self.objects((weight, dict(sums)))
        total = sum(w for w, _ in every)
        names = dict.fromkeys(name for _, some in every for name in some)
        return {name: sum(some.get(name, 0.0) for _, some in every) / total for name in names}

    def _add_up(self, flat: np.ndarray) -> None:
        slices = np.empty((self.size, len(flat) // self.size), float32)
        self.comm.Alltoall(flat, slices)
        total = slices[0]
        for other in slices[1:]:
            total += other
        self.comm.Allgather(total, flat)

    # that they do the same

    def agree(self, what: str, facts: Mapping[str, Any]) -> None:
        """Raises ZooError, on every rank, if the facts are not the same on all."""
        every = self.objects({name: repr(value) for name, value in facts.items()})
        for rank, other in enumerate(every):
            if odd := [name for name in {**every[0], **other} if every[0].get(name) != other.get(name)]:
                why = "\n".join(f"{k}: {every[0].get(k)} on rank 0, {other.get(k)} on rank {rank}" for k in odd[:5])
                raise ZooError(f"the ranks differ in {what}", why, "Start all with the same command, data and weights.")

    def check(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Raises ZooError, on every rank, that names those whose weights are not what most have."""
        if self.comm is None:
            return
        sums = np.array([zlib.crc32(np.ascontiguousarray(t).view(np.uint8)) for t in state.values()])
        every = self.gather(sums)
        alike = [(other == every).all(axis=1).sum() for other in every]
        most = every[int(np.argmax(alike))]
        odd = [rank for rank, other in enumerate(every) if (other != most).any()]
        if odd:
            path = next(p for p, same in zip(state, (every == most).all(axis=0), strict=True) if not same)
            names = ", ".join(map(str, odd))
            raise ZooError(
                f"rank {names} of {self.size} has other weights than the rest",
                f"at step {step}; the first that differs is {path}",
                "Ranks on unlike processors round alike with ZOO_ISA set to what all have; else a machine is faulty.",
            )

    def silence(self) -> None:
        """What this process prints goes nowhere, but for the first rank."""
        if not self.first:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends

    def leave_the_rest_to_the_first(self) -> None:
        """Ends the other processes: what comes after training is done once."""
        if not self.first:
            raise Finished(0)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What ends one ends all: the others would wait for ever for what it no longer sends. An error that all of
        them have goes its way; one of some ranks alone is told, and the run aborted."""
        try:
            yield
        except Finished:
            raise
        except BaseException as error:
            if self.comm is not None:
                everybody, until = self._last.Ibarrier(), time.monotonic() + PATIENCE
                while not everybody.Test():
                    if time.monotonic() > until:
                        print(f"zoo: rank {self.rank} of {self.size} failed, which ends the run: "
                              f"{type(error).__name__}: {error}", file=sys.__stderr__, flush=True)  # fmt: skip
                        self.comm.Abort(1)
                    time.sleep(0.01)
            raise

    # the machine

    def share_cores(self, device: Any) -> None:
        """Divides the cores of a machine by the ranks on it that may use the same ones, unless ZOO_THREADS says how
        many threads each has."""
        native = getattr(root(device), "native", None)
        if self.comm is None or native is None or "ZOO_THREADS" in os.environ:
            return
        from mpi4py import MPI

        mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        here = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        rivals = sum(bool(mine & other) for other in here.allgather(mine))
        here.Free()
        native.set_threads(0)
        native.set_threads(max(1, native.threads() // rivals))


@dataclass(frozen=True)
class _Place:
    path: str
    start: int
    stop: int


def _buckets(paths: list[str], like: Mapping[str, Tensor]) -> Iterator[list[_Place]]:
    """Places of the tensors in buckets of about BUCKET bytes; one that is larger has its own."""
    bucket: list[_Place] = []
    for path in paths:
        start = -(-bucket[-1].stop // LINE) * LINE if bucket else 0
        if bucket and (start + like[path].size) * float32.itemsize > BUCKET:
            yield bucket
            bucket, start = [], 0
        bucket.append(_Place(path, start, start + like[path].size))
    if bucket:
        yield bucket


class Stop:
    """A request to stop, as all ranks know of it: `asked` changes when they `agree`, all after the same step."""

    def __init__(self, request: StopRequest, ranks: Ranks):
        self._request, self._ranks, self._agreed = request, ranks, 0

    @property
    def asked(self) -> int | None:
        """The signal."""
        return self.here if self._ranks.size == 1 else self._agreed or None

    @property
    def here(self) -> int | None:
        """The signal that came to this rank."""
        return self._request.asked

    def agree(self) -> None:
        self._agreed = int(self._ranks.gather(self.here or 0).max())

    def end(self, message: str) -> None:
        self._request.asked = self.asked
        self._request.end(message)


class RowGenerator(Generator):
    """Draws for a rank's rows of a batch what one process draws for them (dropout). That holds where numbers are drawn
    with the rows as first axis, so many for each row that four of them, a block of the generator, do not lie across
    two ranks; else they are others, as good."""

    share = Share(0, 1, 1)

    def at(self, batch: int, share: Share) -> None:
        """Goes to where the draws for a batch of the run begin."""
        self.offset, self.share = batch << 36, share  # 2^38 numbers, for each of 2^28 batches

    def take(self, n: int) -> int:
        share = self.share
        if share.rows == share.total or n % share.rows:
            return super().take(n)
        each = n // share.rows
        return super().take(each * share.total) + each * share.start // BLOCK
