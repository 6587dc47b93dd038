"""Makes what runs agree with what is desired: the one place that starts and ends replicas.

Pure: `reconcile` is given what the frontend and the launcher show and the time, and
answers with actions. It holds S1 (what is starting counts as capacity), S2 (no snapshot,
no change), S3 (a replica that cannot start backs off and never lowers the count) and S4
(scaling in drains). An action that has no visible effect is given again, so a caller may
drop actions that fail.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from tideserve.autoscaler.core.actions import Action, Announce, Kill, Report
from tideserve.autoscaler.core.failures import Failures, failed, recovered
from tideserve.autoscaler.core.fleet import (
    Exit,
    Instance,
    ModelKey,
    Observed,
    ReplicaState,
    Snapshot,
)
from tideserve.autoscaler.core.judge import judge
from tideserve.autoscaler.core.scale import Scale
from tideserve.autoscaler.core.state import ReconcileState, Rules, Verdict
from tideserve.autoscaler.core.supply import Supply
from tideserve.autoscaler.core.unit import Unit, at_a_restarted_frontend, unit_of

_GONE: Final = Exit("its launcher no longer has it")


def reconcile(
    state: ReconcileState,
    observed: Observed,
    desired: Mapping[ModelKey, int],
    now_s: float,
    rules: Rules,
) -> tuple[ReconcileState, tuple[Action, ...]]:
    """One pass. `desired` of a model version that is missing or not wanted is 0."""
    if observed.snapshot is None:
        return state, ()
    fleet = _Pass(state, observed.snapshot, observed.instances, desired, now_s, rules)
    fleet.judge()
    fleet.forgive()
    fleet.remove()
    fleet.introduce()
    fleet.scale()
    return fleet.state(), tuple(fleet.actions)


class _Pass:
    """The working tables of one call of `reconcile`."""

    def __init__(
        self,
        state: ReconcileState,
        snapshot: Snapshot,
        instances: tuple[Instance, ...],
        desired: Mapping[ModelKey, int],
        now_s: float,
        rules: Rules,
    ) -> None:
        self.actions: list[Action] = []
        self._state = state
        self._snapshot = snapshot
        self._now_s = now_s
        self._rules = rules
        self._prepare_sent_s = state.prepare_sent_s
        self._waiting: Mapping[ModelKey | None, str] = {}
        wanted = {model.key for model in snapshot.models if model.wanted}
        self._desired = {key: count for key, count in desired.items() if key in wanted}
        self._failures: dict[ModelKey | None, Failures] = {
            key: failures
            for key, failures in state.failures.items()
            if key is None or key in wanted
        }
        self._wanted = wanted
        listed = {replica.replica_id: replica for replica in snapshot.replicas}
        launched = {i.replica_id: i for i in instances if not i.prepared or i.exit is not None}
        # One whose start was tried, and failed or is not seen yet, is not there to be started.
        taken = launched.keys() | listed.keys()
        prepared = [i for i in instances if i.prepared and i.replica_id not in taken]
        records = state.records
        if state.epoch not in (None, snapshot.epoch):
            records = {n: at_a_restarted_frontend(one, now_s) for n, one in records.items()}
        self._units = [
            unit_of(
                name,
                records.get(name),
                launched.get(name),
                listed.get(name),
                snapshot.epoch,
                now_s,
            )
            for name in sorted(launched.keys() | listed.keys())
        ]
        self._supply = Supply(self._units, prepared, rules, state.life, state.serial, now_s)

    def state(self) -> ReconcileState:
        return ReconcileState(
            life=self._state.life,
            serial=self._supply.serial,
            epoch=self._snapshot.epoch,
            records={unit.replica_id: unit.record for unit in self._units},
            failures=self._failures,
            prepare_sent_s=self._prepare_sent_s,
            waiting=self._waiting,
        )

    # --- who is over, and does it count as a failure -------------------------------------

    def judge(self) -> None:
        for unit in self._units:
            if unit.record.verdict is None:
                over = judge(
                    unit,
                    self._snapshot,
                    self._now_s,
                    self._rules,
                    wanted=self._wants(unit),
                )
                if over is not None:
                    self._conclude(unit, *over)

    def _conclude(self, unit: Unit, verdict: Verdict, why: str) -> None:
        failed_starts = 0
        attributed = verdict is Verdict.ATTRIBUTED
        blamed = attributed or verdict is Verdict.FAILED_START
        if blamed and (unit.key is None or unit.key in self._wanted):
            failures = failed(
                self._failures.get(unit.key),
                started_s=unit.record.since_s,
                attributed=attributed,
                now_s=self._now_s,
                rules=self._rules.backoff,
            )
            self._failures[unit.key] = failures
            failed_starts = 0 if attributed else failures.count
        unit.record = replace(unit.record, verdict=verdict, why=why, failed_starts=failed_starts)

    def forgive(self) -> None:
        """Forgets the failures of versions that have a replica to show that they are over."""
        for unit in self._units:
            well = ReplicaState.STANDBY if unit.key is None else ReplicaState.READY
            if unit.replica is None or unit.status is not well:
                continue
            failures = self._failures.get(unit.key)
            if failures is not None and recovered(
                failures, unit.record.since_s, unit.replica.state_age_s, self._rules.backoff
            ):
                del self._failures[unit.key]

    # --- removing those that are over ----------------------------------------------------

    def remove(self) -> None:
        for unit in self._units:
            if unit.record.verdict is None:
                continue
            if unit.runs:
                if self._due(unit.record.kill_sent_s, self._rules.kill_repeat_s):
                    unit.record = replace(unit.record, kill_sent_s=self._now_s)
                    self.actions.append(Kill(unit.replica_id, self._kill_reason(unit)))
                continue
            repeat_s = self._rules.repeat_s if unit.instance else self._rules.grace_s
            if self._due(unit.record.report_sent_s, repeat_s):
                unit.record = replace(unit.record, report_sent_s=self._now_s)
                self.actions.append(self._report(unit))

    def _kill_reason(self, unit: Unit) -> str:
        told = unit.replica.reason if unit.replica is not None else ""
        return f"{unit.record.why}: {told}" if told else unit.record.why

    def _report(self, unit: Unit) -> Report:
        exit_ = unit.instance.exit if unit.instance is not None else None
        exit_ = exit_ or _GONE
        why = self._kill_reason(unit) if unit.record.why else ""
        told = unit.replica.reason if unit.replica is not None and not why else ""
        cause = f"{exit_.cause} ({why or told})" if why or told else exit_.cause
        return Report(
            replica_id=unit.replica_id,
            cause=cause,
            log_tail=exit_.log_tail,
            failed_starts=unit.record.failed_starts,
            give_up_reason=self._give_up_reason(unit.key, cause, exit_.log_tail),
        )

    def _give_up_reason(self, key: ModelKey | None, cause: str, log: tuple[str, ...]) -> str:
        """Empty unless the version is given up and nothing serves it meanwhile."""
        failures = self._failures.get(key)
        if key is None or failures is None or not failures.given_up or self._serves(key):
            return ""
        last_line = next((line.strip() for line in reversed(log) if line.strip()), "")
        said = f"; the last line of its log: {last_line}" if last_line else "; its log is empty"
        wait_s = max(0.0, failures.not_before_s - self._now_s)
        return (
            f"replicas of model {key} failed {failures.count} times in a row, the last one "
            f"with {cause}{said}; the next try is in {wait_s:.0f} s or when its files change"
        )

    def _serves(self, key: ModelKey | None) -> bool:
        return any(
            unit.key == key and unit.counts and unit.status is ReplicaState.READY
            for unit in self._units
        )

    # --- adoption ------------------------------------------------------------------------

    def introduce(self) -> None:
        """Announces the running replicas that this life of the frontend has not seen."""
        if self._snapshot.stopping:
            return
        for unit in self._units:
            record = unit.record
            if unit.replica is not None or not (unit.runs and unit.counts):
                continue
            if (unit.key is None or self._wants(unit)) and self._due(
                record.announce_sent_s, self._rules.repeat_s
            ):
                unit.record = replace(record, announce_sent_s=self._now_s)
                reason = "it runs and the frontend does not know it"
                self.actions.append(Announce(unit.replica_id, unit.key, reason))

    # --- the count -----------------------------------------------------------------------

    def scale(self) -> None:
        if self._snapshot.stopping:
            return
        scale = Scale(
            self._units,
            self._supply,
            self._desired,
            self._failures,
            self._rules,
            self._prepare_sent_s,
            self._now_s,
        )
        scale.run()
        self.actions += scale.actions
        self._waiting = scale.waiting
        self._prepare_sent_s = scale.prepare_sent_s

    # --- small questions -----------------------------------------------------------------

    def _wants(self, unit: Unit) -> bool:
        return unit.key is not None and self._desired.get(unit.key, 0) > 0

    def _due(self, sent_s: float | None, repeat_s: float) -> bool:
        return sent_s is None or self._now_s - sent_s >= repeat_s
