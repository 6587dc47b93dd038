"""Server reflection: clients without our .proto files ask for them.

The protocol's messages are shown under their real names (package `inference`), from a
descriptor pool of its own: in the process's pool they live in `tideserve.v1`.
"""

from typing import Any, Final

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
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
Names = tuple[tuple[str, str], ...]
# A package and its folder as they are, and as they are shown.
_ON_THE_WIRE: Final = (("tideserve.v1", "inference"), ("tideserve/v1/", "inference/"))
_AS_V1: Final = (("reflection.v1alpha", "reflection.v1"), ("reflection/v1alpha/", "reflection/v1/"))


class ReflectionService:
    """Owns the pool that reflection shows. It is made at the first question, which most servers
    are never asked: it and grpcio, whose servicer answers, take some 25 MB."""

    def __init__(self) -> None:
        self._servicer: Any = None

    def answer(self, payload: bytes) -> bytes:
        """One message of a reflection call. Raises `InvalidRequestError`."""
        request = parse(ServerReflectionRequest, payload)
        if self._servicer is None:
            self._servicer = self._make_servicer()
        (response,) = self._servicer.ServerReflectionInfo(iter([request]), None)
        answer: bytes = response.SerializeToString()
        return answer

    def _make_servicer(self) -> Any:
        from grpc_reflection.v1alpha.reflection import ReflectionServicer

        pool: Any = DescriptorPool()
        for module, names in (
            (health_pb2, ()),
            (reflection_pb2, ()),
            (reflection_pb2, _AS_V1),
            # The replica plane's messages use ModelConfig under its own name, the client
            # plane's under the protocol's: two files, both there.
            (model_config_pb2, ()),
            (replica_pb2, ()),
            (control_pb2, ()),
            (model_config_pb2, _ON_THE_WIRE),
            (inference_pb2, _ON_THE_WIRE),
        ):
            file = FileDescriptorProto()
            module.DESCRIPTOR.CopyToProto(file)
            pool.AddSerializedFile(_renamed(file, names).SerializeToString())
        return ReflectionServicer(_SERVICES, pool=pool)


def _renamed(file: FileDescriptorProto, names: Names) -> FileDescriptorProto:
    """The file as if it were written in another package."""
    # Text-wise: type references are fully qualified, and nothing else holds the name.
    text = str(file)
    for name, shown in names:
        text = text.replace(name, shown)
    return text_format.Parse(text, FileDescriptorProto())
