"""The synchronous client."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tideserve.client import operations, views
from tideserve.client.connection import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    ChannelOption,
    TlsOptions,
    checked_timeout_s,
    connection_of,
)
from tideserve.client.errors import Unavailable
from tideserve.client.inference import InferOptions, Parameter, encoded
from tideserve.client.retry import NO_RETRY, RetryPolicy
from tideserve.client.shared_inference import SharedInference
from tideserve.client.shared_segments import SharedSegments
from tideserve.client.stream import InferStream
from tideserve.client.stream_order import StreamResult
from tideserve.client.transport import SystemWaits, Transport, Waits

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from tideserve.client.tensors import Array


class Client:
    """A client of one server. Any number of threads may share it; a context manager.

    `timeout_s` is the deadline of every unary call that gives none of its own, over all its
    attempts; `math.inf` is none. The constructor connects nothing: the first call does.
    `shared_memory`: whether large tensors may go through it to a server on this machine.
    `token` is for the control plane (`replicas`, `status`, `scale`) and travels with its calls only. Every
    method raises subclasses of `TideserveClientError`, `ClientClosed` after `close`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        tls: TlsOptions | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        channel_options: Sequence[ChannelOption] = (),
        waits: Waits | None = None,
        shared_memory: bool = True,
    ) -> None:
        self._timeout_s = checked_timeout_s(timeout_s, DEFAULT_TIMEOUT_S)
        self._transport = Transport(
            connection_of(address, token, tls, channel_options),
            retry or RetryPolicy(),
            waits or SystemWaits(),
        )
        self._segments = SharedSegments(self._transport, enabled=shared_memory)
        self._inference = SharedInference(self._transport, self._segments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; calls under way fail with `ClientClosed`. Idempotent."""
        self._segments.close()
        self._transport.close()

    # --- inference ---------------------------------------------------------------------

    def infer(
        self,
        model: str,
        inputs: "Mapping[str, ArrayLike]",
        *,
        version: str = "",
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
        queue_timeout_s: float | None = None,
        priority: int | None = None,
        request_id: str = "",
        parameters: Mapping[str, Parameter] | None = None,
    ) -> "dict[str, Array]":
        """The model's outputs by name; `outputs` asks for some of them only.

        Numeric results are read-only views of the response, BYTES are object arrays of bytes.
        `queue_timeout_s` bounds the wait in the server's queue (the parameter `timeout`).
        """
        options = InferOptions(version, outputs, priority, queue_timeout_s, request_id, parameters)
        return self._inference.infer(
            model,
            encoded(model, inputs, options),
            options,
            checked_timeout_s(timeout_s, self._timeout_s),
        )

    def stream(self, *, timeout_s: float | None = None, max_outstanding: int = 1024) -> InferStream:
        """A stream of requests and results; `timeout_s` bounds the whole of it (default: no
        bound), `max_outstanding` how many results may wait to be received."""
        deadline_s = None if timeout_s is None else checked_timeout_s(timeout_s, timeout_s)
        return InferStream(self._transport, self._segments, deadline_s, max_outstanding)

    def infer_stream(
        self,
        model: str,
        inputs: "Iterable[Mapping[str, ArrayLike]]",
        *,
        version: str = "",
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
        priority: int | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        max_outstanding: int = 32,
    ) -> Iterator[StreamResult]:
        """The results of all inputs, in order, over one stream.

        At most `max_outstanding` requests are sent ahead. The first request that fails ends
        it; to go on after one, use `stream`.
        """
        with self.stream(timeout_s=timeout_s, max_outstanding=max_outstanding) as stream:
            for tensors in inputs:
                while stream.ready() or stream.outstanding >= max_outstanding:
                    yield stream.receive()
                stream.send(
                    model,
                    tensors,
                    version=version,
                    outputs=outputs,
                    priority=priority,
                    parameters=parameters,
                )
            stream.finish()
            yield from stream

    # --- health ------------------------------------------------------------------------

    def is_live(self, *, timeout_s: float | None = None) -> bool:
        """Whether the server runs. A server that cannot be reached raises `Disconnected`."""
        return self._call(operations.server_live(), timeout_s)

    def is_ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether every model that must be ready is."""
        return self._call(operations.server_ready(), timeout_s)

    def is_healthy(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """What `grpc.health.v1` says of the server (SERVING as long as it takes calls), or of a
        model. Raises `NotFound` for a model that is not there."""
        return self._call(operations.health(service), timeout_s)

    def is_model_ready(
        self, model: str, version: str = "", *, timeout_s: float | None = None
    ) -> bool:
        """Whether a request sent now would be served."""
        return self._call(operations.model_ready(model, version), timeout_s)

    def wait_ready(self, timeout_s: float, model: str | None = None, version: str = "") -> None:
        """Returns once the server, or `model`, is ready; a server that cannot be reached yet
        is waited for. Raises `DeadlineExceeded` after `timeout_s`, `NotFound` for a model that
        a server that answers does not have."""
        operation = (
            operations.server_ready() if model is None else operations.model_ready(model, version)
        )

        def ready(left_s: float) -> bool:
            try:
                return self._transport.call(operation, left_s, NO_RETRY)
            except Unavailable:
                return False

        what = "the server" if model is None else f"model {model!r}"
        self._transport.poll(ready, checked_timeout_s(timeout_s, timeout_s), what)

    # --- metadata ----------------------------------------------------------------------

    def server_metadata(self, *, timeout_s: float | None = None) -> views.ServerMetadata:
        return self._call(operations.server_metadata(), timeout_s)

    def model_metadata(
        self, model: str, version: str = "", *, timeout_s: float | None = None
    ) -> views.ModelMetadata:
        return self._call(operations.model_metadata(model, version), timeout_s)

    def model_config(
        self, model: str, version: str = "", *, timeout_s: float | None = None
    ) -> views.ModelConfiguration:
        return self._call(operations.model_config(model, version), timeout_s)

    def statistics(
        self, model: str = "", version: str = "", *, timeout_s: float | None = None
    ) -> tuple[views.ModelStatistics, ...]:
        """Of one model, or of all."""
        return self._call(operations.statistics(model, version), timeout_s)

    def models(
        self, *, ready_only: bool = False, timeout_s: float | None = None
    ) -> tuple[views.ModelIndexEntry, ...]:
        """What is in the repository, with the state of each version."""
        return self._call(operations.models(ready_only), timeout_s)

    # --- control -----------------------------------------------------------------------

    def load(
        self,
        model: str,
        config: Mapping[str, Any] | str | None = None,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Loads a model, or reloads it; `config` (a mapping or JSON) overrides config.pbtxt."""
        self._call(operations.load(model, config), timeout_s)

    def unload(self, model: str, *, timeout_s: float | None = None) -> None:
        """Unloads a model: what was admitted is answered, later calls find nothing."""
        self._call(operations.unload(model), timeout_s)

    def replicas(self, *, timeout_s: float | None = None) -> tuple[views.ReplicaInfo, ...]:
        """The replicas there are. Needs the token."""
        return self._transport.first(
            operations.replicas(), checked_timeout_s(timeout_s, self._timeout_s)
        )

    def status(self, *, timeout_s: float | None = None) -> views.ServerStatus:
        """Models with what the autoscaler wants of them, and replicas. Needs the token."""
        return self._transport.first(
            operations.status(), checked_timeout_s(timeout_s, self._timeout_s)
        )

    def scale(
        self,
        model: str,
        replicas: int,
        *,
        duration_s: float,
        version: str = "",
        timeout_s: float | None = None,
    ) -> None:
        """Pins the replica count of a model (of all its versions by default) for so long, in
        place of what the autoscaler decides; 0 s ends the pin. Needs the token."""
        self._call(operations.scale(model, replicas, duration_s, version), timeout_s)

    def _call(
        self, operation: operations.Operation[operations.T], timeout_s: float | None
    ) -> operations.T:
        return self._transport.call(operation, checked_timeout_s(timeout_s, self._timeout_s))
