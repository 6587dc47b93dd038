"""Server reflection: clients without our .proto files ask for them.

The protocol's messages are shown under their real names (package `inference`), from a
descriptor pool of its own: in the process's pool they live in `tideserve.v1`.
"""

from typing import Any, Final

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.reflection import ReflectionServicer
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from tideserve.server.service.messages import parse
from tideserve.v1 import control_pb2, inference_pb2, model_config_pb2, replica_pb2
from tideserve.v1.methods import CONTROL_SERVICE, INFERENCE_SERVICE, REPLICA_SERVICE, Kind

# v1 differs from v1alpha in its name only; clients try one and then the other.
REFLECTION_PATHS: Final = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    for version in ("v1", "v1alpha")
)
REFLECTION_METHODS: Final[list[tuple[str, Kind]]] = [(path, Kind.BIDI) for path in REFLECTION_PATHS]
_SERVICES: Final = (
    INFERENCE_SERVICE,
    REPLICA_SERVICE,
    CONTROL_SERVICE,
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
_OUR_PACKAGE: Final = "tideserve.v1"
_WIRE_PACKAGE: Final = "inference"


class ReflectionService:
    """Owns the pool that reflection shows."""

    def __init__(self) -> None:
        pool: Any = DescriptorPool()
        for module, renamed in (
            (health_pb2, False),
            # The replica plane's messages use ModelConfig under its own name, the client
            # plane's under the protocol's: two files, both there.
            (model_config_pb2, False),
            (replica_pb2, False),
            (control_pb2, False),
            (model_config_pb2, True),
            (inference_pb2, True),
        ):
            file = FileDescriptorProto()
            module.DESCRIPTOR.CopyToProto(file)
            shown = _renamed(file) if renamed else file
            pool.AddSerializedFile(shown.SerializeToString())
        self._servicer = ReflectionServicer(_SERVICES, pool=pool)

    def answer(self, payload: bytes) -> bytes:
        """One message of a reflection call. Raises `InvalidRequestError`."""
        request = parse(ServerReflectionRequest, payload)
        (response,) = self._servicer.ServerReflectionInfo(iter([request]), None)
        answer: bytes = response.SerializeToString()
        return answer


def _renamed(file: FileDescriptorProto) -> FileDescriptorProto:
    """The file as if it were written in the protocol's own package."""
    # Text-wise: type references are fully qualified, and nothing else holds the name.
    text = str(file).replace(f".{_OUR_PACKAGE}.", f".{_WIRE_PACKAGE}.")
    text = text.replace("tideserve/v1/", "inference/").replace(_OUR_PACKAGE, _WIRE_PACKAGE)
    return text_format.Parse(text, FileDescriptorProto())
