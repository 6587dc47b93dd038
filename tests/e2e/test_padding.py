"""Requests of different lengths share batches of a real server; each gets its own answer back."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.model_folder import write_model
from tests.e2e.server import Server
from tideserve.client import Client

pytestmark = pytest.mark.e2e

CONFIG = """
backend: "python"
max_batch_size: 16
input { name: "IDS" data_type: TYPE_INT64 dims: -1 }
input { name: "MASK" data_type: TYPE_BOOL dims: -1 }
output { name: "TWICE" data_type: TYPE_INT64 dims: -1 }
output { name: "SUM" data_type: TYPE_INT64 dims: 1 }
output { name: "SEEN" data_type: TYPE_INT64 dims: 2 }
parameters { key: "tideserve.pad" value {
  string_value: "dim=0,edges=8/32,value.IDS=-1,cost=64" } }
"""
MODEL = """
import time

import numpy as np


class Model:
    def load(self, context):
        pass

    def infer(self, inputs):
        ids, mask = inputs["IDS"], inputs["MASK"]
        assert (ids[~mask] == -1).all()
        time.sleep(0.02)
        rows, length = ids.shape
        return {
            "TWICE": 2 * ids,
            "SUM": np.where(mask, ids, 0).sum(axis=1, keepdims=True),
            "SEEN": np.full((rows, 2), (rows, length), np.int64),
        }

    def unload(self):
        pass
"""


def test_r4_answers_are_as_long_as_their_requests_and_batches_are_bounded_by_cost(
    start_server: Callable[..., Server], tmp_path: Path, front: str
) -> None:
    repository = tmp_path / "models"
    write_model(repository, "lengths", CONFIG, MODEL)
    server = start_server(repository, f"--front={front}", "--replicas=1")
    lengths = [1, 3, 8, 9, 20, 32, 33, 5] * 12
    with Client(server.address) as client, ThreadPoolExecutor(32) as pool:

        def ask(length: int) -> tuple[int, int]:
            ids = np.arange(1, length + 1, dtype=np.int64)[None] * length
            answer = client.infer("lengths", {"IDS": ids, "MASK": np.ones_like(ids, np.bool_)})
            np.testing.assert_array_equal(answer["TWICE"], 2 * ids)
            assert answer["SUM"].tolist() == [[int(ids.sum())]]
            rows, padded = answer["SEEN"][0].tolist()
            return rows, padded

        seen = list(pool.map(ask, lengths))
    for length, (rows, padded) in zip(lengths, seen, strict=True):
        assert padded == (8 if length <= 8 else max(32, length))
        assert rows == 1 or rows * padded <= 64
    assert max(rows for rows, padded in seen if padded == 8) > 2
