"""Triton's own server, from the wheel of nvidia-pytriton, with its Python backend.

The wheel has no ONNX backend, so a model that computes is a model.py that calls ONNX Runtime on
the whole batch. The stub is Python inside a Triton program: it finds its packages through the
first `python3` on PATH, and a numpy newer than 1.26 there makes it answer OK with empty
tensors, which is why answers are checked and its environment is its own.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import grpc

from benchmarks.errors import NotInstalledError
from benchmarks.models.repository import model_file
from benchmarks.peers.setup import Setup
from benchmarks.process import ServerProcess, free_port
from benchmarks.wire import GrpcWire, Wire
from benchmarks.workloads import Feed, Tensor, Workload
from tideserve.v1.inference_pb2 import ServerReadyRequest, ServerReadyResponse

ENVIRONMENT: Final = Path(__file__).resolve().parents[2] / ".cache" / "bench-triton"
_MODEL_SOURCES: Final = Path(__file__).resolve().parents[1] / "triton_models"
_READY_PATH: Final = "/inference.GRPCInferenceService/ServerReady"
_ASK_PYTHON: Final = (
    "import sys, sysconfig;"
    "print(sysconfig.get_path('platlib'), sysconfig.get_config_var('LIBDIR'),"
    " '%d.%d' % sys.version_info[:2], sep='\\n')"
)


def is_installed() -> bool:
    return any(ENVIRONMENT.glob("lib/python3*/site-packages/pytriton/tritonserver/bin"))


class Triton:
    """tritonserver with dynamic batching, gRPC only."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        count = f"{setup.instances} {'instance' if setup.instances == 1 else 'instances'}"
        self.name = f"Triton, {count}, {setup.queue_delay_us} us delay"
        self.instances = setup.instances
        self._setup = setup
        self._folder = folder / f"triton-{setup.instances}-{setup.queue_delay_us}"
        self._process: ServerProcess | None = None
        self.address = ""

    def start(self, workload: Workload) -> None:
        """Raises NotInstalledError without the wheel, ServerFailedError when it fails."""
        if not is_installed():
            raise NotInstalledError(f"no nvidia-pytriton in {ENVIRONMENT}: make bench-setup")
        python = ENVIRONMENT / "bin" / "python"
        asked = subprocess.run(
            [python, "-c", _ASK_PYTHON], capture_output=True, text=True, check=True
        )
        packages, library, version = asked.stdout.split()
        server = Path(packages) / "pytriton" / "tritonserver"
        self._lay_out(server, version, workload)
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        arguments = [
            str(server / "bin" / "tritonserver"),
            f"--model-repository={self._folder / 'models'}",
            f"--backend-directory={self._folder / 'backends'}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={port}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--log-verbose=0",
        ]
        environment = {
            "LD_LIBRARY_PATH": f"{Path(packages) / 'nvidia_pytriton.libs'}:{library}",
            "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
        }
        self._process = ServerProcess(arguments, environment, self._folder / "log")
        self._process.start(lambda _: _is_ready(self.address))

    def wire(self, workload: Workload) -> Wire:
        return GrpcWire(self.address, workload)

    def check(self, workload: Workload, feed: Feed, response: bytes) -> None:
        workload.check(feed, response)

    def cpu_seconds(self) -> float:
        assert self._process is not None
        return self._process.cpu_seconds()

    def pss_bytes(self) -> int:
        assert self._process is not None
        return self._process.pss_bytes()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def _lay_out(self, server: Path, version: str, workload: Workload) -> None:
        """Writes the backend folder (the stub must lie beside the backend) and the model."""
        shutil.rmtree(self._folder, ignore_errors=True)
        backend = self._folder / "backends" / "python"
        shutil.copytree(server / "backends" / "python", backend)
        stub = "triton_python_backend_stub"
        shutil.copy2(server / "python_backend_stubs" / version / stub, backend / stub)
        folder = self._folder / "models" / workload.model
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(config(workload, self._setup))
        source = "identity.py" if workload.exact else "onnx_runtime.py"
        shutil.copy2(_MODEL_SOURCES / source, folder / "1" / "model.py")
        if not workload.exact:
            shutil.copy2(model_file(workload.model), folder / "1" / "model.onnx")


def config(workload: Workload, setup: Setup) -> str:
    """The model's config.pbtxt."""
    return (
        'backend: "python"\n'
        f"max_batch_size: {workload.max_batch_rows}\n"
        + "".join(f"input {_tensor(tensor)}\n" for tensor in workload.inputs)
        + f"output {_tensor(workload.output)}\n"
        f"dynamic_batching {{ max_queue_delay_microseconds: {setup.queue_delay_us} }}\n"
        f"instance_group {{ count: {setup.instances} kind: KIND_CPU }}\n"
    )


def _tensor(tensor: Tensor) -> str:
    dims = ", ".join(map(str, tensor.dims))
    return f'{{ name: "{tensor.name}" data_type: TYPE_{tensor.datatype} dims: [ {dims} ] }}'


def _is_ready(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(
            _READY_PATH,
            request_serializer=ServerReadyRequest.SerializeToString,
            response_deserializer=ServerReadyResponse.FromString,
        )
        try:
            answer: ServerReadyResponse = ask(ServerReadyRequest(), timeout=1.0)
        except grpc.RpcError:
            return False
        return answer.ready
