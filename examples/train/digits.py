"""Trains the digits classifier and writes it as `digits_onnx` and `digits_torch`."""

from pathlib import Path
from typing import Final

import numpy as np
import torch

from examples.train.export import write_digits_onnx, write_digits_torchscript
from examples.train.network import DigitsNetwork, train
from examples.train.split import Digits, split

ACCURACY_MIN: Final = 0.975


class TooInaccurateError(Exception):
    """The trained network is not worth writing."""


def write_digits(repository: Path) -> float:
    """Trains, writes both model files below `repository`, returns the held-out accuracy.

    Raises `TooInaccurateError` and writes nothing when it is below `ACCURACY_MIN`.
    """
    digits = split()
    network = train(digits.train)
    accuracy = held_out_accuracy(network, digits.held_out)
    if accuracy < ACCURACY_MIN:
        raise TooInaccurateError(
            f"expected at least {ACCURACY_MIN:.1%} of the held-out digits right, got"
            f" {accuracy:.1%}: look at the training settings in network.py"
        )
    write_digits_onnx(network, repository / "digits_onnx" / "1" / "model.onnx")
    write_digits_torchscript(network, repository / "digits_torch" / "1" / "model.pt")
    return accuracy


def held_out_accuracy(network: DigitsNetwork, held_out: Digits) -> float:
    """The share of digits whose highest score is the right class, 0 to 1."""
    scores = network(torch.from_numpy(held_out.images)).numpy()
    return float(np.mean(scores.argmax(axis=1) == held_out.labels))
