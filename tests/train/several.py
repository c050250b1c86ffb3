"""What test_parallel.py runs on several ranks, `mpirun -n N python several.py OUT SCENARIO...`, and the same functions
in one process, to compare with. Each gives arrays by name; rank 0 writes them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from small_run import Net, blobs, jitter, loss, metrics

from zoo.core import ops
from zoo.core.errors import ZooError
from zoo.nn import Dropout, Linear, Module, losses
from zoo.train import SGD, AdamW, Learner, Loader, constant, parallel


class Plain(Module):
    """Nothing in it looks at more than one row."""

    def __init__(self) -> None:
        self.fc1, self.drop, self.fc2 = Linear(6, 16), Dropout(0.2), Linear(16, 3)

    def __call__(self, x: Any) -> Any:
        return self.fc2(self.drop(ops.relu(self.fc1(x))))


def make(model: Module | None = None, data: Loader | None = None, out: Path | None = None, **changed: Any) -> Learner:
    """8 batches per epoch, the last of them smaller and of an odd number of rows."""
    settings: dict[str, Any] = {"loss": loss, "optimizer": SGD(momentum=0.9), "schedule": constant(0.1), "quiet": True,
                                "validation": Loader(blobs(65, 2), 20, shuffle=False), "metrics": metrics,
                                "clip": 0.5, "ema": 0.9}  # fmt: skip
    data = data or Loader(blobs(123, 1), 16, seed=7, transform=jitter)
    return Learner((model or Plain()).init(0, "cpu"), data, out=out, **{**settings, **changed})


def results(learner: Learner) -> dict[str, np.ndarray]:
    found = {f"live.{path}": t.numpy() for path, t in learner._live.state().items()}
    found |= {f"average.{path}": t.numpy() for path, t in learner.average.values.items()} if learner.average else {}
    found["losses"] = np.array([e.loss for e in learner.history])
    for name in learner.history[0].metrics if learner.history else ():
        found[f"validation.{name}"] = np.array([e.metrics[name] for e in learner.history])
    return found | {"rng": np.array(learner.rng.offset), "step": np.array(learner.step)}


def whole(out: Path) -> dict[str, np.ndarray]:
    """Dropout, augmentation, clipping, an average, momentum."""
    learner = make()
    learner.fit(epochs=2)
    return results(learner)


def adam(out: Path) -> dict[str, np.ndarray]:
    learner = make(optimizer=AdamW(), schedule=constant(0.01), metrics=None)
    learner.fit(epochs=2)
    return results(learner)


def uneven(out: Path) -> dict[str, np.ndarray]:
    """Batches of 4 rows and a last one of 1; entries that do not count, so that ranks have rows of which none does;
    three batches a step."""
    x, labels = blobs(25, 1)
    labels = labels.copy()
    labels[::3] = labels[8:10] = -100

    def masked(model: Any, batch: Any) -> Any:
        return losses.cross_entropy(model(batch[0]), batch[1], ignore_index=-100)

    def counts(batch: Any) -> int:
        return int((batch[1] != -100).sum())

    data = Loader((x, labels), 4, shuffle=False)
    validation = Loader((x, labels), 7, shuffle=False)
    learner = make(data=data, loss=masked, counts=counts, accumulate=3, metrics=None, validation=validation)
    learner.fit(epochs=3)
    return results(learner)


def norm(out: Path) -> dict[str, np.ndarray]:
    """Running statistics. The learning rate is 0: what batch norm sees is the same in one process."""
    learner = make(Net(), schedule=constant(0.0), data=Loader(blobs(123, 1), 16, seed=7))
    learner.fit(steps=1)
    return results(learner)


def twice(out: Path) -> dict[str, np.ndarray]:
    """Batch norm, dropout and all, two times over: the same bits."""
    first, second = make(Net()), make(Net())
    first.fit(epochs=2)
    second.fit(epochs=2)
    return {"same": np.array([np.array_equal(a, b) for a, b in zip(results(first).values(), results(second).values(),
                                                                  strict=True)])}  # fmt: skip


def astray(out: Path) -> dict[str, np.ndarray]:
    """The last rank moves a weight of its own."""
    ranks = parallel.ranks()

    def wrong(model: Any, batch: Any) -> Any:
        if ranks.rank == ranks.size - 1 and learner.step == 3:
            learner._live.set("fc2.bias", learner._live.fc2.bias + 1e-3)
        return loss(model, batch)

    learner = make(loss=wrong)
    try:
        learner.fit(epochs=1)
    except ZooError as error:
        return {"error": np.array(str(error)), "heard": np.array(ranks.objects(str(error)))}
    return {}


def begin(out: Path) -> dict[str, np.ndarray]:
    make(out=out / "run").fit(steps=5)
    return {}


def go_on(out: Path) -> dict[str, np.ndarray]:
    learner = make(out=out / "run").resume()
    learner.fit(epochs=2)
    return results(learner)


def stopped(out: Path) -> dict[str, np.ndarray]:
    """SIGTERM comes to the last rank alone, in step 5."""
    ranks = parallel.ranks()

    def hit(model: Any, batch: Any) -> Any:
        if ranks.rank == ranks.size - 1 and learner.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, batch)

    learner = make(loss=hit, out=out / "run")
    try:
        learner.fit(epochs=2)
    except SystemExit as end:
        return {"steps": ranks.gather(learner.step), "codes": ranks.gather(end.code or 0)}
    return {}


def _at(step: int, act: Any, out: Path) -> dict[str, np.ndarray]:
    """The last rank acts in a step."""
    ranks = parallel.ranks()

    def hit(model: Any, batch: Any) -> Any:
        if ranks.rank == ranks.size - 1 and model.training and learner.step == step:
            act()
        return loss(model, batch)

    learner = make(loss=hit, out=out / "run")
    learner.fit(epochs=9)
    return {}


def killed(out: Path) -> dict[str, np.ndarray]:
    return _at(11, lambda: os.kill(os.getpid(), signal.SIGKILL), out)


def failed(out: Path) -> dict[str, np.ndarray]:
    def fail() -> None:
        raise ZooError("the disk is gone", "it was here", "")

    return _at(11, fail, out)


def threads(out: Path) -> dict[str, np.ndarray]:
    return {"threads": parallel.ranks().gather(make().device.native.threads())}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for name in sys.argv[2:]:
        found = globals()[name](place)
        if parallel.ranks().first:
            np.savez(place / f"{name}.npz", **found)
