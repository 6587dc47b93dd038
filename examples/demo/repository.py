"""The demo's model repository and autoscaler file, written into a folder of its own."""

import ipaddress
import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
ONNX_MODEL: Final = HERE.parent / "models" / "digits_onnx" / "1" / "model.onnx"
MODEL: Final = "digits_standin"
TARGET_S: Final = 0.1
_CONFIG: Final = """\
name: "digits_standin"
backend: "python"
max_batch_size: 8
input [ { name: "image" data_type: TYPE_FP32 dims: [ 1, 8, 8 ] } ]
output [ { name: "scores" data_type: TYPE_FP32 dims: [ 10 ] } ]
dynamic_batching { }
parameters { key: "a_ms" value { string_value: "10" } }
parameters { key: "c_ms" value { string_value: "20" } }
"""
AUTOSCALER: Final = f"""\
# One model, from none to eight replicas; a replica that joins without a model stands by.
standby: 1
models:
  {MODEL}:
    min: 0
    max: 8
    queue_latency: {{quantile: 0.95, target: 100ms}}
    latency_target: 400ms
    hold: 4s
    idle: 4s
"""


def write(folder: Path) -> tuple[Path, Path]:
    """The repository and the autoscaler file."""
    repository = folder / "models"
    version = repository / MODEL / "1"
    version.mkdir(parents=True)
    (repository / MODEL / "config.pbtxt").write_text(_CONFIG, encoding="utf-8")
    shutil.copy(HERE / "model.py", version / "model.py")
    shutil.copy(ONNX_MODEL, version / "model.onnx")
    autoscaler = folder / "autoscaler.yaml"
    autoscaler.write_text(AUTOSCALER, encoding="utf-8")
    return repository, autoscaler


def add_containers(image: str, folder: Path, models: Path, autoscaler: Path) -> list[str]:
    """Has the file start replicas as containers that are made ahead; the options of `serve` that
    go with it."""
    folder.chmod(0o755)  # containers run as another user
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    with autoscaler.open("a", encoding="utf-8") as file:
        file.write(f"""\
launcher:
  docker:
    image: {image}
    frontend_address: {bridge_address()}:{port}
    models_source: {models}
prepared: 2
""")
    return ["--host=0.0.0.0", f"--grpc-port={port}"]


def bridge_address() -> str:
    """This machine, as containers of the engine's default network reach it."""
    command = ["docker", "network", "inspect", "bridge", "-f", "{{json .IPAM.Config}}"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    network: dict[str, str] = json.loads(found)[0]
    # Not every engine names the gateway of its bridge; it is the first address.
    return network.get("Gateway") or str(next(ipaddress.ip_network(network["Subnet"]).hosts()))
