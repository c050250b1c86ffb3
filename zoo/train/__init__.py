"""Training: optimizers, schedules, checkpoints, and the Learner that puts them together.

    data = Loader((images, labels), batch=64)
    learner = Learner(model, data, loss=loss, optimizer=AdamW(), schedule=constant(1e-3), out="run")
    learner.fit(epochs=3)

What is the same in every port's training, as options with their help, is Training (zoo/train/recipe.py).

The same pieces in a loop of one's own:

    device = zoo.device()
    model = Net().init(zoo.random.Generator(0), device)
    live = model.to(zoo.Autodiff(device)).train(zoo.random.Generator(1))     # its parameters are variables
    optimizer, schedule = SGD(momentum=0.9), cosine(0.1, steps=1000, warmup=50)
    for step, (x, y) in enumerate(Loader((images, labels), batch=64, seed=0)):
        loss = losses.cross_entropy(live(zoo.tensor(x, device=device)), zoo.tensor(y, device=device))
        grads, norm = clip_global_norm(gradients(loss, live), 1.0)
        optimizer.step(live, grads, lr=schedule(step))
    model = live.to(device).eval()
"""

from __future__ import annotations

from zoo.data.loader import Loader, stream
from zoo.train import schedule
from zoo.train.average import Average
from zoo.train.directory import RunDirectory
from zoo.train.gradients import clip_global_norm, global_norm, gradients
from zoo.train.learner import Learner
from zoo.train.optim import SGD, Adam, AdamW, Optimizer, RMSprop, matrices_only
from zoo.train.recipe import Training
from zoo.train.schedule import constant, cosine, linear, one_cycle, step_decay
from zoo.train.watch import Epoch, Run, Step, Watcher

__all__ = [
    "SGD", "Adam", "AdamW", "Average", "Epoch", "Learner", "Loader", "Optimizer", "RMSprop", "Run", "RunDirectory",
    "Step", "Training", "Watcher", "clip_global_norm", "constant", "cosine", "global_norm", "gradients", "linear",
    "matrices_only", "one_cycle", "schedule", "step_decay", "stream",
]  # fmt: skip
