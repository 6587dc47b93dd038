"""Who gets the slots where several model versions want more than the devices have."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tideserve.autoscaler.core.fleet import ModelKey
from tideserve.autoscaler.core.settings import Device

TAKE_SHARE: Final = 1.5


@dataclass(frozen=True, slots=True)
class Demand:
    """`asked_rows_per_s`: what the model is asked for; `rows_per_s`: what one replica takes
    of it. `has`: what it was given last. A lower `priority` number is served first.
    `memory_bytes` of one replica."""

    key: ModelKey
    desired: int
    least: int = 0
    has: int = 0
    priority: int = 1
    rows_per_s: float = 0.0
    asked_rows_per_s: float = 0.0
    memory_bytes: int = 0


@dataclass(slots=True)
class _Room:
    slots: int
    memory_bytes: int | None
    taken: dict[ModelKey, int] = field(default_factory=dict)


def place(demands: Iterable[Demand], devices: Sequence[Device]) -> dict[ModelKey, int]:
    """Replicas by model version, at most as many as desired, all within the devices.

    First each version's least, by priority; then slot by slot: by priority, and among equals to
    the version that a replica more saves the most predicted misses. A slot changes hands only
    for `TAKE_SHARE` as many, or each breath of the load would stop one replica to start another.
    """
    ordered = sorted(demands, key=lambda demand: (demand.priority, demand.key))
    rooms = [_Room(device.slots, device.memory_bytes or None) for device in devices]
    given = {demand.key: 0 for demand in ordered}
    for demand in ordered:
        while given[demand.key] < min(demand.least, demand.desired) and _take(demand, rooms):
            given[demand.key] += 1
    open_demands = list(ordered)
    while open_demands:
        open_demands = [d for d in open_demands if given[d.key] < d.desired]
        if not open_demands:
            break
        first = min(demand.priority for demand in open_demands)
        peers = [demand for demand in open_demands if demand.priority == first]
        # Where none saves a miss (spare replicas), the one that has the smallest share of what
        # it wants.
        best = max(
            peers,
            key=lambda d: (
                _saved(d, given[d.key]),
                given[d.key] < d.has,
                -given[d.key] / d.desired,
            ),
        )
        if _take(best, rooms):
            given[best.key] += 1
        else:
            open_demands.remove(best)
    return given


def _saved(demand: Demand, given: int) -> float:
    """Rows a second that one more replica takes of those that would be missed."""
    missed = demand.asked_rows_per_s - given * demand.rows_per_s
    saved = max(0.0, min(demand.rows_per_s, missed))
    return saved * TAKE_SHARE if given < demand.has else saved


def _take(demand: Demand, rooms: list[_Room]) -> bool:
    """A slot with the memory, on the device with most slots left."""
    fitting = [
        room
        for room in rooms
        if room.slots > 0
        and (room.memory_bytes is None or room.memory_bytes >= demand.memory_bytes)
    ]
    if not fitting:
        return False
    room = max(fitting, key=lambda one: one.slots)
    room.slots -= 1
    if room.memory_bytes is not None:
        room.memory_bytes -= demand.memory_bytes
    return True
