"""The digits model behind an accelerator that is stood in for by sleeping.

A batch of b rows takes `a_ms` * b + `c_ms` of wall time and next to no CPU; the answers are
those of the ONNX model beside this file. Every figure taken with it has to say so.
"""

import time
from typing import Any

import numpy as np
import onnxruntime as ort


class Model:
    """`image` FP32 [rows, 1, 8, 8] -> `scores` FP32 [rows, 10]."""

    def load(self, context: Any) -> None:
        """Takes milliseconds a row (`a_ms`) and a batch (`c_ms`) from config.pbtxt."""
        self.a_s = float(context.parameters["a_ms"]) / 1e3
        self.c_s = float(context.parameters["c_ms"]) / 1e3
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            context.path / "model.onnx", options, providers=["CPUExecutionProvider"]
        )

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        began_s = time.perf_counter()
        (scores,) = self.session.run(["scores"], {"image": inputs["image"]})
        batch_s = self.a_s * len(scores) + self.c_s
        time.sleep(max(0.0, batch_s - (time.perf_counter() - began_s)))
        return {"scores": scores}

    def unload(self) -> None:
        """Holds nothing that has to be given back."""
