"""The reconcile loop: looks, decides, acts, until it is told to stop or is not needed.

One thread runs it and is the only one to act. It is woken by snapshots and by deaths of
replicas, and looks anyway every `tick_s`, for what comes due by time.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, Protocol, assert_never

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
from tideserve.autoscaler.core.decision import Decision, Policy
from tideserve.autoscaler.core.fleet import Exit, Instance, ModelKey, Observed, Snapshot
from tideserve.autoscaler.core.load import Sample
from tideserve.autoscaler.core.naming import number_of
from tideserve.autoscaler.core.reconcile import reconcile
from tideserve.autoscaler.core.settings import Device
from tideserve.autoscaler.core.state import ReconcileState, Rules
from tideserve.autoscaler.core.supply import memory_of
from tideserve.autoscaler.errors import (
    CallRefusedError,
    FrontendUnavailableError,
    LaunchError,
    SupersededError,
)
from tideserve.autoscaler.launchers import Handle, Launcher, Preparer, ReplicaSpec
from tideserve.autoscaler.wake import Wake

_LOG: Final = logging.getLogger(__name__)


class Source(Protocol):
    """Where snapshots come from."""

    def latest(self) -> Snapshot | None:
        """None: not heard of now. Raises `SupersededError`, `FrontendRefusedError`."""


class Samples(Protocol):
    """Where loads come from."""

    def sample(self, snapshot: Snapshot, now_s: float) -> Sample:
        """What is known now; what is not known is missing."""


class Journal(Protocol):
    """What hears of every decision and of what followed."""

    def record(
        self,
        now_s: float,
        snapshot: Snapshot,
        sample: Sample,
        decisions: Mapping[ModelKey, Decision],
        actions: Sequence[Action],
    ) -> None:
        """One look."""


class Control(Protocol):
    """What acts on the frontend. Each call raises `FrontendError` or one of its kinds."""

    def announce(self, replicas: Sequence[tuple[str, ModelKey | None]]) -> None:
        """These will join; None: as standbys."""

    def assign(self, replica_id: str, key: ModelKey) -> None:
        """This standby is to load that model version."""

    def report_decisions(self, decisions: Mapping[ModelKey, Decision]) -> None:
        """What is desired and why, for whoever watches."""

    def report_exit(self, report: Report) -> None:
        """This one ended."""

    def drain(self, replica_id: str) -> None:
        """This one is to finish what it holds and leave."""


class Ending(Enum):
    """Why the loop ended. Replicas are left running by all but STOPPED."""

    STOPPED = "stopped"
    SUPERSEDED = "superseded"
    ORPHANED = "orphaned"


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """`address` and `token` are handed to replicas. A stop drains them for `stop_timeout_s`,
    for `away_timeout_s` where the frontend is gone, then kills. `dry_run`: decides, tells in
    the log, and does nothing. Decisions are reported when they change and every `report_s`."""

    address: str
    token: str = field(repr=False)
    tick_s: float = 0.25
    report_s: float = 2.0
    dry_run: bool = False
    stop_timeout_s: float = 10.0
    away_timeout_s: float = 1.0
    rules: Rules = field(default_factory=Rules)


class Loop:
    """Owns the reconcile state. `stop` may be called from anywhere, signal handlers too;
    `life` makes its replicas' names its own; `orphaned` says whether the process that it
    serves is gone; `changes` gives another policy and other rules when the file changed."""

    def __init__(
        self,
        source: Source,
        samples: Samples,
        control: Control,
        launcher: Launcher,
        policy: Policy,
        settings: LoopSettings,
        wake: Wake,
        life: int,
        journal: Journal | None = None,
        changes: Callable[[], tuple[Policy, Rules] | None] = lambda: None,
        orphaned: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._samples = samples
        self._journal = journal
        self._changes = changes
        self._control = control
        self._launcher = launcher
        self._policy = policy
        self._settings = settings
        self._wake = wake
        self._orphaned = orphaned
        self._clock = clock
        self._state = ReconcileState(life=life)
        self._rules = settings.rules
        self._unborn: dict[str, Instance] = {}  # announced, then failed to launch
        self._decisions: Mapping[ModelKey, Decision] = {}
        self._told: dict[ModelKey, Decision] = {}
        self._reported: Mapping[ModelKey, Decision] = {}
        self._reported_s: float | None = None
        self._unprepared = ""  # why the last `prepare` failed
        self._away = False
        self._stops = 0

    def stop(self) -> None:
        """Drains all replicas and ends the loop; called again, kills them at once."""
        self._stops += 1
        self._wake.ring()

    def run(self) -> Ending:
        """Until the end. Raises `FrontendRefusedError`; the replicas then go on."""
        try:
            while not self._stops:
                if self._orphaned():
                    _LOG.warning("the parent process is gone: leaving, the replicas stay")
                    return Ending.ORPHANED
                self.step()
                self._wake.wait(self._settings.tick_s)
            self._shut_down()
        except SupersededError as error:
            _LOG.info("leaving, the replicas stay: %s", error)
            return Ending.SUPERSEDED
        return Ending.STOPPED

    def step(self) -> None:
        """One look and what follows from it."""
        snapshot = self._source.latest()
        now_s = self._clock()
        self._reconfigure()
        sample: Sample | None = None
        decisions: Mapping[ModelKey, Decision] = {}
        if snapshot is not None and self._stops:
            # Nothing is desired: drain, also from a frontend that stops. It has this process
            # stopped once it has answered what it admitted, and waits for its replicas to go.
            snapshot = replace(snapshot, stopping=False)
        elif snapshot is not None:
            sample = self._samples.sample(snapshot, now_s)
            decisions = self._policy.decide(snapshot, sample, now_s)
            self._tell(decisions)
        if self._settings.dry_run:
            return
        handles = {handle.replica_id: handle for handle in self._launcher.list()}
        instances = [_instance_of(handle) for handle in handles.values()]
        self._state, actions = reconcile(
            self._state,
            Observed(snapshot, (*instances, *self._unborn.values())),
            {key: decision.desired for key, decision in decisions.items()},
            now_s,
            self._rules,
        )
        if snapshot is not None and actions:
            self._act(actions, handles, snapshot)
        if snapshot is not None and sample is not None:
            self._report_decisions(decisions, now_s)
            if self._journal is not None:
                self._journal.record(now_s, snapshot, sample, decisions, actions)

    def _reconfigure(self) -> None:
        if self._stops:
            return
        changed = self._changes()
        if changed is not None:
            self._policy, self._rules = changed

    def _tell(self, decisions: Mapping[ModelKey, Decision]) -> None:
        """A line for each change of a count or of what limits it; reasons alone change at
        every look."""
        told = {key: decision for key, decision in self._told.items() if key in decisions}
        for key, decision in decisions.items():
            last = told.get(key)
            outcome = (decision.desired, decision.limited_by)
            if last is None or (last.desired, last.limited_by) != outcome:
                limit = f", limited by {decision.limited_by}" if decision.limited_by else ""
                _LOG.info(
                    "model %s: desired %d: %s%s", key, decision.desired, decision.reason, limit
                )
                told[key] = decision
        self._told = told
        self._decisions = decisions

    def _report_decisions(self, decisions: Mapping[ModelKey, Decision], now_s: float) -> None:
        known = {key: (d.desired, d.limited_by) for key, d in self._reported.items()}
        same = known == {key: (d.desired, d.limited_by) for key, d in decisions.items()}
        recent = self._reported_s is not None and (
            now_s - self._reported_s < self._settings.report_s
        )
        if same and recent:
            return
        try:
            self._control.report_decisions(decisions)
        except (CallRefusedError, FrontendUnavailableError) as error:
            # The frontend shows older ones for a while; nothing depends on them.
            _LOG.debug("decisions were not reported: %s", error)
        self._reported, self._reported_s = decisions, now_s

    # --- acting ----------------------------------------------------------------------

    def _act(
        self, actions: Sequence[Action], handles: Mapping[str, Handle], snapshot: Snapshot
    ) -> None:
        """Kills first: they need no frontend. What the frontend fails to do comes again."""
        starts = [action for action in actions if isinstance(action, Start)]
        others: list[Assign | Prepare | Announce | Drain | Kill | Report] = [
            action for action in actions if not isinstance(action, Start)
        ]
        others.sort(key=lambda action: not isinstance(action, Kill))
        try:
            for action in others:
                self._do(action, handles)
            if starts:
                self._start(starts, snapshot)
        except FrontendUnavailableError as error:
            if not self._away:
                _LOG.warning("put off, the frontend does not answer: %s", error)
            self._away = True
        else:
            self._away = False

    def _do(
        self,
        action: Assign | Prepare | Announce | Drain | Kill | Report,
        handles: Mapping[str, Handle],
    ) -> None:
        try:
            match action:
                case Kill():
                    self._kill(action, handles)
                case Report():
                    self._report(action, handles)
                case Drain():
                    self._control.drain(action.replica_id)
                    _LOG.info("drain %s: %s", action.replica_id, action.reason)
                case Assign():
                    self._control.assign(action.replica_id, action.key)
                    _LOG.info(
                        "assign %s to model %s: %s", action.replica_id, action.key, action.reason
                    )
                case Prepare():
                    self._prepare(action)
                case Announce():
                    self._control.announce([(action.replica_id, action.key)])
                    _LOG.info("announce %s: %s", action.replica_id, action.reason)
                case _:
                    assert_never(action)
        except CallRefusedError as error:
            _LOG.warning("%s: %s", action.replica_id, error)

    def _prepare(self, action: Prepare) -> None:
        if not isinstance(self._launcher, Preparer):
            return
        spec = self._spec(action.replica_id, None, action.device, frozenset())
        try:
            handle = self._launcher.prepare(spec)
        except LaunchError as error:
            if self._unprepared != str(error):
                _LOG.warning("nothing was prepared: %s", error)
            self._unprepared = str(error)
            return
        self._unprepared = ""
        _LOG.info("prepare %s, %s: %s", handle.replica_id, handle.where, action.reason)

    def _kill(self, action: Kill, handles: Mapping[str, Handle]) -> None:
        handle = handles[action.replica_id]
        _LOG.warning("kill %s, %s: %s", handle.replica_id, handle.where, action.reason)
        self._launcher.kill(handle)

    def _report(self, action: Report, handles: Mapping[str, Handle]) -> None:
        """Tells the frontend first: a launcher that forgot it could not be asked again."""
        level = logging.WARNING if action.failed_starts else logging.INFO
        tail = "".join(f"\n    {line}" for line in action.log_tail) if action.failed_starts else ""
        _LOG.log(level, "%s ended: %s%s", action.replica_id, action.cause, tail)
        if action.give_up_reason:
            _LOG.error("given up for now: %s", action.give_up_reason)
        try:
            self._control.report_exit(action)
        except CallRefusedError as error:
            _LOG.warning("%s: %s", action.replica_id, error)
        self._unborn.pop(action.replica_id, None)
        if action.replica_id in handles:
            self._launcher.kill(handles[action.replica_id])

    def _start(self, starts: Sequence[Start], snapshot: Snapshot) -> None:
        """Announced before they are launched: the frontend turns unknown ones away."""
        try:
            self._control.announce([(start.replica_id, start.key) for start in starts])
        except CallRefusedError as error:
            _LOG.warning("not started: %s", error)
            return
        backends = frozenset(model.backend for model in snapshot.models if model.wanted)
        for start in starts:
            spec = self._spec(start.replica_id, start.key, start.device, backends)
            try:
                handle = self._launcher.start(spec)
            except LaunchError as error:
                self._unborn[start.replica_id] = Instance(
                    start.replica_id,
                    start.key,
                    start.device,
                    Exit(f"could not be started: {error}"),
                )
                continue
            _LOG.info("start %s, %s: %s", handle.replica_id, handle.where, start.reason)

    def _spec(
        self, replica_id: str, key: ModelKey | None, device_name: str, backends: frozenset[str]
    ) -> ReplicaSpec:
        device = next((d for d in self._rules.devices if d.name == device_name), Device())
        turn = number_of(replica_id)
        return ReplicaSpec(
            replica_id=replica_id,
            key=key,
            address=self._settings.address,
            token=self._settings.token,
            device=device_name,
            threads=device.threads,
            backends=backends,
            cores=device.cores[turn % len(device.cores)] if device.cores else frozenset(),
            memory_bytes=memory_of(key, self._rules.memory_bytes_of),
        )

    # --- the end ---------------------------------------------------------------------

    def _shut_down(self) -> None:
        """The same passes with nothing desired, then an end to what is left."""
        settings = self._settings
        self._rules = replace(self._rules, drain_timeout_s=settings.stop_timeout_s)
        _LOG.info("stopping: draining all replicas for at most %g s", settings.stop_timeout_s)
        deadline_s = self._clock() + settings.stop_timeout_s
        while self._running() and self._stops < 2:
            now_s = self._clock()
            if self._source.latest() is None:
                deadline_s = min(deadline_s, now_s + settings.away_timeout_s)
            if now_s >= deadline_s or self._orphaned():
                break
            self.step()
            self._wake.wait(min(settings.tick_s, max(0.0, deadline_s - now_s)))
        for handle in self._running():
            _LOG.warning("kill %s, %s: it did not leave in time", handle.replica_id, handle.where)
            self._launcher.kill(handle)
        self.step()  # reports those that ended since the last look

    def _running(self) -> list[Handle]:
        return [
            handle
            for handle in self._launcher.list()
            if handle.exit is None and not handle.prepared
        ]


def _instance_of(handle: Handle) -> Instance:
    return Instance(handle.replica_id, handle.key, handle.device, handle.exit, handle.prepared)
