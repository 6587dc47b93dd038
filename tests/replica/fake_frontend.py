"""A frontend for one replica: just enough of the replica plane, driven by a test."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from queue import SimpleQueue
from time import monotonic
from typing import Any

import grpc

from tideserve.v1.metadata import TOKEN_METADATA_KEY
from tideserve.v1.model_config_pb2 import ModelConfig
from tideserve.v1.replica_pb2 import (
    Arena,
    Assign,
    BeatRequest,
    BeatResponse,
    Command,
    Drain,
    ExchangeRequest,
    ExchangeResponse,
    JoinRequest,
    Lease,
    Outcome,
    Stop,
    Welcome,
)

TOKEN = "secret"
_SERVICE = "tideserve.v1.ReplicaService"


class FakeFrontend:
    """Owns a gRPC server, the commands and leases it will give, and what came in."""

    def __init__(
        self,
        *,
        port: int = 0,
        epoch: int = 7,
        announced: bool = True,
        max_message_bytes: int = 1 << 20,
        assign: Assign | None = None,
        arena: Arena | None = None,
    ) -> None:
        self.epoch = epoch
        self.announced = announced
        self.assign = assign
        self.arena = arena
        self.max_message_bytes = max_message_bytes
        self.joins: list[JoinRequest] = []
        self.beats: list[BeatRequest] = []
        self.exchanges: list[ExchangeRequest] = []
        self.outcomes: list[Outcome] = []
        self.refuse_exchanges = False
        self.refuse_beats = False
        self.break_next = 0
        self.left = threading.Event()
        self._leases: deque[Lease] = deque()
        self._changed = threading.Condition()
        self._commands: SimpleQueue[Command | None] = SimpleQueue()
        self._newest = 0
        self._answered: dict[int, ExchangeResponse] = {}
        self._draining = False
        self._stopped = False
        self._server = grpc.server(
            futures.ThreadPoolExecutor(12), options=[("grpc.so_reuseport", 0)]
        )
        self._server.add_generic_rpc_handlers((_Handler(self),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    # --- what a test does ---------------------------------------------------------------------

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def give(self, lease: Lease) -> None:
        """Hands a lease to the next Exchange that wants one."""
        with self._changed:
            self._leases.append(lease)
            self._changed.notify_all()

    def drain(self) -> None:
        with self._changed:
            self._draining = True
            self._changed.notify_all()
        self._commands.put(Command(drain=Drain()))

    def stop_replica(self) -> None:
        self._commands.put(Command(stop=Stop(reason="the test")))

    def break_life_line(self) -> None:
        self._commands.put(None)

    def wait_for(
        self, what: Callable[[], bool], timeout_s: float = 20.0, poll_s: float | None = None
    ) -> None:
        """Until `what` holds; fails the test otherwise. `poll_s` for what no call tells."""
        deadline_s = monotonic() + timeout_s
        with self._changed:
            while not what():
                left_s = deadline_s - monotonic()
                assert left_s > 0, "it did not happen"
                self._changed.wait(left_s if poll_s is None else min(poll_s, left_s))

    def news(self, kind: str) -> list[Any]:
        """What beats told of this kind: loading, ready, load_failed."""
        return [getattr(beat, kind) for beat in self.beats if beat.WhichOneof("news") == kind]

    def close(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._commands.put(None)
        self._server.stop(0).wait()

    # --- the three methods --------------------------------------------------------------------

    def join(self, request: JoinRequest, context: grpc.ServicerContext) -> Iterator[Command]:
        self._authenticate(context)
        with self._changed:
            self.joins.append(request)
            self._changed.notify_all()
        if not self.announced:
            context.abort(grpc.StatusCode.NOT_FOUND, "not announced")
        context.add_callback(self.left.set)
        yield Command(
            welcome=Welcome(
                epoch=self.epoch,
                beat_interval_s=0.05,
                max_message_bytes=self.max_message_bytes,
                arena=self.arena,
            )
        )
        if self.assign is not None:
            yield Command(assign=self.assign)
        while (command := self._commands.get()) is not None:
            yield command
        if not self._stopped:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the life line broke")

    def beat(self, request: BeatRequest, context: grpc.ServicerContext) -> BeatResponse:
        self._authenticate(context)
        if self.refuse_beats or request.epoch != self.epoch:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this life is over")
        with self._changed:
            self.beats.append(request)
            self._changed.notify_all()
        return BeatResponse()

    def exchange(self, request: ExchangeRequest, context: grpc.ServicerContext) -> ExchangeResponse:
        self._authenticate(context)
        with self._changed:
            self.exchanges.append(request)
            if self.refuse_exchanges or request.epoch != self.epoch:
                self._changed.notify_all()
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this life is over")
            if request.sequence < self._newest:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "out of order")
            if request.sequence > self._newest:
                self._newest = request.sequence
                self.outcomes += request.outcomes
            self._changed.notify_all()
            if self.break_next:
                self.break_next -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken for the test")
            return self._answer(request)

    def _answer(self, request: ExchangeRequest) -> ExchangeResponse:
        repeated = self._answered.get(request.sequence)
        if repeated is not None:
            return repeated
        answer = ExchangeResponse(sequence=request.sequence)
        if request.want:
            self._changed.wait_for(
                lambda: (
                    bool(self._leases)
                    or self._newest != request.sequence
                    or self._draining
                    or self._stopped
                ),
                10.0,
            )
            if self._newest == request.sequence and self._leases:
                answer.lease.CopyFrom(self._leases.popleft())
                self._answered[request.sequence] = answer
        answer.drain = self._draining
        return answer

    def _authenticate(self, context: grpc.ServicerContext) -> None:
        if dict(context.invocation_metadata()).get(TOKEN_METADATA_KEY) != TOKEN:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "expected the token")


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, frontend: FakeFrontend) -> None:
        self._methods = {
            f"/{_SERVICE}/Join": grpc.unary_stream_rpc_method_handler(
                frontend.join, JoinRequest.FromString, Command.SerializeToString
            ),
            f"/{_SERVICE}/Beat": grpc.unary_unary_rpc_method_handler(
                frontend.beat, BeatRequest.FromString, BeatResponse.SerializeToString
            ),
            f"/{_SERVICE}/Exchange": grpc.unary_unary_rpc_method_handler(
                frontend.exchange, ExchangeRequest.FromString, ExchangeResponse.SerializeToString
            ),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._methods.get(handler_call_details.method)


def assignment(path: str, config: ModelConfig | None = None, **fields: Any) -> Assign:
    """Version 1 of a model in `path`."""
    return Assign(
        model_name=fields.pop("model_name", "m"),
        model_version=1,
        generation=fields.pop("generation", "g1"),
        model_path=path,
        config=config,
    )
