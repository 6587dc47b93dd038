"""A front of lists: events in, answers out by call id; and a server around it."""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from tests.server.samples import make_config, make_found, make_request
from tideserve.replica.arena import open_arena
from tideserve.server.arena import Arenas
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.dispatcher import Dispatcher
from tideserve.server.front import Call, Cancel, Event, HalfClose, Metadata, Status, StreamMessage
from tideserve.server.mailbox import Mailbox
from tideserve.server.models import ModelKey, ModelTable
from tideserve.server.repository.found import FoundModel
from tideserve.server.service.control import ControlService
from tideserve.server.service.health import HealthService
from tideserve.server.service.inference import InferenceService
from tideserve.server.service.metadata import MetadataService
from tideserve.server.service.reflection import ReflectionService
from tideserve.server.service.replicas import ReplicaService
from tideserve.server.service.repository import ModelControl, RepositoryService
from tideserve.server.service.shared_memory import SharedMemoryService
from tideserve.server.services import Services
from tideserve.server.shared_regions import SharedRegions
from tideserve.server.stats import ModelStats
from tideserve.v1 import methods, replica_pb2
from tideserve.v1.metadata import TOKEN_METADATA_KEY
from tideserve.v1.replica_pb2 import BeatRequest, Command, ExchangeRequest, ExchangeResponse

MessageT = TypeVar("MessageT", bound=Message)

TOKEN = "0123456789abcdef"
INFER = f"/{methods.INFERENCE_SERVICE}/ModelInfer"
STREAM = f"/{methods.INFERENCE_SERVICE}/ModelStreamInfer"
OWN_PATHS = {method.path for method in methods.REPLICA + methods.CONTROL}


@dataclass
class FakeFront:
    """Keeps what was said to each call. A call in `gone` cannot be answered any more."""

    port: int = 8001
    events: list[Event] = field(default_factory=list)
    answers: dict[int, bytes] = field(default_factory=dict)
    failures: dict[int, Status] = field(default_factory=dict)
    sent: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    ended: list[int] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    timeouts_s: list[float] = field(default_factory=list)
    wakes: int = 0

    def start(self) -> None:
        """Nothing to bind."""

    def recv(self, max_events: int, timeout_s: float) -> list[Event]:
        self.timeouts_s.append(timeout_s)
        taken, self.events = self.events[:max_events], self.events[max_events:]
        return taken

    def respond(self, call_id: int, payload: bytes) -> bool:
        return self._finish(call_id, lambda: self.answers.__setitem__(call_id, payload))

    def respond_parts(self, call_id: int, parts: Sequence[bytes | memoryview]) -> bool:
        return self.respond(call_id, b"".join(parts))

    def fail(self, call_id: int, status: Status) -> bool:
        return self._finish(call_id, lambda: self.failures.__setitem__(call_id, status))

    def send(self, call_id: int, payload: bytes) -> bool:
        if call_id in self.gone:
            return False
        self.sent[call_id].append(payload)
        return True

    def send_file(self, call_id: int, fd: int) -> bool:
        return False

    def end(self, call_id: int) -> None:
        self._finish(call_id, lambda: self.ended.append(call_id))

    @property
    def has_unsent(self) -> bool:
        return False

    def wake(self) -> None:
        self.wakes += 1

    def close(self) -> None:
        """Nothing to end."""

    def _finish(self, call_id: int, keep: Callable[[], None]) -> bool:
        """A call ends once: a second end is a mistake of the server's."""
        if call_id in self.gone:
            return False
        assert call_id not in self.answers, f"call {call_id} was answered already"
        assert call_id not in self.failures, f"call {call_id} has failed already"
        assert call_id not in self.ended, f"call {call_id} has ended already"
        keep()
        return True


class FakeReplica:
    """One replica's side of the wire."""

    def __init__(self, world: "World", replica_id: str, key: ModelKey | None) -> None:
        self._world = world
        self.replica_id = replica_id
        self.sequence = 0
        world.scheduler.members.announce(replica_id, key, world.now_s)
        self.life_line = world.call(
            f"/{methods.REPLICA_SERVICE}/Join",
            replica_pb2.JoinRequest(replica_id=replica_id, pid=7),
        )
        welcome = self.commands()[0].welcome
        self.epoch = welcome.epoch
        self.arena = open_arena(welcome.arena) if welcome.HasField("arena") else None

    def commands(self) -> list[Command]:
        return [Command.FromString(it) for it in self._world.front.sent[self.life_line]]

    def beat(self, **news: object) -> int:
        return self._world.call(
            f"/{methods.REPLICA_SERVICE}/Beat",
            BeatRequest(replica_id=self.replica_id, epoch=self.epoch, **news),  # type: ignore[arg-type]
        )

    def ready(self) -> int:
        """Loads what it was assigned; one without a model says so all the same."""
        assigned = [it.assign.config for it in self.commands() if it.HasField("assign")]
        config = assigned[-1] if assigned else make_config()
        return self.beat(ready=replica_pb2.Ready(config=config))

    def exchange(
        self, *outcomes: replica_pb2.Outcome, want: bool = True, sequence: int | None = None
    ) -> int:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        return self._world.call(
            f"/{methods.REPLICA_SERVICE}/Exchange",
            ExchangeRequest(
                replica_id=self.replica_id,
                epoch=self.epoch,
                sequence=self.sequence,
                outcomes=outcomes,
                want=want,
                arena=self.arena is not None,
            ),
        )

    def lease(self, call_id: int) -> replica_pb2.Lease:
        return self._world.answer(call_id, ExchangeResponse).lease


def echo(lease: replica_pb2.Lease) -> replica_pb2.Outcome:
    """The outcome of a model that gives `IN` back as `OUT`."""
    (tensor,) = lease.inputs
    output = replica_pb2.Tensor(name="OUT", datatype="FP32", shape=tensor.shape, data=tensor.data)
    return replica_pb2.Outcome(
        lease_id=lease.lease_id, result=replica_pb2.BatchResult(outputs=[output]), infer_s=0.001
    )


def failure(lease: replica_pb2.Lease, kind: int, message: str = "boom") -> replica_pb2.Outcome:
    """The outcome of a batch that failed."""
    return replica_pb2.Outcome(
        lease_id=lease.lease_id,
        failure=replica_pb2.BatchFailure(kind=kind, message=message),  # type: ignore[arg-type]
    )


class World:
    """A whole frontend but for its sockets, with one model loading. `turn` is one turn."""

    def __init__(
        self,
        found: FoundModel | None = None,
        root: Path | None = None,
        control: ModelControl = ModelControl.NONE,
        arena_bytes: int = 0,
        regions: SharedRegions | None = None,
    ) -> None:
        self.now_s = 1000.0
        self.front = FakeFront()
        self.models = ModelTable()
        self.scheduler = Scheduler()
        self.mailbox = Mailbox(self.front)
        self.keys = sorted(self.models.load(found or make_found()))
        inference = InferenceService(self.models, self.scheduler, self.front, regions)
        self.arenas = Arenas(arena_bytes)
        replicas = ReplicaService(self.models, self.scheduler, self.front, 1 << 20, self.arenas)
        self.services = Services(
            inference=inference,
            replicas=replicas,
            control=ControlService(self.models, self.scheduler, replicas, self.front, 5),
            repository=RepositoryService(
                root or Path(tempfile.gettempdir()),
                control,
                self.models,
                self.front,
                self.mailbox.post,
            ),
            metadata=MetadataService(
                self.models,
                "1.0",
                self.models.all_ready,
                lambda: not inference.stopping,
                () if regions is None else ("system_shared_memory",),
            ),
            health=HealthService(self.models, lambda: not inference.stopping),
            reflection=ReflectionService(),
            shared_memory=SharedMemoryService(regions, self.front),
        )
        self.dispatcher = Dispatcher(
            self.front,
            self.scheduler,
            self.models,
            self.services,
            self.mailbox,
            TOKEN,
            lambda: self.now_s,
        )
        self._calls = 0

    @property
    def stats(self) -> ModelStats:
        return self.models.entries[self.keys[0]].stats

    def turn(self, *events: Event, after_s: float = 0.0) -> None:
        self.now_s += after_s
        self.front.events += events
        self.dispatcher.turn()

    def post(
        self,
        path: str,
        payload: bytes | Message = b"",
        *,
        time_left_s: float | None = None,
        metadata: Metadata | None = None,
        peer: str = "ipv4:127.0.0.1:1",
    ) -> int:
        """Puts a call among the events, with the token where one is needed; its id."""
        self._calls += 1
        if metadata is None:
            metadata = ((TOKEN_METADATA_KEY, TOKEN),) if path in OWN_PATHS else ()
        data = payload if isinstance(payload, bytes) else payload.SerializeToString()
        self.front.events.append(Call(self._calls, path, data, metadata, peer, time_left_s))
        return self._calls

    def call(
        self,
        path: str,
        payload: bytes | Message = b"",
        *,
        time_left_s: float | None = None,
        metadata: Metadata | None = None,
        peer: str = "ipv4:127.0.0.1:1",
    ) -> int:
        """A call and a turn."""
        call_id = self.post(path, payload, time_left_s=time_left_s, metadata=metadata, peer=peer)
        self.turn()
        return call_id

    def infer(
        self, rows: int = 1, *, time_left_s: float | None = None, request_id: str = ""
    ) -> int:
        return self.call(INFER, make_request(rows, request_id=request_id), time_left_s=time_left_s)

    def cancel(self, call_id: int) -> None:
        """The caller is gone."""
        self.front.gone.add(call_id)
        self.turn(Cancel(call_id))

    def message(self, call_id: int, payload: bytes) -> None:
        self.turn(StreamMessage(call_id, payload))

    def half_close(self, call_id: int) -> None:
        self.turn(HalfClose(call_id))

    def answer(self, call_id: int, kind: type[MessageT]) -> MessageT:
        assert call_id not in self.front.failures, self.front.failures[call_id]
        return kind.FromString(self.front.answers[call_id])

    def failed(self, call_id: int) -> Status:
        return self.front.failures[call_id]

    def is_open(self, call_id: int) -> bool:
        front = self.front
        return not (call_id in front.answers or call_id in front.failures or call_id in front.ended)

    def replica(self, replica_id: str = "r", *, ready: bool = True) -> FakeReplica:
        replica = FakeReplica(self, replica_id, self.keys[0])
        if ready:
            replica.ready()
        return replica
