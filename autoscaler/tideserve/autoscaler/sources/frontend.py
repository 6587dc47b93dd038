"""The frontend as a source: its Watch stream, and the calls that act on it.

`FrontendWatch` owns one thread, which holds the latest snapshot; `FrontendControl` makes
calls from the loop's thread. Both prove themselves with the token and this autoscaler's
generation (larger = newer); the frontend turns an older one away with FAILED_PRECONDITION.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

import grpc
from google.protobuf.message import Message

from tideserve.autoscaler.core.actions import Report
from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import ModelKey, Snapshot
from tideserve.autoscaler.core.load import Sample
from tideserve.autoscaler.errors import (
    CallRefusedError,
    FrontendError,
    FrontendRefusedError,
    FrontendUnavailableError,
    SupersededError,
)
from tideserve.autoscaler.sources.reading import EvenCounters, loads_of, pins_of, snapshot_of
from tideserve.v1 import control_pb2
from tideserve.v1.metadata import TOKEN_METADATA_KEY
from tideserve.v1.methods import CONTROL

_LOG: Final = logging.getLogger(__name__)
_FIRST_RETRY_S: Final = 0.05
_MAX_RETRY_S: Final = 1.0  # a restarted frontend is found again within 2 s
_MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
_PATHS: Final = {method.name: method.path for method in CONTROL}


@dataclass(frozen=True, slots=True)
class FrontendSettings:
    """How to reach the frontend. A snapshot older than `stale_after_s` is no data (S2).
    `http_address` is the autoscaler's own, told to whoever watches; empty: it has none."""

    address: str
    token: str
    generation: int
    interval_s: float = 0.25
    stale_after_s: float = 5.0
    call_timeout_s: float = 2.0
    http_address: str = ""


def open_channel(settings: FrontendSettings) -> grpc.Channel:
    """A channel that finds a restarted frontend again within a second."""
    return grpc.insecure_channel(
        settings.address,
        options=[
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


class _Cancellable(Protocol):
    def cancel(self) -> bool:
        """Ends a call."""


class FrontendWatch:
    """The latest snapshot, renewed by a thread from `start` to `close`.

    `on_change` is called from that thread after each snapshot and each end of the stream.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        settings: FrontendSettings,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._on_change = on_change
        self._clock = clock
        self._unix_clock = unix_clock
        self._call = channel.unary_stream(
            _PATHS["Watch"],
            request_serializer=control_pb2.WatchRequest.SerializeToString,
            response_deserializer=control_pb2.Snapshot.FromString,
        )
        self._lock = threading.Lock()  # guards the fields below
        self._stream: _Cancellable | None = None
        self._latest: tuple[Snapshot, float] | None = None
        self._sample = Sample(unix_s=0.0)
        self._counters = EvenCounters()
        self._fatal: FrontendError | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="frontend-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the stream and the thread."""
        self._closing.set()
        self._cancel()
        if self._thread.is_alive():
            self._thread.join()

    def latest(self) -> Snapshot | None:
        """The newest snapshot, None while the frontend is not heard of.

        Raises `SupersededError` and `FrontendRefusedError`, after which no snapshot comes.
        """
        with self._lock:
            if self._fatal is not None:
                raise self._fatal
            if self._latest is None:
                return None
            snapshot, came_s = self._latest
            if self._clock() - came_s <= self._settings.stale_after_s:
                return snapshot
            self._latest = None
        _LOG.warning("no snapshot for %g s: watching anew", self._settings.stale_after_s)
        self._cancel()
        return None

    def sample(self, snapshot: Snapshot, now_s: float) -> Sample:
        """The loads that came with the newest snapshot."""
        del snapshot, now_s
        with self._lock:
            return self._sample

    def _run(self) -> None:
        retry_s = _FIRST_RETRY_S
        while not self._closing.is_set():
            try:
                for message in self._open():
                    retry_s = _FIRST_RETRY_S
                    self._take(message)
                error: FrontendError = FrontendUnavailableError("the frontend ended the Watch")
            except grpc.RpcError as raised:
                error = error_of(raised, "Watch", self._settings.address)
            if self._closing.is_set():
                return
            if self._lose(error):
                return
            self._closing.wait(retry_s)
            retry_s = min(_MAX_RETRY_S, 2 * retry_s)

    def _open(self) -> Iterator[control_pb2.Snapshot]:
        request = control_pb2.WatchRequest(
            interval_s=self._settings.interval_s,
            autoscaler_generation=self._settings.generation,
        )
        stream = self._call(request, metadata=_metadata(self._settings))
        with self._lock:
            self._stream = cast("_Cancellable", stream)
        if self._closing.is_set():  # close() may have looked for the stream just before
            self._cancel()
        return cast("Iterator[control_pb2.Snapshot]", stream)

    def _take(self, message: control_pb2.Snapshot) -> None:
        snapshot, now_s = snapshot_of(message), self._clock()
        sample = Sample(
            unix_s=self._unix_clock(),
            loads=self._counters.even(loads_of(message, now_s), message.frontend_epoch),
            pins=pins_of(message),
        )
        with self._lock:
            was_away = self._latest is None
            self._latest = (snapshot, now_s)
            self._sample = sample
        if was_away:
            _LOG.info("watching the frontend at %s", self._settings.address)
        self._on_change()

    def _lose(self, error: FrontendError) -> bool:
        """Forgets the snapshot. True: there will not be another one."""
        fatal = isinstance(error, SupersededError | FrontendRefusedError)
        with self._lock:
            was_here = self._latest is not None
            self._latest = None
            self._stream = None
            if fatal:
                self._fatal = error
        if was_here and not fatal:
            _LOG.warning("lost the frontend, nothing changes until it is back: %s", error)
        self._on_change()
        return fatal

    def _cancel(self) -> None:
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.cancel()


class FrontendControl:
    """The calls that act. Each raises `FrontendError` or one of its kinds."""

    def __init__(self, channel: grpc.Channel, settings: FrontendSettings) -> None:
        self._channel = channel
        self._settings = settings

    def announce(self, replicas: Sequence[tuple[str, ModelKey | None]]) -> None:
        """Replica ids that will join, with the model version each is for; None: a standby."""
        announcements = [
            control_pb2.Announcement(replica_id=replica_id)
            if key is None
            else control_pb2.Announcement(
                replica_id=replica_id,
                model_name=key.name,
                model_version=key.version,
                generation=key.generation,
            )
            for replica_id, key in replicas
        ]
        self._call(
            "Announce",
            control_pb2.AnnounceRequest(
                autoscaler_generation=self._settings.generation, replicas=announcements
            ),
        )

    def report_exit(self, report: Report) -> None:
        """A replica ended."""
        self._call(
            "ReportExit",
            control_pb2.ReportExitRequest(
                autoscaler_generation=self._settings.generation,
                replica_id=report.replica_id,
                cause=report.cause,
                log_tail=report.log_tail,
                failed_starts=report.failed_starts,
                give_up_reason=report.give_up_reason,
            ),
        )

    def drain(self, replica_id: str) -> None:
        """The replica finishes what it holds and leaves."""
        self._call(
            "DrainReplica",
            control_pb2.DrainReplicaRequest(
                autoscaler_generation=self._settings.generation, replica_id=replica_id
            ),
        )

    def assign(self, replica_id: str, key: ModelKey) -> None:
        """A standby is to load this model version."""
        self._call(
            "AssignModel",
            control_pb2.AssignModelRequest(
                autoscaler_generation=self._settings.generation,
                replica_id=replica_id,
                model_name=key.name,
                model_version=key.version,
                generation=key.generation,
            ),
        )

    def report_decisions(self, decisions: Mapping[ModelKey, Decision]) -> None:
        """What is desired and why. An older frontend, which has no such call, refuses it."""
        told = [
            control_pb2.ModelDecision(
                model_name=key.name,
                model_version=key.version,
                generation=key.generation,
                decision=control_pb2.Decision(
                    desired=decision.desired,
                    reason=decision.reason,
                    limited_by=decision.limited_by or "",
                    inputs=decision.inputs,
                ),
            )
            for key, decision in decisions.items()
        ]
        request = control_pb2.ReportDecisionsRequest(
            autoscaler_generation=self._settings.generation,
            decisions=told,
            autoscaler_http=self._settings.http_address,
        )
        try:
            self._call("ReportDecisions", request)
        except FrontendRefusedError as error:
            cause = cast("grpc.Call", error.__cause__)
            if cause.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise CallRefusedError(str(error)) from error
            raise

    def _call(self, method: str, request: Message) -> None:
        """Nothing of an answer is used: a frontend that takes the call has done what it says."""
        call: grpc.UnaryUnaryMultiCallable[Message, bytes] = self._channel.unary_unary(
            _PATHS[method], request_serializer=type(request).SerializeToString
        )
        try:
            call(request, timeout=self._settings.call_timeout_s, metadata=_metadata(self._settings))
        except grpc.RpcError as error:
            raise error_of(error, method, self._settings.address) from error


def error_of(error: grpc.RpcError, method: str, address: str) -> FrontendError:
    """What a failed call means for the autoscaler."""
    call = cast("grpc.Call", error)
    code, details = call.code(), call.details()
    said = f"{method} at {address}: {code.name}: {details}"
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return SupersededError(f"a newer autoscaler acts for the frontend: {said}")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return FrontendRefusedError(
            f"the frontend does not accept the token; give the one it was started with: {said}"
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return FrontendRefusedError(f"expected a Tideserve frontend with a control plane: {said}")
    if code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    ):
        return FrontendUnavailableError(said)
    return CallRefusedError(said)


def _metadata(settings: FrontendSettings) -> tuple[tuple[str, str], ...]:
    return ((TOKEN_METADATA_KEY, settings.token),)
