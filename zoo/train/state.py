"""Everything that a run is, taken and put back: weights, moments, averages, where it stands in the data and in its
random numbers, what was measured. A run that goes on from it is, bit for bit, the one that was never stopped."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from zoo.core.errors import ZooError
from zoo.core.tensor import Tensor
from zoo.train.checkpoint import Checkpoint
from zoo.train.watch import Epoch

if TYPE_CHECKING:
    from zoo.train.learner import Learner


def taken(run: Learner) -> Checkpoint:
    """The state between two steps."""
    groups: dict[str, Any] = {"model": changing(run), "optimizer": run.optimizer.state()}
    facts: dict[str, Any] = {
        "step": run.step,
        "seconds": run.seconds,
        "rng": [run.rng.seed, run.rng.offset],
        "data": run.data.state(),
        "history": [asdict(done) for done in run.history],
        "losses": run._losses,
        "settings": settings(run),
    }
    if run.precision.scales:
        facts["precision"] = run.precision.state()
    if run.average is not None:
        groups["average"], facts["average_steps"] = run.average.values, run.average.steps
    groups |= {"best": run.best} if run.best else {}
    return Checkpoint(groups, facts)


def put_back(run: Learner, saved: Checkpoint) -> None:
    """Raises ZooError if the run was begun with other settings, DataError if with other data, and WeightsError if with
    another model; the run is then unchanged."""
    facts = saved.facts
    was, now = facts["settings"], settings(run)
    changed = [k for k in {**was, **now} if was.get(k) != now.get(k)]
    if changed:
        why = "\n".join(f"{k} was {was.get(k)} and is {now.get(k)}" for k in changed)
        raise ZooError(f"the run in {run.out} was begun with other settings", why, "Resume with the same ones.")
    before = run.data.state()
    run.data.load(facts["data"])
    moved = changing(run)
    frozen = {path: tensor for path, tensor in run._live.state().items() if path not in moved}
    try:
        run._live.load({**frozen, **saved.groups["model"]})
    except ZooError:
        run.data.load(before)
        raise
    run.optimizer.load(saved.groups.get("optimizer", {}), run.device)
    average, run.best = (
        {k: Tensor(run.device.from_host(v), run.device) for k, v in saved.groups.get(group, {}).items()}
        for group in ("average", "best")
    )
    if run.average is not None:
        run.average.load(average, facts["average_steps"])
    if run.precision.scales:
        run.precision.load(facts["precision"])
    run.rng.seed, run.rng.offset = facts["rng"]
    run.step, run.seconds = facts["step"], facts["seconds"]
    run.history = [Epoch(**done) for done in facts["history"]]
    run._losses = facts["losses"]


def settings(run: Learner) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run, as JSON gives it back."""
    own: dict[str, Any] = {"optimizer": run.optimizer.describe(), "clip": run.clip, "seed": run.seed}
    own["ema"] = None if run.average is None else run.average.decay
    own |= {"patience": run.patience} if run.patience else {}
    own |= {"accumulate": run.accumulate} if run.accumulate > 1 else {}
    own |= {"precision": run.precision.name} if run.precision.name != "f32" else {}
    return json.loads(json.dumps({**own, **run.settings}))


def changing(run: Learner) -> dict[str, Tensor]:
    """What training changes: no frozen weights, which are where they came from."""
    return {p: s.value for p, s in run._live.slots().items() if s.trainable or (s.buffer and not s.module.frozen)}


def statistics(run: Learner) -> dict[str, Tensor]:
    """What training changes and no gradient does: running means and variances."""
    return {p: s.value for p, s in run._live.slots().items() if s.buffer and not s.module.frozen}
