"""A model that answers the large tensors it is sent, and what a server says of its shared memory."""

import contextlib
import os
from pathlib import Path
from urllib.request import urlopen

from tests.e2e.model_folder import write_model
from tests.e2e.server import Server

NAME = "large"
# Large enough for the client to put it into a region.
ELEMENTS = 70_000
CONFIG = f"""
backend: "python"
max_batch_size: 4
input {{ name: "IN" data_type: TYPE_FP32 dims: [ {ELEMENTS} ] }}
output {{ name: "OUT" data_type: TYPE_FP32 dims: [ {ELEMENTS} ] }}
parameters {{ key: "tideserve.retryable" value {{ string_value: "true" }} }}
"""
IDENTITY = """
import time

class Model:
    def load(self, context):
        pass

    def infer(self, inputs):
        time.sleep(0.002)
        return {"OUT": inputs["IN"]}

    def unload(self):
        pass
"""


def write(repository: Path) -> None:
    """Adds it."""
    write_model(repository, NAME, CONFIG, IDENTITY)


def arena_bytes(server: Server) -> tuple[float, float]:
    """Replicas that share memory, and what leases take of it."""
    with urlopen(f"http://127.0.0.1:{server.http_port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    values = dict(line.split() for line in lines if line.startswith("tideserve_arena"))
    return float(values["tideserve_arenas"]), float(values["tideserve_arena_used_bytes"])


def arenas_open(server: Server) -> int:
    """Files of shared memory that the frontend has open."""
    found = 0
    for link in Path(f"/proc/{server.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += "tideserve-arena" in os.readlink(link)  # noqa: PTH115 - it names no file
    return found
