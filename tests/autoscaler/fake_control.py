"""An in-process frontend that has only the control plane, and knows no replica's word.

Replicas that are announced count as READY or STARTING as the test says; a reported exit
removes them. Calls are kept for tests to look at.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from tideserve.v1 import control_pb2
from tideserve.v1.metadata import TOKEN_METADATA_KEY
from tideserve.v1.methods import CONTROL, CONTROL_SERVICE, Kind

TOKEN = "right"
_END = None


class FakeControl:
    """A ControlService on a port of its own from construction to `stop`."""

    def __init__(self, port: int = 0, epoch: int = 1) -> None:
        self.lock = threading.Lock()
        self.calls: list[tuple[str, Any]] = []
        self.generation = 0
        self.snapshot = control_pb2.Snapshot(frontend_epoch=epoch)
        self.announced_state: control_pb2.ReplicaState = control_pb2.READY
        self.on_drain: Callable[[str], None] = lambda _: None
        self.fail_next: list[grpc.StatusCode] = []
        self.takes_decisions = True
        self._watchers: list[queue.SimpleQueue[control_pb2.Snapshot | None]] = []
        self._server = grpc.server(ThreadPoolExecutor(8))
        handlers = {}
        for method in CONTROL:
            behaviour = getattr(self, method.name)
            make = (
                grpc.unary_stream_rpc_method_handler
                if method.kind is Kind.SERVER_STREAM
                else grpc.unary_unary_rpc_method_handler
            )
            handlers[method.name] = make(
                behaviour,
                request_deserializer=method.request.FromString,
                response_serializer=method.response.SerializeToString,
            )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(CONTROL_SERVICE, handlers),)
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        with self.lock:
            for watcher in self._watchers:
                watcher.put(_END)
        self._server.stop(grace=0.2).wait()

    # --- for tests ------------------------------------------------------------------------

    def serve_model(self, name: str, *, wanted: bool = True, generation: str = "g1") -> None:
        with self.lock:
            self.snapshot.models.add(
                name=name, version=1, generation=generation, wanted=wanted, backend="python"
            )
        self.push()

    def push(self) -> None:
        with self.lock:
            for watcher in self._watchers:
                watcher.put(self._copy())

    def said(self, method: str) -> list[Any]:
        with self.lock:
            return [request for name, request in self.calls if name == method]

    # --- the service ----------------------------------------------------------------------

    def Watch(
        self, request: control_pb2.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[control_pb2.Snapshot]:
        self._admit("Watch", request, context)
        mine: queue.SimpleQueue[control_pb2.Snapshot | None] = queue.SimpleQueue()
        with self.lock:
            self._watchers.append(mine)
            mine.put(self._copy())
        while (snapshot := mine.get()) is not _END:
            yield snapshot

    def Announce(
        self, request: control_pb2.AnnounceRequest, context: grpc.ServicerContext
    ) -> control_pb2.AnnounceResponse:
        self._admit("Announce", request, context)
        with self.lock:
            for replica in request.replicas:
                self.snapshot.replicas.add(
                    id=replica.replica_id,
                    model=replica.model_name,
                    version=replica.model_version,
                    generation=replica.generation,
                    state=self.announced_state if replica.model_name else control_pb2.STANDBY,
                    pid=1,
                    was_ready=self.announced_state == control_pb2.READY,
                )
        self.push()
        return control_pb2.AnnounceResponse()

    def ReportExit(
        self, request: control_pb2.ReportExitRequest, context: grpc.ServicerContext
    ) -> control_pb2.ReportExitResponse:
        self._admit("ReportExit", request, context)
        self.remove(request.replica_id)
        return control_pb2.ReportExitResponse()

    def DrainReplica(
        self, request: control_pb2.DrainReplicaRequest, context: grpc.ServicerContext
    ) -> control_pb2.DrainReplicaResponse:
        self._admit("DrainReplica", request, context)
        with self.lock:
            for replica in self.snapshot.replicas:
                if replica.id == request.replica_id:
                    replica.state = control_pb2.DRAINING
        self.push()
        self.on_drain(request.replica_id)
        return control_pb2.DrainReplicaResponse()

    def AssignModel(
        self, request: control_pb2.AssignModelRequest, context: grpc.ServicerContext
    ) -> control_pb2.AssignModelResponse:
        self._admit("AssignModel", request, context)
        with self.lock:
            for replica in self.snapshot.replicas:
                if replica.id == request.replica_id:
                    replica.model, replica.version = request.model_name, request.model_version
                    replica.generation = request.generation
                    replica.state, replica.was_ready = control_pb2.READY, True
        self.push()
        return control_pb2.AssignModelResponse()

    def ReportDecisions(
        self, request: control_pb2.ReportDecisionsRequest, context: grpc.ServicerContext
    ) -> control_pb2.ReportDecisionsResponse:
        self._admit("ReportDecisions", request, context)
        if not self.takes_decisions:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        return control_pb2.ReportDecisionsResponse()

    def ScaleModel(
        self, request: control_pb2.ScaleModelRequest, context: grpc.ServicerContext
    ) -> control_pb2.ScaleModelResponse:
        raise AssertionError("people scale, not autoscalers")

    def remove(self, replica_id: str) -> None:
        with self.lock:
            kept = [replica for replica in self.snapshot.replicas if replica.id != replica_id]
            del self.snapshot.replicas[:]
            self.snapshot.replicas.extend(kept)
        self.push()

    def _admit(self, name: str, request: Any, context: grpc.ServicerContext) -> None:
        """What the frontend checks first: the token and the generation."""
        if (TOKEN_METADATA_KEY, TOKEN) not in [
            tuple(pair) for pair in context.invocation_metadata()
        ]:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "expected a token")
        with self.lock:
            if self.fail_next and name != "ReportDecisions":
                code = self.fail_next.pop(0)
            elif 0 < request.autoscaler_generation < self.generation:
                code = grpc.StatusCode.FAILED_PRECONDITION
            else:
                code = None
                self.generation = max(self.generation, request.autoscaler_generation)
                self.calls.append((name, request))
        if code is not None:
            context.abort(code, f"{name} failed by the test")

    def _copy(self) -> control_pb2.Snapshot:
        copy = control_pb2.Snapshot()
        copy.CopyFrom(self.snapshot)
        return copy
