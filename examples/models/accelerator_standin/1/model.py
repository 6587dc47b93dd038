"""Sleeps as long as an accelerator would compute, and answers with its input."""

import math
import time
from typing import Any

import numpy as np


class Model:
    """`IN` FP32 [rows, 16] -> `OUT`, the same values, after a_ms * rows + c_ms."""

    def load(self, context: Any) -> None:
        """Takes milliseconds a row (`a_ms`) and a batch (`c_ms`) from config.pbtxt."""
        self.a_ms = _milliseconds(context.parameters, "a_ms")
        self.c_ms = _milliseconds(context.parameters, "c_ms")

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = inputs["IN"]
        time.sleep((self.a_ms * len(rows) + self.c_ms) / 1e3)
        return {"OUT": rows}

    def unload(self) -> None:
        """Holds nothing that has to be given back."""


def _milliseconds(parameters: dict[str, str], key: str) -> float:
    text = parameters.get(key)
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"parameter {key}: expected milliseconds, 0 or more, got {text!r}")
    return value
