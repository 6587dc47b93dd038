"""Join, Exchange and Beat: the replica plane's calls as events of the core."""

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tideserve.server.arena import Arena, Arenas
from tideserve.server.core.actions import (
    Action,
    AnswerEmpty,
    Dispatch,
    Fail,
    FailureCause,
    RefuseCall,
    ReplicaLeft,
    ReplicaLost,
    SendDrain,
)
from tideserve.server.core.leases import Lease as CoreLease
from tideserve.server.core.outcomes import BatchDone
from tideserve.server.core.outcomes import Outcome as CoreOutcome
from tideserve.server.core.replicas import Exchange, ReplicaState
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.errors import (
    Code,
    InvalidRequestError,
    ModelConfigError,
    NotFoundError,
    StaleCallError,
)
from tideserve.server.exchanges import OutcomeIn, read_exchange
from tideserve.server.front import Call, Front, Status
from tideserve.server.models import ModelKey, ModelState, ModelTable
from tideserve.server.repository.spec import is_complete
from tideserve.server.service.leases import encode_dispatch, read_outcome
from tideserve.server.service.messages import parse
from tideserve.v1 import replica_pb2
from tideserve.v1.replica_pb2 import (
    Assign,
    BeatRequest,
    BeatResponse,
    Command,
    Drain,
    ExchangeResponse,
    JoinRequest,
    LoadFailed,
    StartupPhase,
    Stop,
    Welcome,
)

logger = logging.getLogger(__name__)

BEAT_INTERVAL_S: Final = 0.25
# Of replicas that left: their launcher tells of their end a moment later.
MAX_LEFT: Final = 64
_BEAT_ANSWER: Final = BeatResponse().SerializeToString()


@dataclass(slots=True)
class ReplicaInfo:
    """What a replica told of itself, for people and for the autoscaler."""

    pid: int
    host: str
    device: str
    phase: str = "import"
    phases: list[StartupPhase] = field(default_factory=list)
    busy_s: float = 0.0
    memory_bytes: int = 0


class ReplicaService:
    """Owns the life lines and the Exchanges that wait, by call id."""

    def __init__(
        self,
        models: ModelTable,
        scheduler: Scheduler,
        front: Front,
        max_message_bytes: int,
        arenas: Arenas,
    ) -> None:
        self._models = models
        self._scheduler = scheduler
        self._front = front
        self._max_message_bytes = max_message_bytes
        self._arenas = arenas
        self._life_lines: dict[int, tuple[str, int]] = {}
        self._calls: dict[str, int] = {}
        self._exchanges: dict[int, str] = {}
        self.info: dict[str, ReplicaInfo] = {}
        self._left: deque[str] = deque(maxlen=MAX_LEFT)
        # Counts every change of a replica's state that somebody may wait for.
        self.changes = 0

    # --- calls in -------------------------------------------------------------------------

    def on_join(self, call: Call, now_s: float) -> None:
        """A replica opens its life line."""
        message = parse(JoinRequest, call.payload)
        replica_id = message.replica_id
        epoch = self._scheduler.members.join(replica_id, now_s, message.device)
        if epoch is None:
            replica = self._scheduler.members.get(replica_id)
            if replica is not None and replica.state is ReplicaState.DRAINING:
                # Drained before it joined. Turned away like an unknown one, it would ask again.
                stop = Command(stop=Stop(reason=replica.reason))
                self._front.send(call.call_id, stop.SerializeToString())
                self._front.end(call.call_id)
                return
            raise NotFoundError(
                f"replica '{replica_id}' was not announced, is lost, or has joined already"
            )
        self.changes += 1
        self._life_lines[call.call_id] = (replica_id, epoch)
        self._calls[replica_id] = call.call_id
        self.info[replica_id] = ReplicaInfo(message.pid, message.host, message.device)
        welcome = Welcome(
            epoch=epoch,
            beat_interval_s=BEAT_INTERVAL_S,
            max_message_bytes=self._max_message_bytes,
            arena=self._open_arena(call, replica_id, message.device),
        )
        self._command(replica_id, Command(welcome=welcome))
        replica = self._scheduler.members.get(replica_id)
        assert replica is not None
        if replica.state is ReplicaState.DRAINING:
            self._command(replica_id, Command(drain=Drain()))
        elif replica.model is not None:
            assert isinstance(replica.model, ModelKey)
            self.assign(replica_id, replica.model)

    def assign(self, replica_id: str, key: ModelKey) -> None:
        """Tells a joined replica which model version to load."""
        entry = self._models.entries.get(key)
        if entry is None:
            self.stop(replica_id, f"{key} is not served any more")
            return
        assign = Assign(
            model_name=key.name,
            model_version=key.version,
            generation=key.generation,
            model_path=entry.found.path,
            config=entry.config,
            config_complete=entry.config is not None and is_complete(entry.config),
        )
        self._command(replica_id, Command(assign=assign))

    def on_exchange(self, call: Call, now_s: float) -> list[Action]:
        """A replica hands outcomes back and asks for work."""
        message = read_exchange(call.payload)
        # As Exchange(...) does, in a fifth of its time.
        exchange = tuple.__new__(Exchange, (call.call_id, message.sequence, now_s))
        replica = self._scheduler.members.living(message.replica_id, message.epoch)
        held: Mapping[int, CoreLease] = {}
        arena = None
        if replica is not None:
            held = replica.leases
            if message.arena:
                self._arenas.on_mapped(message.replica_id)
            arena = self._arenas.of(message.replica_id)
        outcomes = [
            self._read_outcome(outcome, held, arena)
            for outcome in message.outcomes
            if not outcome.is_of_lost_device
        ]
        self._exchanges[call.call_id] = message.replica_id
        actions = self._scheduler.on_exchange(
            message.replica_id, message.epoch, exchange, outcomes, now_s, want=message.want
        )
        if len(outcomes) < len(message.outcomes) and replica is not None:
            # Its process ends after this; another replica computes what it held.
            actions += self._scheduler.on_lost(message.replica_id, now_s, "its device failed")
        return actions

    def on_beat(self, call: Call, now_s: float) -> list[Action]:
        """Proof of life, and news of the start-up."""
        message = parse(BeatRequest, call.payload)
        replica_id = message.replica_id
        if not self._scheduler.members.beat(replica_id, message.epoch, now_s):
            raise StaleCallError(f"this life of replica '{replica_id}' is over: join again")
        info = self.info[replica_id]
        info.busy_s = message.busy_s
        info.memory_bytes = message.memory_bytes
        self._tend_arena(replica_id, now_s)
        actions: list[Action] = []
        match message.WhichOneof("news"):
            case "loading":
                info.phase = message.loading.phase
                self.changes += 1
            case "ready":
                info.phases = list(message.ready.phases)
                info.phase = ""
                self._on_ready(replica_id, message, now_s)
            case "load_failed":
                info.phases = list(message.load_failed.phases)
                actions = self._on_load_failed(replica_id, message.load_failed, now_s)
        self._front.respond(call.call_id, _BEAT_ANSWER)
        return actions

    def on_cancel(self, call_id: int, now_s: float) -> list[Action]:
        """A life line broke, or an Exchange's caller is gone."""
        life = self._life_lines.pop(call_id, None)
        if life is not None:
            self._calls.pop(life[0], None)
            return self._scheduler.on_life_line_closed(*life, now_s)
        replica_id = self._exchanges.pop(call_id, None)
        if replica_id is not None:
            return self._scheduler.on_exchange_gone(replica_id, call_id, now_s)
        return []

    # --- the core's word ------------------------------------------------------------------

    def on_dispatch(self, action: Dispatch, now_s: float) -> list[Action]:
        """A lease leaves in the answer of an Exchange. What happens when nobody is there to
        take it is returned."""
        lease = action.lease
        self._exchanges.pop(action.call_id, None)
        entry = self._models.entries.get(lease.model)  # type: ignore[call-overload]
        assert entry is not None
        arena = self._tend_arena(lease.replica_id, now_s)
        model = self._scheduler.models[lease.model]
        message, unreadable = encode_dispatch(action, model, entry, now_s, arena)
        actions: list[Action] = []
        for at, why in unreadable.items():
            # Its rows are computed, from zeros, and dropped: its neighbours notice nothing (R1).
            request = lease.requests[at]
            if not request.done:
                actions += self._scheduler.on_cancel(lease.model, request)
                actions.append(Fail(request, FailureCause.SHARED_MEMORY, why))
        if not self._front.respond(action.call_id, message):
            actions += self._scheduler.on_exchange_gone(lease.replica_id, action.call_id, now_s)
        return actions

    def on_answer_empty(self, action: AnswerEmpty) -> None:
        """An Exchange ends without a lease."""
        self._exchanges.pop(action.call_id, None)
        answer = ExchangeResponse(
            sequence=action.sequence,
            drain=action.drain,
            dropped_lease_ids=action.dropped_lease_ids,
        )
        self._front.respond(action.call_id, answer.SerializeToString())

    def on_refuse(self, action: RefuseCall) -> None:
        """An Exchange of an earlier life."""
        self._exchanges.pop(action.call_id, None)
        self._front.fail(action.call_id, Status(Code.FAILED_PRECONDITION, action.reason))

    def on_send_drain(self, action: SendDrain) -> None:
        """Tells the replica to finish and leave."""
        self.changes += 1
        self._command(action.replica_id, Command(drain=Drain()))

    def on_lost(self, action: ReplicaLost) -> None:
        """Closes its life line: should it wake, it learns that its life is over."""
        self.changes += 1
        self._arenas.close(action.replica_id)
        logger.warning("replica %s is LOST: %s", action.replica_id, action.reason)
        self._close_life_line(
            action.replica_id, Status(Code.FAILED_PRECONDITION, f"LOST: {action.reason}")
        )

    def on_left(self, action: ReplicaLeft) -> None:
        """It left with empty hands."""
        self.changes += 1
        self._arenas.close(action.replica_id)
        self.info.pop(action.replica_id, None)
        self._left.append(action.replica_id)
        logger.info("replica %s left", action.replica_id)

    def has_left(self, replica_id: str) -> bool:
        """It is one of the last that left with empty hands: its process ends, as it should."""
        return replica_id in self._left

    def stop(self, replica_id: str, reason: str) -> None:
        """Tells a replica to leave at once."""
        self._command(replica_id, Command(stop=Stop(reason=reason)))

    def stop_all(self, reason: str) -> None:
        """Tells every replica to leave at once, whatever it computes."""
        for replica_id in self._calls:
            self.stop(replica_id, reason)

    @property
    def joined(self) -> int:
        """Replicas with a life line."""
        return len(self._calls)

    def forget(self, replica_id: str) -> None:
        """Its process is known to have ended."""
        self.changes += 1
        self._scheduler.members.forget(replica_id)
        if self._scheduler.members.get(replica_id) is None:
            self._arenas.close(replica_id)
            self.info.pop(replica_id, None)

    # --- inside ---------------------------------------------------------------------------

    def _open_arena(self, call: Call, replica_id: str, device: str) -> replica_pb2.Arena | None:
        """Its memory for this life, handed over where its connection can carry a file."""
        arena = self._arenas.open(replica_id, keeps_pages=device.startswith("gpu:"))
        if arena is None:
            return None
        return arena.message(file_sent=self._front.send_file(call.call_id, arena.file))

    def _tend_arena(self, replica_id: str, now_s: float) -> Arena | None:
        """Its arena, with room for what it no longer holds."""
        arena = self._arenas.of(replica_id)
        replica = self._scheduler.members.get(replica_id)
        if arena is not None:
            arena.tend({} if replica is None else replica.leases, now_s)
        return arena

    def _on_ready(self, replica_id: str, message: BeatRequest, now_s: float) -> None:
        replica = self._scheduler.members.get(replica_id)
        assert replica is not None
        key = replica.model
        if not isinstance(key, ModelKey):
            raise InvalidRequestError(
                f"expected Ready after an Assign, got it from replica '{replica_id}' without a model"
            )
        try:
            entry = self._models.ready(key, message.ready.config)
        except (ModelConfigError, NotFoundError) as error:
            logger.warning("%s cannot be served: %s", key, error)
            self.stop(replica_id, str(error))
            return
        if key not in self._scheduler.models:
            assert entry.spec is not None
            self._scheduler.add_model(key, entry.spec.settings)
        self._scheduler.models[key].learn_warm_up(
            replica.device,
            [(point.batch_rows, point.latency_s) for point in message.ready.profile],
        )
        if self._scheduler.members.ready(replica_id, now_s):
            self.changes += 1
            phases = ", ".join(
                f"{phase.name} {phase.duration_s * 1000:.0f} ms" for phase in message.ready.phases
            )
            logger.info("replica %s is READY for %s (%s)", replica_id, key, phases)

    def _on_load_failed(self, replica_id: str, failed: LoadFailed, now_s: float) -> list[Action]:
        reason = failed.message
        replica = self._scheduler.members.get(replica_id)
        assert replica is not None
        key = replica.model
        if isinstance(key, ModelKey):
            entry = self._models.entries.get(key)
            if entry is not None and entry.state is ModelState.LOADING:
                self._models.fail(key, reason, hopeless=failed.hopeless)
                logger.error("%s cannot be loaded: %s", key, reason)
            if entry is not None and entry.hopeless:
                # It leaves by itself, as it was told to: its end is no failed start to repeat.
                return self._scheduler.on_drain(replica_id, now_s, "it could not load its model")
        return self._scheduler.on_lost(
            replica_id, now_s, f"it could not load its model: {reason}", death=False
        )

    def _read_outcome(
        self, outcome: OutcomeIn, held: Mapping[int, CoreLease], arena: Arena | None
    ) -> CoreOutcome:
        lease = held.get(outcome.lease_id)
        entry = None if lease is None else self._models.entries.get(lease.model)  # type: ignore[call-overload]
        if lease is None or entry is None:
            # The core drops it and says so.
            return BatchDone(outcome.lease_id, outcome.infer_s)
        return read_outcome(outcome, lease, entry, time.time(), arena)

    def _command(self, replica_id: str, command: Command) -> None:
        call_id = self._calls.get(replica_id)
        if call_id is not None:
            self._front.send(call_id, command.SerializeToString())

    def _close_life_line(self, replica_id: str, status: Status) -> None:
        call_id = self._calls.pop(replica_id, None)
        if call_id is not None:
            self._life_lines.pop(call_id, None)
            self._front.fail(call_id, status)
