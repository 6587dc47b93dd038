"""The calls that register and unregister shared memory, and say what is registered."""

import ipaddress
import socket
from collections.abc import Callable, Iterator
from typing import Final

from google.protobuf.message import Message

from tideserve.server.errors import PermissionDeniedError, UnsupportedError
from tideserve.server.front import Call, Front
from tideserve.server.service.messages import parse
from tideserve.server.shared_regions import SharedRegions
from tideserve.v1 import inference_pb2 as wire
from tideserve.v1.methods import INFERENCE_SERVICE

NO_SHARED_MEMORY: Final = (
    "this server has no system shared memory: send tensors in the request's raw contents, "
    "or start it with --shared-memory"
)


class SharedMemoryService:
    """Answers for the regions; None: there are none, and every call is refused."""

    def __init__(self, regions: SharedRegions | None, front: Front) -> None:
        self._regions = regions
        self._front = front

    def handlers(self) -> Iterator[tuple[str, Callable[[Call, float], None]]]:
        """Path and handler of each method here."""
        for name, handler in (
            ("Register", self._on_register),
            ("Unregister", self._on_unregister),
            ("Status", self._on_status),
        ):
            yield f"/{INFERENCE_SERVICE}/SystemSharedMemory{name}", handler

    def _on_register(self, call: Call, _: float) -> None:
        """Only for callers on this machine: a caller elsewhere has no segment here, and would
        otherwise read and write those of others."""
        request = parse(wire.SystemSharedMemoryRegisterRequest, call.payload)
        regions = self._shared()
        if not is_on_this_machine(call.peer):
            raise PermissionDeniedError(
                f"shared memory region '{request.name}': expected a caller on the server's own "
                f"machine, got {call.peer}: send tensors in the request's raw contents"
            )
        regions.register(request.name, request.key, request.offset, request.byte_size)
        self._answer(call, wire.SystemSharedMemoryRegisterResponse())

    def _on_unregister(self, call: Call, _: float) -> None:
        request = parse(wire.SystemSharedMemoryUnregisterRequest, call.payload)
        self._shared().unregister(request.name)
        self._answer(call, wire.SystemSharedMemoryUnregisterResponse())

    def _on_status(self, call: Call, _: float) -> None:
        request = parse(wire.SystemSharedMemoryStatusRequest, call.payload)
        response = wire.SystemSharedMemoryStatusResponse()
        for region in self._shared().status(request.name):
            response.regions[region.name].MergeFrom(
                wire.SystemSharedMemoryStatusResponse.RegionStatus(
                    name=region.name,
                    key=region.key,
                    offset=region.offset,
                    byte_size=region.byte_size,
                )
            )
        self._answer(call, response)

    def _shared(self) -> SharedRegions:
        if self._regions is None:
            raise UnsupportedError(NO_SHARED_MEMORY)
        return self._regions

    def _answer(self, call: Call, message: Message) -> None:
        self._front.respond(call.call_id, message.SerializeToString())


def is_on_this_machine(peer: str) -> bool:
    """Whether gRPC's name of a peer is a socket file, or an address of this machine: one that a
    socket could be bound to."""
    kind, _, rest = peer.partition(":")
    if kind in ("unix", "unix-abstract"):
        return True
    host = rest.replace("%5B", "[").replace("%5D", "]").rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return not address.is_unspecified
