"""Where one more replica comes from, cheapest first: a standby, a prepared instance, a new one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tideserve.autoscaler.core.actions import Assign, Prepare, Start
from tideserve.autoscaler.core.devices import Slots
from tideserve.autoscaler.core.fleet import Instance, ModelKey
from tideserve.autoscaler.core.naming import STANDBY_PREFIX, lowest_free, number_of, replica_id
from tideserve.autoscaler.core.state import Record, Rules
from tideserve.autoscaler.core.unit import Unit


class Supply:
    """Owns, for one pass, the units and what they take of the devices: adds those that it
    starts. `serial` counts names."""

    def __init__(
        self,
        units: list[Unit],
        prepared: Sequence[Instance],
        rules: Rules,
        life: int,
        serial: int,
        now_s: float,
    ) -> None:
        self._units = units
        self._prepared = list(prepared)
        self._rules = rules
        self._life = life
        self._now_s = now_s
        self.serial = serial
        self._slots = Slots(
            rules.devices,
            ((unit.device, memory_of(unit.key, rules.memory_bytes_of)) for unit in units),
        )

    @property
    def prepared(self) -> Sequence[Instance]:
        """Those that are left."""
        return self._prepared

    def lists(self, device: str) -> bool:
        """Whether replicas may be on it."""
        return self._slots.lists(device)

    def assign(self, key: ModelKey, reason: str) -> Assign | None:
        """Gives the model to a standby on the device with the fewest replicas; None: there is
        none, or none on a device whose memory the model fits."""
        memory_bytes = memory_of(key, self._rules.memory_bytes_of)
        standbys = sorted(
            (unit for unit in self._units if unit.assignable),
            key=lambda unit: (self._slots.replicas(unit.device), number_of(unit.replica_id)),
        )
        found = next(
            (unit for unit in standbys if self._slots.grow(unit.device, memory_bytes)), None
        )
        if found is None:
            return None
        found.key = key
        found.record = replace(
            found.record,
            key=key,
            assign_sent_s=self._now_s,
            since_s=self._now_s,
            was_ready=False,
        )
        return Assign(found.replica_id, key, reason)

    def start(self, key: ModelKey | None, reason: str, *, beyond: bool = False) -> Start | None:
        """Starts a prepared instance or a new one; None: no device has room."""
        memory_bytes = memory_of(key, self._rules.memory_bytes_of)
        for instance in self._prepared:
            if self._slots.take(instance.device, memory_bytes):
                self._prepared.remove(instance)
                return self._begun(instance.replica_id, key, instance.device, reason)
        device = self._slots.pick(memory_bytes, beyond=beyond)
        if device is None:
            return None
        return self._begun(self._name(key), key, device, reason)

    def prepare(self, reason: str) -> Prepare | None:
        """Has an instance made for the device that has most need of one."""
        counts = {device.name: 0 for device in self._rules.devices}
        for instance in self._prepared:
            if instance.device in counts:
                counts[instance.device] += 1
        if not counts:
            return None
        return Prepare(self._name(None), min(counts, key=lambda name: counts[name]), reason)

    def _begun(self, name: str, key: ModelKey | None, device: str, reason: str) -> Start:
        instance = Instance(name, key, device)
        record = Record(since_s=self._now_s, key=key, announce_sent_s=self._now_s)
        self._units.append(Unit(name, key, record, instance, None))
        return Start(name, key, device, reason)

    def _name(self, key: ModelKey | None) -> str:
        """Never used before, with the lowest number that no other of the model has."""
        taken = {unit.replica_id for unit in self._units}
        taken |= {instance.replica_id for instance in self._prepared}
        numbers = {
            number_of(unit.replica_id)
            for unit in self._units
            if _same_model(unit, key) and (unit.runs or unit.record.verdict is None)
        }
        if key is None:
            numbers |= {number_of(name) for name in taken if name.startswith(STANDBY_PREFIX)}
        number = lowest_free(numbers)
        while True:
            name = replica_id(key, number, self._life, self.serial)
            self.serial += 1
            if name not in taken:
                return name


def memory_of(key: ModelKey | None, memory_bytes_of: Mapping[str, int]) -> int:
    """Of one replica; a standby takes none."""
    return 0 if key is None else memory_bytes_of.get(key.name, 0)


def _same_model(unit: Unit, key: ModelKey | None) -> bool:
    if unit.key is None or key is None:
        return unit.key is key
    return (unit.key.name, unit.key.version) == (key.name, key.version)
