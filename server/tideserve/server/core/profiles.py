"""What was learned of one model version: l(b) over all, and apart where batches differ."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from tideserve.server.core.profile import FORGOTTEN_AFTER, FORGOTTEN_SOON, Profile

_ANY_DEVICE: Final = ""
_ANY_COST: Final = 0


class Profiles:
    """Owns the profiles: of all batches (`every`), of those whose rows cost up to the same of
    `row_costs` (ascending: the lengths that requests are padded to; what costs more is one kind
    more), and both by device where `by_device`.

    What was never seen of a kind is answered from what is next to it: of another length on the
    same device; of any device where the device does not matter.
    """

    def __init__(self, *, by_device: bool = False, row_costs: tuple[int, ...] = ()) -> None:
        self.every = Profile()
        self._by_device = by_device
        self._row_costs = row_costs
        self._kinds: dict[tuple[str, int], Profile] = {}

    @property
    def tells_costs_apart(self) -> bool:
        return bool(self._row_costs)

    def observe(self, device: str, row_cost: int, rows: int, latency_s: float) -> None:
        """Learns one outcome."""
        self.every.observe(rows, latency_s)
        for profile in self._concerned(device, self._kind_of(row_cost)):
            profile.observe(rows, latency_s)

    def observe_first(self, device: str, points: Iterable[tuple[int, float]]) -> None:
        """(rows, seconds) of a warm-up: learned by those that know nothing."""
        points = list(points)
        for profile in (self.every, *self._concerned(device, _ANY_COST)):
            if not profile.known:
                for rows, latency_s in points:
                    profile.observe(rows, latency_s)

    def of(self, row_cost: int) -> Profile:
        """Over all devices."""
        return self._known(_ANY_DEVICE, self._kind_of(row_cost)) or self.every

    def on(self, device: str, row_cost: int | None = None) -> Profile | None:
        """Of one device, by default whatever the rows cost. None: nothing was learned there."""
        any_cost = self._known(device, _ANY_COST)
        if row_cost is None or not self._row_costs:
            return any_cost
        return self._known(device, self._kind_of(row_cost)) or any_cost

    def least_s(self, row_cost: int, rows: int) -> float | None:
        """l(rows) on the fastest device known. None: nothing was learned."""
        devices = {device for device, _ in self._kinds if device != _ANY_DEVICE}
        known = [profile for at in devices if (profile := self.on(at, row_cost)) is not None]
        times_s = [profile.latency_s(rows) for profile in known or [self.every]]
        return min((time_s for time_s in times_s if time_s is not None), default=None)

    def _kind_of(self, row_cost: int) -> int:
        if not self._row_costs:
            return _ANY_COST
        at = bisect_left(self._row_costs, row_cost)
        return self._row_costs[at] if at < len(self._row_costs) else self._row_costs[-1] + 1

    def _known(self, device: str, kind: int) -> Profile | None:
        found = self._kinds.get((device, kind))
        return found if found is not None and found.known else None

    def _concerned(self, device: str, kind: int) -> list[Profile]:
        """Those beside `every`."""
        kinds = [(device, _ANY_COST)] if self._by_device else []
        if kind != _ANY_COST:
            kinds += [(at, kind) for at in (_ANY_DEVICE, *(at for at, _ in kinds))]
        return [self._kind(*one) for one in kinds]

    def _kind(self, device: str, kind: int) -> Profile:
        # By those of a device batches are formed.
        after = FORGOTTEN_AFTER if device == _ANY_DEVICE else FORGOTTEN_SOON
        return self._kinds.setdefault((device, kind), Profile(after))
