"""Every method of the wire: its path, messages, shape and plane.

Servers and clients are built from this table instead of generated service classes,
because the client plane's service is called `inference.GRPCInferenceService` on the wire
while its messages live in `tideserve.v1` (two files that define
`inference.ModelInferRequest` cannot live in one process with tritonclient's).
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tideserve.v1 import control_pb2, inference_pb2, replica_pb2

INFERENCE_SERVICE: Final = "inference.GRPCInferenceService"
REPLICA_SERVICE: Final = "tideserve.v1.ReplicaService"
CONTROL_SERVICE: Final = "tideserve.v1.ControlService"


class Kind(Enum):
    """Which side streams."""

    UNARY = "unary"
    SERVER_STREAM = "server_stream"
    BIDI = "bidi"


@dataclass(frozen=True, slots=True)
class Method:
    """One method: `path` as in the HTTP/2 request, e.g. `/inference.GRPCInferenceService/ModelInfer`."""

    path: str
    request: type[Message]
    response: type[Message]
    kind: Kind

    @property
    def service(self) -> str:
        return self.path.split("/")[1]

    @property
    def name(self) -> str:
        return self.path.split("/")[2]


def methods_of(service: ServiceDescriptor, wire_name: str) -> tuple[Method, ...]:
    """The methods of a service under the name it has on the wire."""
    return tuple(_method(method, wire_name) for method in service.methods)


def _method(method: MethodDescriptor, wire_name: str) -> Method:
    if method.client_streaming:
        kind = Kind.BIDI
    elif method.server_streaming:
        kind = Kind.SERVER_STREAM
    else:
        kind = Kind.UNARY
    return Method(
        path=f"/{wire_name}/{method.name}",
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
        kind=kind,
    )


INFERENCE: Final = methods_of(
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"], INFERENCE_SERVICE
)
REPLICA: Final = methods_of(
    replica_pb2.DESCRIPTOR.services_by_name["ReplicaService"], REPLICA_SERVICE
)
CONTROL: Final = methods_of(
    control_pb2.DESCRIPTOR.services_by_name["ControlService"], CONTROL_SERVICE
)
ALL: Final = INFERENCE + REPLICA + CONTROL
BY_PATH: Final = {method.path: method for method in ALL}
