"""A server of grpcio's with one method, for the replica's own calls."""

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc

PATH = "/a.Service/Method"


class _Only(grpc.GenericRpcHandler):
    def __init__(self, handler: "grpc.RpcMethodHandler[bytes, bytes]") -> None:
        self._handler = handler

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        assert details.method == PATH
        return self._handler


@contextmanager
def serving_method(
    handler: "grpc.RpcMethodHandler[bytes, bytes]", address: str, **options: int
) -> Iterator[str]:
    """The address at which it serves; `options` are grpc-core's channel arguments."""
    server = grpc.server(
        futures.ThreadPoolExecutor(4),
        options=[(f"grpc.{name}", value) for name, value in options.items()],
    )
    server.add_generic_rpc_handlers((_Only(handler),))
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield address if address.startswith("unix:") else f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
