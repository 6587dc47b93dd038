"""The reconcile loop: looks, decides, acts, until it is told to stop or is not needed.

One thread runs it and is the only one to act. It is woken by snapshots and by deaths of
replicas, and looks anyway every `tick_s`, for what comes due by time.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, Protocol

from tideserve.autoscaler.core.actions import Action
from tideserve.autoscaler.core.decision import Decision, Policy
from tideserve.autoscaler.core.fleet import Instance, ModelKey, Observed, Snapshot
from tideserve.autoscaler.core.load import Sample
from tideserve.autoscaler.core.reconcile import reconcile
from tideserve.autoscaler.core.state import ReconcileState, Rules
from tideserve.autoscaler.core.unlisted import with_unlisted
from tideserve.autoscaler.errors import (
    CallRefusedError,
    FrontendUnavailableError,
    SupersededError,
)
from tideserve.autoscaler.executor import Control, Executor
from tideserve.autoscaler.launchers import Handle, Launcher
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
        """One look. `actions`: those that were carried out."""


class Ending(Enum):
    """Why the loop ended. Replicas are left running by all but STOPPED."""

    STOPPED = "stopped"
    SUPERSEDED = "superseded"
    ORPHANED = "orphaned"


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """`address` and `token` are handed to replicas. A stop drains them for `stop_timeout_s`,
    for `away_timeout_s` where the frontend is gone, then kills, and waits that long for their end. `dry_run`: decides, tells in
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
    serves is gone; `changes` gives another policy and other rules when the file changed, which
    has settings for the models that are `named`."""

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
        named: Callable[[], frozenset[str]] = frozenset,
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
        self._named = named
        self._unknown: frozenset[str] = frozenset()
        self._clock = clock
        self._state = ReconcileState(life=life)
        self._rules = settings.rules
        self._executor = Executor(control, launcher, settings.address, settings.token)
        self._told: dict[ModelKey, Decision] = {}
        self._reported: Mapping[ModelKey, Decision] = {}
        self._reported_s: float | None = None
        self._cannot_prepare = False
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
        self._reconfigure()
        # Looked at now, not after a decision: what runs is a part of what it is made from. And before
        # the snapshot, which then says why whoever ended did so.
        handles = {handle.replica_id: handle for handle in self._launcher.list()}
        snapshot = self._source.latest()
        now_s = self._clock()
        instances = [_instance_of(handle) for handle in handles.values()]
        sample: Sample | None = None
        decisions: Mapping[ModelKey, Decision] = {}
        if snapshot is not None and self._stops:
            # Nothing is desired: drain, also from a frontend that stops. It has this process
            # stopped once it has answered what it admitted, and waits for its replicas to go.
            snapshot = replace(snapshot, stopping=False)
        elif snapshot is not None:
            sample = self._samples.sample(snapshot, now_s)
            fleet = with_unlisted(snapshot, instances, self._state.records)
            decisions = self._policy.decide(fleet, sample, now_s)
            self._tell(decisions)
            self._tell_unknown({model.key.name for model in snapshot.models})
        if self._settings.dry_run:
            return
        rules = self._feasible(self._rules)
        waited = self._state.waiting
        self._state, actions = reconcile(
            self._state,
            Observed(snapshot, (*instances, *self._executor.unborn)),
            {key: decision.desired for key, decision in decisions.items()},
            now_s,
            rules,
        )
        for key in self._state.waiting.keys() - waited.keys():
            _LOG.info("%s", self._state.waiting[key])
        if snapshot is not None and sample is not None:
            self._executor.warm(snapshot)
        if snapshot is not None and actions:
            actions = tuple(self._executor.run(actions, handles, snapshot, rules))
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

    def _feasible(self, rules: Rules) -> Rules:
        """Without what this launcher cannot do."""
        if not rules.prepared or self._executor.can_prepare:
            return rules
        if not self._cannot_prepare:
            _LOG.warning("prepared: %d is ignored, this launcher has no such tier", rules.prepared)
        self._cannot_prepare = True
        return replace(rules, prepared=0)

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

    def _tell_unknown(self, served: Set[str]) -> None:
        """A line for each name in the file that no model has: mistyped, maybe."""
        unknown = self._named() - served
        for name in sorted(unknown - self._unknown):
            there_are = ", ".join(sorted(served)) or "none"
            _LOG.warning(
                "models.%s: the frontend serves no model of that name; there are: %s",
                name,
                there_are,
            )
        self._unknown = unknown

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
        for handle in self._launcher.list():
            if handle.prepared and handle.exit is None:
                self._launcher.kill(handle)
        killed_s = self._clock()
        while self._running() and self._clock() - killed_s < settings.away_timeout_s:
            self._wake.wait(settings.tick_s)
        self.step()  # reports those that ended since the last look
        for handle in self._launcher.list():
            if handle.exit is not None:  # the frontend cannot be told of it any more
                self._launcher.kill(handle)

    def _running(self) -> list[Handle]:
        return [
            handle
            for handle in self._launcher.list()
            if handle.exit is None and not handle.prepared
        ]


def _instance_of(handle: Handle) -> Instance:
    return Instance(handle.replica_id, handle.key, handle.device, handle.exit, handle.prepared)
