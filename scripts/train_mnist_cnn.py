"""Makes weights/mnist_cnn: trains with the defaults of `zoo finetune mnist_cnn`, stores the weights in float16,
measures what was stored, and writes the card.

    python scripts/train_mnist_cnn.py --data DIR      DIR holds the MNIST files; without it they are fetched

The same seed on the same instruction set gives the same file, bit for bit. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import numpy as np

import zoo
from zoo import hub
from zoo.mnist_cnn import data as mnist_data
from zoo.mnist_cnn.finetune import accuracy, finetune
from zoo.train import RunDirectory

ROOT = Path(__file__).parents[1]
SEED, EPOCHS = 0, 12
TARGET = 0.993


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "mnist_cnn", help="where the run is kept")
    parser.add_argument("--out", type=Path, default=ROOT / "weights" / "mnist_cnn")
    given = parser.parse_args()

    begun = bool(RunDirectory(given.run).checkpoints())
    (trained,) = finetune(data=given.data, epochs=EPOCHS, seed=SEED, out=given.run, resume=begun)
    print(trained)

    model = zoo.load(given.run)
    hub.save(model, given.out, port="mnist_cnn", dtype=np.float16)
    stored = zoo.load(given.out, dtype="float32")
    split = mnist_data.load(given.data or mnist_data.cached()).validation
    share = accuracy(stored, split)
    if share < TARGET:
        raise SystemExit(f"{share:.2%} on {len(split):,} unseen digits, less than the {TARGET:.1%} that ships")
    card = {
        "summary": f"{100 * share:.2f} % on {len(split):,} unseen digits",
        "accuracy": share,
        "data": "MNIST (LeCun, Cortes, Burges): the first 50,000 training pictures; measured on the last 10,000",
        "recipe": f"scripts/train_mnist_cnn.py: {EPOCHS} epochs, AdamW, one cycle, turned and shifted, averaged",
        "seed": SEED,
        "date": datetime.date.today().isoformat(),
        "stored": "float16",
        "licence": "Apache-2.0",
    }
    hub.save(model, given.out, port="mnist_cnn", dtype=np.float16, card=card)
    print(f"{given.out}: {card['summary']}")


if __name__ == "__main__":
    main()
