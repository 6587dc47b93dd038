"""A caller that checks its answer."""

import numpy as np
from tritonclient import grpc as triton


def check_identity(client: triton.InferenceServerClient, timeout_s: float = 20.0) -> None:
    """Sends rows to the identity model and compares what comes back, bit for bit."""
    rows = np.random.default_rng().random((3, 16), dtype=np.float32)
    tensor = triton.InferInput("IN", [3, 16], "FP32")
    tensor.set_data_from_numpy(rows)
    answer = client.infer("identity", [tensor], client_timeout=timeout_s)
    np.testing.assert_array_equal(answer.as_numpy("OUT"), rows)
