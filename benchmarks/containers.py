"""`python -m benchmarks.containers [--image IMAGE]`: what a replica in a container costs a request,
when it dials the port and when it has the folder of the frontend's socket.

An identity model of FP32 vectors, one container, 64 callers by h2load, in turns; CPU of the
frontend and of the container's processes.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from benchmarks.cpu import cpu_seconds
from benchmarks.h2load import MANY_CALLERS, send
from benchmarks.measure import warm_up
from benchmarks.models.onnx_file import Graph
from benchmarks.process import ServerProcess, free_port
from benchmarks.wire import infer_target
from examples.demo.repository import bridge_address
from tideserve.client import Client
from tideserve.v1.inference_pb2 import ModelInferRequest

# Elements of FP32: 64 bytes, 600 KB.
SIZES: Final = {"tiny": 16, "600k": 150_000}
_MODEL: Final = "identity"
_NO_MARK: Final = "none"


@dataclass(frozen=True, slots=True)
class Served:
    """A server with one container, both by process id."""

    address: str
    frontend: int
    container: int

    def measure(self, elements: int, seconds: float) -> str:
        """A table's row: requests/s, CPU us a request of either."""
        target = infer_target(self.address, _request(elements))
        rate = warm_up(target, MANY_CALLERS, seconds)
        requests = max(MANY_CALLERS.count, round(rate * seconds))
        before = self._cpu_s()
        load = send(target, requests, MANY_CALLERS)
        used = [after - start for start, after in zip(before, self._cpu_s(), strict=True)]
        frontend_us, container_us = (seconds / requests * 1e6 for seconds in used)
        return (
            f"{load.requests_per_s:,.0f} | {frontend_us:,.0f} | {container_us:,.0f} | "
            f"{frontend_us + container_us:,.0f} |"
        )

    def _cpu_s(self) -> tuple[float, float]:
        return cpu_seconds(self.frontend, _NO_MARK), cpu_seconds(self.container, _NO_MARK)


def main(
    image: Annotated[str, typer.Option(help="The server's image.")] = "tideserve:cpu",
    seconds: Annotated[float, typer.Option(help="Of load, for each row.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="Of both ways in turn.")] = 2,
) -> None:
    """Measures and prints a table in Markdown."""
    typer.echo("| bytes | replica dials | requests/s | frontend us | container us | both us |")
    typer.echo("|---|---|---:|---:|---:|---:|")
    for size, elements in SIZES.items():
        for _ in range(rounds):
            for way, is_linked in (("the port", False), ("the folder's socket", True)):
                with serving(image, elements, is_linked=is_linked) as served:
                    typer.echo(f"| {size} | {way} | {served.measure(elements, seconds)}")


@contextmanager
def serving(image: str, elements: int, *, is_linked: bool) -> Iterator[Served]:
    """Until the end. Containers run as another user, who has to get at the models."""
    with tempfile.TemporaryDirectory(prefix="tideserve-containers-") as name:
        folder, port = Path(name), free_port()
        folder.chmod(0o755)
        graph, tensor = Graph(), ("FP32", [elements])
        graph.node("Identity", "IN", name="OUT")
        model = folder / "models" / _MODEL / "1" / "model.onnx"
        graph.write(model, {"IN": tensor}, {"OUT": tensor})
        file = folder / "autoscaler.yaml"
        file.write_text(
            f"launcher:\n  docker:\n    image: {image}\n    owner: {folder.name}\n"
            f"    frontend_address: {bridge_address()}:{port}\n"
            f"    models_source: {folder}/models\n"
            + (f"    link_source: {folder}/link\n" if is_linked else "")
            + f"models:\n  {_MODEL}: {{min: 1, max: 1}}\n"
        )
        process = ServerProcess(
            [
                *(
                    sys.executable,
                    "-m",
                    "tideserve.cli",
                    "serve",
                    str(folder / "models"),
                    "--host=0.0.0.0",
                ),
                *(f"--grpc-port={port}", "--http-port=0", f"--autoscaler={file}"),
                f"--link-folder={folder}/link",
            ],
            {},
            folder / "log",
        )
        process.start(lambda printed: "ready grpc=" in printed)
        address = f"127.0.0.1:{port}"
        try:
            with Client(address) as client:
                client.infer(_MODEL, {"IN": np.zeros((1, elements), np.float32)}, timeout_s=60)
            yield Served(address, process.pid, _container_pid(folder.name))
        finally:
            process.stop()


def _container_pid(owner: str) -> int:
    """Of its first process, as this machine sees it."""
    (container,) = _docker("ps", "--quiet", f"--filter=label=tideserve.owner={owner}").split()
    return int(_docker("inspect", "--format={{.State.Pid}}", container))


def _docker(*arguments: str) -> str:
    command = ["docker", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _request(elements: int) -> bytes:
    request = ModelInferRequest(model_name=_MODEL)
    request.inputs.add(name="IN", datatype="FP32", shape=(1, elements))
    request.raw_input_contents.append(np.zeros(elements, np.float32).tobytes())
    return request.SerializeToString()


if __name__ == "__main__":
    typer.run(main)
