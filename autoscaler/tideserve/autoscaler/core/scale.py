"""The count: what is missing is supplied, cheapest first; what is too much is drained.

Models come before standbys and standbys before prepared instances, so that what is kept ready
never takes a slot that a model needs.
"""

from collections.abc import Mapping
from dataclasses import replace

from tideserve.autoscaler.core.actions import Action, Assign, Drain, Kill
from tideserve.autoscaler.core.failures import Failures
from tideserve.autoscaler.core.fleet import ModelKey, ReplicaState
from tideserve.autoscaler.core.naming import number_of
from tideserve.autoscaler.core.state import Rules
from tideserve.autoscaler.core.supply import Supply
from tideserve.autoscaler.core.unit import Unit


class Scale:
    """Of one pass: owns its actions and what waits for room. `desired` has wanted models only;
    while it is empty, nothing is kept ready."""

    def __init__(
        self,
        units: list[Unit],
        supply: Supply,
        desired: Mapping[ModelKey, int],
        failures: Mapping[ModelKey | None, Failures],
        rules: Rules,
        prepare_sent_s: float | None,
        now_s: float,
    ) -> None:
        self.actions: list[Action] = []
        self.waiting: dict[ModelKey | None, str] = {}
        self.prepare_sent_s = prepare_sent_s
        self._units = units
        self._supply = supply
        self._desired = desired
        self._failures = failures
        self._rules = rules
        self._now_s = now_s

    def run(self) -> None:
        self._repeat_drains()
        self._repeat_assigns()
        self._keep_models()
        self._keep_standbys()
        self._keep_prepared()

    # --- what is kept ---------------------------------------------------------------------

    def _keep_models(self) -> None:
        keys = self._desired.keys() | {unit.key for unit in self._units if unit.key is not None}
        for key in sorted(keys):
            capacity = [unit for unit in self._units if unit.key == key and unit.counts]
            desired = self._desired.get(key, 0)
            surplus = len(capacity) - desired
            if surplus > 0:
                reason = (
                    f"{len(capacity)} replicas of model {key}, {desired} desired"
                    if key in self._desired
                    else f"model {key} is not wanted"
                )
                self._drain(capacity, surplus, reason)
            elif surplus < 0:
                reason = f"{len(capacity)} replicas of model {key}, {desired} desired"
                self._start(key, capacity, -surplus, reason)

    def _keep_standbys(self) -> None:
        """As many as the rules say, beside those that were given a model."""
        wanted = self._rules.standby if self._desired else 0
        standbys = [unit for unit in self._units if unit.key is None and unit.counts]
        strays = [unit for unit in standbys if not self._supply.lists(unit.device)]
        self._drain(strays, len(strays), "a standby on a device that is not listed")
        standbys = [unit for unit in standbys if unit not in strays]
        surplus = len(standbys) - wanted
        reason = f"{len(standbys)} standbys, {wanted} wanted"
        if surplus > 0:
            self._drain(standbys, surplus, reason)
        elif surplus < 0:
            self._start(None, standbys, -surplus, reason)

    def _keep_prepared(self) -> None:
        """One a pass: making one takes a launcher longer than deciding on it."""
        wanted = self._rules.prepared if self._desired else 0
        usable = [one for one in self._supply.prepared if self._supply.lists(one.device)]
        if not self._due(self.prepare_sent_s):
            return
        changes: list[Action] = [
            Kill(instance.replica_id, f"{wanted} prepared ones are wanted")
            for instance in self._supply.prepared
            if instance not in usable[:wanted]
        ]
        if len(usable) < wanted:
            action = self._supply.prepare(f"{len(usable)} prepared, {wanted} wanted")
            changes += [action] if action is not None else []
        if changes:
            self.prepare_sent_s = self._now_s
        self.actions += changes

    # --- what had no effect ---------------------------------------------------------------

    def _repeat_drains(self) -> None:
        for unit in self._units:
            record = unit.record
            ignored = (
                record.drain_since_s is not None
                and record.verdict is None
                and unit.replica is not None
                and unit.status is not ReplicaState.DRAINING
                and unit.status is not ReplicaState.LOST
            )
            if ignored and self._due(record.drain_sent_s):
                unit.record = replace(record, drain_since_s=self._now_s, drain_sent_s=self._now_s)
                self.actions.append(Drain(unit.replica_id, "it was told to and has not begun"))

    def _repeat_assigns(self) -> None:
        for unit in self._units:
            record = unit.record
            waits = unit.counts and unit.status is ReplicaState.STANDBY
            if unit.key is None or not waits or self._desired.get(unit.key, 0) == 0:
                continue
            if self._due(record.assign_sent_s):
                unit.record = replace(record, assign_sent_s=self._now_s)
                self.actions.append(Assign(unit.replica_id, unit.key, "it still stands by"))

    # --- fewer and more -------------------------------------------------------------------

    def _drain(self, capacity: list[Unit], surplus: int, reason: str) -> None:
        """Those that are on the way go first, the youngest first, then the idle ones, from the
        highest number."""
        order = sorted((unit for unit in capacity if unit.replica is not None), key=_dearest_last)
        for unit in order[:surplus]:
            unit.record = replace(unit.record, drain_since_s=self._now_s, drain_sent_s=self._now_s)
            self.actions.append(Drain(unit.replica_id, reason))

    def _start(self, key: ModelKey | None, capacity: list[Unit], missing: int, reason: str) -> None:
        """The cheapest first; what finds no room on a device waits for it."""
        failures = self._failures.get(key)
        if failures is not None:
            if self._now_s < failures.not_before_s:
                return
            missing = min(missing, 1 - sum(unit.on_the_way for unit in capacity))
            reason += f", try {failures.count + 1} after {failures.count} failures"
        beyond = not capacity and self._replaces(key)
        for _ in range(missing):
            action: Action | None = self._supply.assign(key, reason) if key is not None else None
            action = action or self._supply.start(key, reason, beyond=beyond)
            if action is None:
                self.waiting[key] = f"{reason}: the next start waits for room on a device"
                return
            beyond = False
            self.actions.append(action)

    def _replaces(self, key: ModelKey | None) -> bool:
        """Others of the model run: they give their slots back only once this one serves."""
        return key is not None and any(
            unit.key is not None and unit.key.name == key.name and unit.key != key and unit.runs
            for unit in self._units
        )

    def _due(self, sent_s: float | None) -> bool:
        return sent_s is None or self._now_s - sent_s >= self._rules.repeat_s


def _dearest_last(unit: Unit) -> tuple[bool, bool, float, float]:
    """An assigned standby may have the number of another one: then the younger goes first."""
    number, since_s = number_of(unit.replica_id), unit.record.since_s
    if unit.on_the_way:
        return (False, False, -since_s, -number)
    return (True, not unit.idle, -number, -since_s)
