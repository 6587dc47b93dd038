"""The digits that the example models are trained on, and those held out from training.

The data is scikit-learn's copy of the test set of the UCI "Optical Recognition of
Handwritten Digits" data: 1797 scans of 8x8 pixels, each 0 to 16.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HELD_OUT_SHARE: Final = 0.2
SPLIT_SEED: Final = 20


class Digits(NamedTuple):
    """`images` FP32 [n, 1, 8, 8] with pixels 0 to 16, `labels` INT64 [n]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


class Split(NamedTuple):
    train: Digits
    held_out: Digits


def split() -> Split:
    """1437 digits to train on and 360 held out, every class in proportion, always the same."""
    data = load_digits()
    images = data.images.astype(np.float32)[:, None, :, :]
    labels = data.target.astype(np.int64)
    train_images, held_out_images, train_labels, held_out_labels = train_test_split(
        images, labels, test_size=HELD_OUT_SHARE, stratify=labels, random_state=SPLIT_SEED
    )
    return Split(
        train=Digits(train_images, train_labels),
        held_out=Digits(held_out_images, held_out_labels),
    )
