"""Run by mosec's own interpreter, so it imports nothing of ours: a worker that answers raw bytes
with raw bytes, in dynamic batches. mosec reads the command line; the model is in the environment:

BENCH_INSTANCES, BENCH_MAX_BATCH_ROWS, BENCH_WAIT_MS (0: no batching), where only the first values
are the answer BENCH_ANSWERED (how many), and, where ONNX Runtime is to compute, BENCH_MODEL_FILE,
BENCH_INPUTS (JSON: [name, numpy dtype, dims] each), BENCH_OUTPUT.
"""

import json
import os
from typing import Any

import numpy as np
from mosec import Server, Worker

BATCHES = int(os.environ["BENCH_WAIT_MS"]) > 0


class Same(Worker):  # type: ignore[misc]  # mosec is not in the environment of the checks
    """Answers with what it was asked."""

    def deserialize(self, data: bytes) -> Any:
        return np.frombuffer(data, np.float32)

    def serialize(self, data: Any) -> Any:
        return data.tobytes()

    def forward(self, data: Any) -> Any:
        return data


class First(Same):
    """Answers with the first values of what it was asked."""

    def forward(self, data: Any) -> Any:
        count = int(os.environ["BENCH_ANSWERED"])
        return [row[:count] for row in data] if BATCHES else data[:count]


class Computed(Worker):  # type: ignore[misc]
    """One ONNX Runtime call for all requests of a batch, on one thread."""

    def __init__(self) -> None:
        super().__init__()
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            os.environ["BENCH_MODEL_FILE"], options, providers=["CPUExecutionProvider"]
        )
        self.inputs = json.loads(os.environ["BENCH_INPUTS"])
        self.output = os.environ["BENCH_OUTPUT"]

    def deserialize(self, data: bytes) -> Any:
        row, offset = [], 0
        for _, dtype, dims in self.inputs:
            count = int(np.prod(dims))
            values = np.frombuffer(data, dtype, count, offset)
            row.append(values.reshape(dims))
            offset += values.nbytes
        return row

    def serialize(self, data: Any) -> Any:
        return data.tobytes()

    def forward(self, data: Any) -> Any:
        rows = data if BATCHES else [data]
        feed = {
            name: np.stack(values)
            for (name, _, _), values in zip(self.inputs, zip(*rows, strict=True), strict=True)
        }
        results = self.session.run([self.output], feed)[0]
        return list(results) if BATCHES else results[0]


if __name__ == "__main__":
    server = Server()
    echo = First if "BENCH_ANSWERED" in os.environ else Same
    server.append_worker(
        Computed if "BENCH_MODEL_FILE" in os.environ else echo,
        num=int(os.environ["BENCH_INSTANCES"]),
        max_batch_size=int(os.environ["BENCH_MAX_BATCH_ROWS"]) if BATCHES else 1,
        max_wait_time=int(os.environ["BENCH_WAIT_MS"]),
    )
    server.run()
