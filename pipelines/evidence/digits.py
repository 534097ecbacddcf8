"""Write scikit-learn's handwritten digits as images for `study.py --size digits`: 820 to train on or hold out, 977 to test on.

    pip install scikit-learn
    python pipelines/evidence/digits.py digits
    multimix-pipe pack digits digits-shards
    python pipelines/evidence/study.py --data digits-shards --size digits

The 1,797 images of 8x8 pixels come with scikit-learn (UCI, Optical Recognition of Handwritten Digits, 1998).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

TRAIN = 820


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("digits.py needs one argument, the folder to write to")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("digits.py needs scikit-learn: pip install scikit-learn")
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))  # they come writer by writer
    for place, number in enumerate(order.tolist()):
        folder = Path(sys.argv[1], "train" if place < TRAIN else "test", str(digits.target[number]))
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.round(digits.images[number] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")


if __name__ == "__main__":
    main()
