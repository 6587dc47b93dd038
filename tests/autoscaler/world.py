"""A pure frontend and launcher for tests of reconciling: actions change it, it can be broken."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tideserve.autoscaler.core.actions import (
    Action,
    Announce,
    Assign,
    Drain,
    Kill,
    Prepare,
    Report,
    Start,
)
from tideserve.autoscaler.core.fleet import (
    Exit,
    Instance,
    Model,
    ModelKey,
    Observed,
    Replica,
    ReplicaState,
    Snapshot,
)
from tideserve.autoscaler.core.reconcile import reconcile
from tideserve.autoscaler.core.state import ReconcileState, Rules

DIGITS = ModelKey("digits", 1, "g1")


@dataclass
class World:
    """Both sides as they truly are, the time, and what the autoscaler did. `deaf`: the frontend
    loses what it is told of a replica that it knows."""

    desired: dict[ModelKey, int] = field(default_factory=lambda: {DIGITS: 1})
    models: dict[ModelKey, Model] = field(default_factory=lambda: {DIGITS: Model(DIGITS)})
    rules: Rules = field(default_factory=Rules)
    now_s: float = 0.0
    epoch: int = 1
    stopping: bool = False
    away: bool = False
    deaf: bool = False
    replicas: dict[str, Replica] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    state: ReconcileState = field(default_factory=lambda: ReconcileState(life=7))

    def step(self, after_s: float = 0.0) -> list[Action]:
        """One pass; its actions take effect at both sides."""
        self.now_s += after_s
        observed = Observed(self.snapshot(), tuple(self.instances.values()))
        self.state, actions = reconcile(self.state, observed, self.desired, self.now_s, self.rules)
        for action in actions:
            self._apply(action)
        return list(actions)

    def snapshot(self) -> Snapshot | None:
        if self.away:
            return None
        return Snapshot(
            self.epoch,
            tuple(self.models.values()),
            tuple(self.replicas.values()),
            self.stopping,
        )

    def _apply(self, action: Action) -> None:
        match action:
            case Start():
                self.replicas[action.replica_id] = Replica(
                    action.replica_id, action.key, ReplicaState.STARTING
                )
                self.instances[action.replica_id] = Instance(
                    action.replica_id, action.key, action.device
                )
            case Assign() | Drain() if self.deaf:
                pass
            case Assign():
                self.set(action.replica_id, ReplicaState.STARTING, key=action.key)
            case Prepare():
                self.instances[action.replica_id] = Instance(
                    action.replica_id, None, action.device, prepared=True
                )
            case Announce():
                self.replicas[action.replica_id] = Replica(
                    action.replica_id, action.key, ReplicaState.STARTING
                )
            case Drain():
                self.set(action.replica_id, ReplicaState.DRAINING)
            case Kill():
                self.end(action.replica_id, "killed by SIGKILL")
            case Report():
                self.replicas.pop(action.replica_id, None)
                self.instances.pop(action.replica_id, None)

    # --- what happens to replicas ---------------------------------------------------------

    def set(self, replica_id: str, state: ReplicaState, **changes: object) -> None:
        """The frontend sees a replica in another state."""
        values: Mapping[str, object] = {"state": state, "pid": 1, "state_age_s": 0.0, **changes}
        replica = self.replicas[replica_id]
        self.replicas[replica_id] = replace(replica, **values)  # type: ignore[arg-type]

    def ready(self, *replica_ids: str) -> None:
        for replica_id in replica_ids or tuple(self.replicas):
            self.set(replica_id, ReplicaState.READY, was_ready=True)

    def stand_by(self, *replica_ids: str) -> None:
        """These joined without a model."""
        for replica_id in replica_ids:
            self.set(replica_id, ReplicaState.STANDBY)

    def lose(self, replica_id: str, *, attributed: bool = False) -> None:
        self.set(replica_id, ReplicaState.LOST, death_attributed=attributed)

    def end(self, replica_id: str, cause: str = "exit code 1", *log: str) -> None:
        """Its process ends; the frontend notices by itself."""
        if replica_id in self.instances:
            self.instances[replica_id] = replace(self.instances[replica_id], exit=Exit(cause, log))
        replica = self.replicas.get(replica_id)
        if replica is not None and replica.state is ReplicaState.DRAINING:
            del self.replicas[replica_id]
        elif replica is not None:
            self.lose(replica_id, attributed=replica.death_attributed)

    def living(self) -> list[str]:
        return [name for name, instance in self.instances.items() if instance.exit is None]


def names(actions: list[Action], kind: type[Action]) -> list[str]:
    """The replicas that actions of one kind are about."""
    return [action.replica_id for action in actions if isinstance(action, kind)]
