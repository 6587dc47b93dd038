"""A frontend and a launcher in one, as tables, for tests of the loop; and a clock.

The launcher is one whose engine can be away, which it knows only once a start has failed where
`knows_of_it` is false.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tideserve.autoscaler.core.actions import Report
from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import (
    Exit,
    Model,
    ModelKey,
    Replica,
    ReplicaState,
    Snapshot,
)
from tideserve.autoscaler.core.load import Sample
from tideserve.autoscaler.errors import (
    FrontendError,
    LauncherAwayError,
    LaunchError,
    NoSuchReplicaError,
)
from tideserve.autoscaler.launchers import Handle, ReplicaSpec

DIGITS = ModelKey("digits", 1, "g1")


class Fleet:
    """Source, control and launcher in one. `calls` has what was done, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.reports: list[Report] = []
        self.decisions: list[dict[str, int]] = []
        self.specs: list[ReplicaSpec] = []
        self.replicas: dict[str, Replica] = {}
        self.handles: dict[str, Handle] = {}
        self.away = False
        self.stopping = False
        self.leaves = True
        self.errors: dict[str, FrontendError] = {}
        self.launch_error = ""
        self.engine_away = False
        self.knows_of_it = True
        self.ready_at_once = True
        self.fatal: FrontendError | None = None

    def latest(self) -> Snapshot | None:
        if self.fatal is not None:
            raise self.fatal
        if self.away:
            return None
        return Snapshot(
            1, (Model(DIGITS, backend="pytorch"),), tuple(self.replicas.values()), self.stopping
        )

    def announce(self, replicas: Sequence[tuple[str, ModelKey | None]]) -> None:
        self._call("announce", ",".join(name for name, _ in replicas))
        for name, key in replicas:
            state = ReplicaState.READY if key is not None else ReplicaState.STANDBY
            self.replicas[name] = Replica(name, key, state, pid=1, was_ready=key is not None)
            if not self.ready_at_once:
                self.replicas[name] = Replica(name, key, ReplicaState.STARTING)

    def sample(self, snapshot: Snapshot, now_s: float) -> Sample:
        return Sample(unix_s=now_s)

    def assign(self, replica_id: str, key: ModelKey) -> None:
        self._call("assign", f"{replica_id} {key.name}")
        self.replicas[replica_id] = replace(
            self.replicas[replica_id], key=key, state=ReplicaState.READY, was_ready=True
        )

    def report_decisions(self, decisions: Mapping[ModelKey, Decision]) -> None:
        if "decisions" in self.errors:
            raise self.errors["decisions"]
        self.decisions.append({key.name: d.desired for key, d in decisions.items()})

    def log(self, replica_id: str, tail_lines: int) -> tuple[str, ...]:
        raise NoSuchReplicaError(replica_id)

    def report_exit(self, report: Report) -> None:
        self._call("report", report.replica_id)
        self.reports.append(report)
        self.replicas.pop(report.replica_id, None)

    def drain(self, replica_id: str) -> None:
        self._call("drain", replica_id)
        self.replicas[replica_id] = replace(self.replicas[replica_id], state=ReplicaState.DRAINING)
        if self.leaves:
            self.end(replica_id, "exit code 0")

    def warm(self, backends: frozenset[str]) -> bool:
        return not (self.engine_away and self.knows_of_it)

    def start(self, spec: ReplicaSpec) -> Handle:
        if self.engine_away:
            self.knows_of_it = True
            raise LauncherAwayError("the engine does not answer")
        if self.launch_error:
            raise LaunchError(self.launch_error)
        self.calls.append(f"start {spec.replica_id}")
        self.specs.append(spec)
        handle = Handle(spec.replica_id, spec.key, spec.device, "pid 1")
        self.handles[spec.replica_id] = handle
        return handle

    def list(self) -> list[Handle]:
        return [*self.handles.values()]

    def kill(self, handle: Handle) -> None:
        if self.handles[handle.replica_id].exit is not None:
            self.calls.append(f"forget {handle.replica_id}")
            del self.handles[handle.replica_id]
            return
        self.calls.append(f"kill {handle.replica_id}")
        self.end(handle.replica_id, "killed by SIGKILL")

    def end(self, replica_id: str, cause: str, *log: str) -> None:
        self.handles[replica_id] = replace(self.handles[replica_id], exit=Exit(cause, log))
        replica = self.replicas.get(replica_id)
        if replica is not None and replica.state is ReplicaState.DRAINING:
            del self.replicas[replica_id]
        elif replica is not None:
            self.replicas[replica_id] = replace(replica, state=ReplicaState.LOST)

    def _call(self, name: str, about: str) -> None:
        if name in self.errors:
            raise self.errors[name]
        self.calls.append(f"{name} {about}")


class Time:
    """A clock that goes on by a fixed step each time it is read."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s
