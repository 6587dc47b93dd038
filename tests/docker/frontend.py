"""A frontend process on this machine, as a test and its containers reach it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from tests.autoscaler.waiting import eventually
from tideserve.autoscaler.core.fleet import ModelKey
from tideserve.v1.control_pb2 import (
    Announcement,
    AnnounceRequest,
    AnnounceResponse,
    DrainReplicaRequest,
    DrainReplicaResponse,
    ReplicaSnapshot,
    Snapshot,
    WatchRequest,
)
from tideserve.v1.metadata import TOKEN_METADATA_KEY
from tideserve.v1.methods import CONTROL_SERVICE

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
TOKEN = "a token of the docker tests"
_GENERATION = 1
_METADATA = ((TOKEN_METADATA_KEY, TOKEN),)


class Frontend:
    """Owns one process, and plays the autoscaler to it."""

    def __init__(self, state: Path) -> None:
        self.port = 0
        self._state = state
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._state.mkdir(mode=0o700)
        with (self._state / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.docker.frontend_alone",
                    str(EXAMPLES),
                    str(self._state),
                ],
                cwd=Path(__file__).parents[2],
                env={**os.environ, "TIDESERVE_TOKEN": TOKEN},
                stderr=log,
                start_new_session=True,
            )
        port = self._state / "port"
        eventually(lambda: port.exists() or self._process_ended(), timeout_s=30)
        assert port.exists(), (self._state / "log").read_text()
        self.port = int(port.read_text())
        self._channel = grpc.insecure_channel(self.address)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def key_of(self, model: str) -> ModelKey:
        """Of the version that it wants replicas for."""
        for shown in self.snapshot().models:
            if shown.name == model and shown.wanted:
                return ModelKey(shown.name, shown.version, shown.generation)
        raise AssertionError(f"the frontend does not want model {model}")

    def announce(self, replica_id: str, key: ModelKey) -> None:
        announcement = Announcement(
            replica_id=replica_id,
            model_name=key.name,
            model_version=key.version,
            generation=key.generation,
        )
        assert self._channel is not None
        self._channel.unary_unary(
            f"/{CONTROL_SERVICE}/Announce",
            request_serializer=AnnounceRequest.SerializeToString,
            response_deserializer=AnnounceResponse.FromString,
        )(
            AnnounceRequest(autoscaler_generation=_GENERATION, replicas=[announcement]),
            metadata=_METADATA,
            timeout=10,
        )

    def drain(self, replica_id: str) -> None:
        assert self._channel is not None
        self._channel.unary_unary(
            f"/{CONTROL_SERVICE}/DrainReplica",
            request_serializer=DrainReplicaRequest.SerializeToString,
            response_deserializer=DrainReplicaResponse.FromString,
        )(
            DrainReplicaRequest(autoscaler_generation=_GENERATION, replica_id=replica_id),
            metadata=_METADATA,
            timeout=10,
        )

    def snapshot(self) -> Snapshot:
        with self._snapshots(timeout_s=10) as snapshots:
            return next(snapshots)

    def wait_for(self, replica_id: str, state: int, timeout_s: float = 30.0) -> ReplicaSnapshot:
        """The replica once it is in that state; woken by the frontend, not by a clock."""
        with self._snapshots(timeout_s) as snapshots:
            for snapshot in snapshots:
                for replica in snapshot.replicas:
                    if replica.id == replica_id and replica.state == state:
                        return replica
        raise AssertionError("the frontend ended the watch")

    @contextmanager
    def _snapshots(self, timeout_s: float) -> Iterator[Iterator[Snapshot]]:
        assert self._channel is not None
        call = self._channel.unary_stream(
            f"/{CONTROL_SERVICE}/Watch",
            request_serializer=WatchRequest.SerializeToString,
            response_deserializer=Snapshot.FromString,
        )(WatchRequest(), metadata=_METADATA, timeout=timeout_s)
        try:
            yield iter(call)
        finally:
            call.cancel()

    def _process_ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None
