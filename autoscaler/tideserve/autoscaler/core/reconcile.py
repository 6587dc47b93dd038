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

from tideserve.autoscaler.core.actions import Action, Announce, Drain, Kill, Report, Start
from tideserve.autoscaler.core.devices import pick_device
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
from tideserve.autoscaler.core.naming import lowest_free, number_of, replica_id
from tideserve.autoscaler.core.state import ReconcileState, Record, Rules, Verdict
from tideserve.autoscaler.core.unit import Unit, unit_of

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
        self._serial = state.serial
        wanted = {model.key for model in snapshot.models if model.wanted}
        self._desired = {key: count for key, count in desired.items() if key in wanted}
        self._failures: dict[ModelKey, Failures] = {
            key: failures for key, failures in state.failures.items() if key in wanted
        }
        self._wanted = wanted
        launched = {instance.replica_id: instance for instance in instances}
        listed = {replica.replica_id: replica for replica in snapshot.replicas}
        self._units = [
            unit_of(
                name,
                state.records.get(name),
                launched.get(name),
                listed.get(name),
                snapshot.epoch,
                now_s,
            )
            for name in sorted(launched.keys() | listed.keys())
        ]

    def state(self) -> ReconcileState:
        return ReconcileState(
            life=self._state.life,
            serial=self._serial,
            records={unit.replica_id: unit.record for unit in self._units},
            failures=self._failures,
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
        if blamed and unit.key is not None and unit.key in self._wanted:
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
            if unit.key is None or unit.replica is None or unit.status is not ReplicaState.READY:
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
        failures = self._failures.get(key) if key is not None else None
        if failures is None or not failures.given_up or self._serves(key):
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
            if unit.key is None or unit.replica is not None or not (unit.runs and unit.counts):
                continue
            if self._wants(unit) and self._due(record.announce_sent_s, self._rules.repeat_s):
                unit.record = replace(record, announce_sent_s=self._now_s)
                reason = "it runs and the frontend does not know it"
                self.actions.append(Announce(unit.replica_id, unit.key, reason))

    # --- the count -----------------------------------------------------------------------

    def scale(self) -> None:
        if self._snapshot.stopping:
            return
        self._repeat_drains()
        keys = self._desired.keys() | {unit.key for unit in self._units if unit.key is not None}
        for key in sorted(keys):
            capacity = [unit for unit in self._units if unit.key == key and unit.counts]
            surplus = len(capacity) - self._desired.get(key, 0)
            if surplus > 0:
                self._drain(key, capacity, surplus)
            elif surplus < 0:
                self._start(key, capacity, -surplus)

    def _repeat_drains(self) -> None:
        for unit in self._units:
            record = unit.record
            ignored = (
                record.drain_since_s is not None
                and record.verdict is None
                and unit.replica is not None
                and unit.status in (ReplicaState.STARTING, ReplicaState.READY)
            )
            if ignored and self._due(record.drain_sent_s, self._rules.repeat_s):
                unit.record = replace(record, drain_sent_s=self._now_s)
                self.actions.append(Drain(unit.replica_id, "it was told to and has not begun"))

    def _drain(self, key: ModelKey, capacity: list[Unit], surplus: int) -> None:
        """Those that start go first, then the idle ones, each from the highest number."""
        if key not in self._wanted:
            reason = f"model {key} is not wanted"
        else:
            reason = f"{len(capacity)} replicas of model {key}, {self._desired.get(key, 0)} desired"
        order = sorted(
            (unit for unit in capacity if unit.replica is not None),
            key=lambda unit: (
                unit.status is not ReplicaState.STARTING,
                not unit.idle,
                -number_of(unit.replica_id),
            ),
        )
        for unit in order[:surplus]:
            unit.record = replace(unit.record, drain_since_s=self._now_s, drain_sent_s=self._now_s)
            self.actions.append(Drain(unit.replica_id, reason))

    def _start(self, key: ModelKey, capacity: list[Unit], missing: int) -> None:
        starting = sum(unit.status is ReplicaState.STARTING for unit in capacity)
        failures = self._failures.get(key)
        reason = f"{len(capacity)} replicas of model {key}, {len(capacity) + missing} desired"
        if failures is not None:
            if self._now_s < failures.not_before_s:
                return
            missing = min(missing, 1 - starting)
            reason += f", try {failures.count + 1} after {failures.count} failures"
        for _ in range(missing):
            self.actions.append(self._started(key, reason))

    def _started(self, key: ModelKey, reason: str) -> Start:
        """A new unit with a name and a device of its own."""
        taken = {unit.replica_id for unit in self._units}
        numbers = {
            number_of(unit.replica_id)
            for unit in self._units
            if unit.key is not None
            and (unit.key.name, unit.key.version) == (key.name, key.version)
            and (unit.runs or unit.record.verdict is None)
        }
        number = lowest_free(numbers)
        while True:
            name = replica_id(key, number, self._state.life, self._serial)
            self._serial += 1
            if name not in taken:
                break
        device = pick_device(self._rules.devices, (unit.device for unit in self._units))
        instance = Instance(name, key, device)
        record = Record(since_s=self._now_s, announce_sent_s=self._now_s)
        self._units.append(Unit(name, key, record, instance, None))
        return Start(name, key, device, reason)

    # --- small questions -----------------------------------------------------------------

    def _wants(self, unit: Unit) -> bool:
        return unit.key is not None and self._desired.get(unit.key, 0) > 0

    def _due(self, sent_s: float | None, repeat_s: float) -> bool:
        return sent_s is None or self._now_s - sent_s >= repeat_s
