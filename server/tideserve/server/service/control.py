"""The control plane: what autoscalers see and say, and what people ask of them."""

import logging
from dataclasses import dataclass
from typing import Final

from tideserve.server.core.actions import Action
from tideserve.server.core.replicas import ReplicaState
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.errors import (
    Code,
    InvalidRequestError,
    NotFoundError,
    QueueFullError,
    StaleCallError,
)
from tideserve.server.front import Call, Front, Status
from tideserve.server.models import ModelKey, ModelState, ModelTable
from tideserve.server.service.messages import parse
from tideserve.server.service.replicas import ReplicaService
from tideserve.server.service.scaling import ScalingBoard
from tideserve.server.service.snapshot import snapshot
from tideserve.server.stranding import Stranding
from tideserve.v1.control_pb2 import (
    AnnounceRequest,
    AnnounceResponse,
    AssignModelRequest,
    AssignModelResponse,
    DrainReplicaRequest,
    DrainReplicaResponse,
    ReportDecisionsRequest,
    ReportDecisionsResponse,
    ReportExitRequest,
    ReportExitResponse,
    ScaleModelRequest,
    ScaleModelResponse,
    Snapshot,
    WatchRequest,
)

logger = logging.getLogger(__name__)

MAX_WATCHERS: Final = 64
DEFAULT_INTERVAL_S: Final = 1.0
MIN_INTERVAL_S: Final = 0.05


@dataclass(slots=True)
class _Watcher:
    interval_s: float
    generation: int
    next_s: float


class ControlService:
    """Owns the watchers, and knows the newest autoscaler: an older one may not act (15.7)."""

    def __init__(
        self,
        models: ModelTable,
        scheduler: Scheduler,
        replicas: ReplicaService,
        front: Front,
        frontend_epoch: int,
    ) -> None:
        self._models = models
        self._scheduler = scheduler
        self._replicas = replicas
        self._front = front
        self._frontend_epoch = frontend_epoch
        self._watchers: dict[int, _Watcher] = {}
        self._board = ScalingBoard()
        self._stranding = Stranding(models, scheduler)
        self._generation = 0
        self._seen: tuple[object, ...] = ()
        self.stopping = False

    # --- calls in -------------------------------------------------------------------------

    def on_watch(self, call: Call, now_s: float) -> None:
        """A watcher comes: a snapshot at once, then by interval and by change."""
        message = parse(WatchRequest, call.payload)
        if len(self._watchers) >= MAX_WATCHERS:
            raise QueueFullError(f"expected at most {MAX_WATCHERS} watchers at a time")
        if message.autoscaler_generation:
            self._take_over(message.autoscaler_generation)
            self._stranding.look(has_autoscaler=True, now_s=now_s)
        interval_s = max(MIN_INTERVAL_S, message.interval_s or DEFAULT_INTERVAL_S)
        self._watchers[call.call_id] = _Watcher(
            interval_s, message.autoscaler_generation, now_s + interval_s
        )
        self._front.send(call.call_id, self.snapshot(now_s).SerializeToString())

    def on_announce(self, call: Call, now_s: float) -> None:
        """Replicas will be started, or were adopted."""
        message = parse(AnnounceRequest, call.payload)
        self._check(message.autoscaler_generation)
        for announced in message.replicas:
            if not announced.replica_id:
                raise InvalidRequestError("expected a replica_id in every announcement, got ''")
            key = None
            if announced.model_name:
                key = ModelKey(announced.model_name, announced.model_version, announced.generation)
            self._scheduler.members.announce(announced.replica_id, key, now_s)
        self._replicas.changes += 1
        self._front.respond(call.call_id, AnnounceResponse().SerializeToString())

    def on_report_exit(self, call: Call, now_s: float) -> list[Action]:
        """A replica's process has ended."""
        message = parse(ReportExitRequest, call.payload)
        self._check(message.autoscaler_generation)
        replica = self._scheduler.members.get(message.replica_id)
        actions: list[Action] = []
        if replica is not None:
            key = replica.model
            actions = self._scheduler.on_ended(message.replica_id, now_s, message.cause)
            if message.give_up_reason and isinstance(key, ModelKey):
                actions += self._give_up(key, message.give_up_reason)
            self._replicas.forget(message.replica_id)
        if message.failed_starts and not self._replicas.has_left(message.replica_id):
            tail = "\n  ".join(message.log_tail)
            logger.warning(
                "replica %s did not start (%s); its log ends:\n  %s",
                message.replica_id,
                message.cause,
                tail,
            )
        self._front.respond(call.call_id, ReportExitResponse().SerializeToString())
        return actions

    def on_drain(self, call: Call, now_s: float) -> list[Action]:
        """A replica shall finish what it holds and leave."""
        message = parse(DrainReplicaRequest, call.payload)
        self._check(message.autoscaler_generation)
        if self._scheduler.members.get(message.replica_id) is None:
            raise self._unknown(message.replica_id)
        actions = self._scheduler.on_drain(message.replica_id, now_s, "drained by request")
        self._front.respond(call.call_id, DrainReplicaResponse().SerializeToString())
        return actions

    def on_assign(self, call: Call, now_s: float) -> None:
        """A standby gets a model version."""
        message = parse(AssignModelRequest, call.payload)
        self._check(message.autoscaler_generation)
        key = ModelKey(message.model_name, message.model_version, message.generation)
        if key not in self._models.entries:
            raise NotFoundError(f"{key} of generation '{key.generation}' is not served")
        if self._scheduler.members.get(message.replica_id) is None:
            raise self._unknown(message.replica_id)
        if not self._scheduler.members.assign(message.replica_id, key, now_s):
            raise InvalidRequestError(
                f"expected replica '{message.replica_id}' to be STANDBY: it has a model already"
            )
        self._replicas.changes += 1
        self._replicas.assign(message.replica_id, key)
        self._front.respond(call.call_id, AssignModelResponse().SerializeToString())

    def on_report_decisions(self, call: Call, now_s: float) -> None:
        """The autoscaler says what it wants and why."""
        message = parse(ReportDecisionsRequest, call.payload)
        if not message.autoscaler_generation:
            raise InvalidRequestError("expected an autoscaler_generation from 1 up, got 0")
        self._check(message.autoscaler_generation)
        self._board.report(message, now_s)
        self._front.respond(call.call_id, ReportDecisionsResponse().SerializeToString())

    def on_scale(self, call: Call, now_s: float) -> None:
        """A person pins a count."""
        message = parse(ScaleModelRequest, call.payload)
        entries = [
            entry
            for entry in self._models.of_model(message.model_name)
            if entry.state is not ModelState.RETIRING
            and message.model_version in (0, entry.key.version)
        ]
        if not entries:
            names = ", ".join(sorted({key.name for key in self._models.entries})) or "none"
            version = f" version {message.model_version}" if message.model_version else ""
            raise NotFoundError(
                f"model '{message.model_name}'{version} is not served; there are: {names}"
            )
        keys = [entry.key for entry in entries]
        self._board.pin(keys, message.replicas, message.duration_s, now_s)
        self._front.respond(call.call_id, ScaleModelResponse().SerializeToString())

    def on_cancel(self, call_id: int) -> None:
        """A watcher is gone."""
        self._watchers.pop(call_id, None)

    # --- time and change ------------------------------------------------------------------

    def on_tick(self, now_s: float) -> list[Action]:
        """Versions at zero are held ready for an autoscaler only while there is one that may
        start a replica."""
        has_autoscaler = any(watcher.generation for watcher in self._watchers.values())
        limited = self._board.kept_at_zero(now_s)
        return self._stranding.look(has_autoscaler=has_autoscaler, now_s=now_s, limited=limited)

    def push(self, now_s: float) -> None:
        """Sends snapshots to the watchers that are due, and to all if something changed."""
        self._board.expire(self._models.entries, now_s)
        seen = (
            self._models.changes,
            self._replicas.changes,
            self._board.changes,
            self._waiting_for_a_first_replica(),
            self.stopping,
        )
        changed = seen != self._seen
        self._seen = seen
        due = [
            call_id
            for call_id, watcher in self._watchers.items()
            if changed or watcher.next_s <= now_s
        ]
        if not due:
            return
        payload = self.snapshot(now_s).SerializeToString()
        for call_id in due:
            watcher = self._watchers[call_id]
            watcher.next_s = now_s + watcher.interval_s
            self._front.send(call_id, payload)

    def snapshot(self, now_s: float) -> Snapshot:
        """Everything at this moment."""
        return snapshot(
            self._models,
            self._scheduler,
            self._replicas.info,
            self._board,
            now_s,
            frontend_epoch=self._frontend_epoch,
            stopping=self.stopping,
        )

    # --- inside ---------------------------------------------------------------------------

    def _waiting_for_a_first_replica(self) -> frozenset[ModelKey]:
        """Versions with requests and without replicas: their first arrival is told at once."""
        return frozenset(
            key
            for key in self._models.entries
            if (model := self._scheduler.models.get(key)) is not None
            and model.queue.requests
            and not self._scheduler.members.of_model(key)
        )

    def _give_up(self, key: ModelKey, reason: str) -> list[Action]:
        """No more replicas will be started for now. Those that serve go on."""
        members = self._scheduler.members.of_model(key)
        if any(replica.state is ReplicaState.READY for replica in members):
            logger.error("%s gets no more replicas for now: %s", key, reason)
            return []
        logger.error("%s is given up for now: %s", key, reason)
        self._models.fail(key, reason)
        return self._scheduler.fail_queued(key, reason) if key in self._scheduler.models else []

    def _take_over(self, generation: int) -> None:
        self._check(generation)
        if generation > self._generation:
            # It may start replicas elsewhere, or with what the last one's had not installed.
            self._models.retry(self._models.hopeless())
        self._generation = generation
        older = [
            call_id
            for call_id, watcher in self._watchers.items()
            if 0 < watcher.generation < generation
        ]
        for call_id in older:
            del self._watchers[call_id]
            self._front.fail(
                call_id, Status(Code.FAILED_PRECONDITION, "a newer autoscaler has taken over")
            )

    def _check(self, generation: int) -> None:
        """People's calls carry no generation; an autoscaler's must be the newest."""
        if 0 < generation < self._generation:
            raise StaleCallError(
                f"autoscaler generation {generation} was replaced by {self._generation}"
            )

    def _unknown(self, replica_id: str) -> NotFoundError:
        known = ", ".join(replica.replica_id for replica in self._scheduler.members.all())
        return NotFoundError(f"replica '{replica_id}' is not known; there are: {known or 'none'}")
