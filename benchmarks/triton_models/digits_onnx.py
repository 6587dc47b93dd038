"""Triton's model of `digits_onnx`: one ONNX Runtime call for all requests of a batch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # Triton's own


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        folder = Path(args["model_repository"]) / args["model_version"]
        self.session = ort.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        images = [pb_utils.get_input_tensor_by_name(r, "image").as_numpy() for r in requests]
        scores = self.session.run(["scores"], {"image": np.concatenate(images)})[0]
        ends = np.cumsum([len(rows) for rows in images])
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("scores", rows)])
            for rows in np.split(scores, ends[:-1])
        ]
