"""What was learned of one model version: l(b) over all, and apart where batches differ."""

from collections.abc import Iterable
from typing import Final

from tideserve.server.core.profile import FORGOTTEN_AFTER, FORGOTTEN_SOON, Profile

# More kinds of rows on devices than that are told apart no further: all keys are callers'.
MAX_KINDS: Final = 256
_ANY_DEVICE: Final = ""
# What every row costs where nothing is padded.
_ANY_COST: Final = 1


class Profiles:
    """Owns the profiles: of all batches (`every`), of those whose rows cost as much (a row's
    length where requests are padded, else 1), and both by device where `by_device`.

    What was never seen of a kind is answered from what is next to it: of another length on the
    same device; of any device where the device does not matter.
    """

    def __init__(self, *, by_device: bool = False) -> None:
        self.every = Profile()
        self._by_device = by_device
        self._kinds: dict[tuple[str, int], Profile] = {}

    def observe(self, device: str, row_cost: int, rows: int, latency_s: float) -> None:
        """Learns one outcome."""
        self.every.observe(rows, latency_s)
        for profile in self._concerned(device, row_cost):
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
        return self._known(_ANY_DEVICE, row_cost) or self.every

    def on(self, device: str, row_cost: int) -> Profile | None:
        """Of one device. None: nothing was learned there."""
        return self._known(device, row_cost) or self._known(device, _ANY_COST)

    def least_s(self, row_cost: int, rows: int) -> float | None:
        """l(rows) on the fastest device known. None: nothing was learned."""
        devices = {device for device, _ in self._kinds if device != _ANY_DEVICE}
        known = [profile for at in devices if (profile := self.on(at, row_cost)) is not None]
        times_s = [profile.latency_s(rows) for profile in known or [self.every]]
        return min((time_s for time_s in times_s if time_s is not None), default=None)

    def costs(self, device: str) -> list[int]:
        """What rows cost that were timed there."""
        return [cost for at, cost in self._kinds if at == device and cost != _ANY_COST]

    def _known(self, device: str, row_cost: int) -> Profile | None:
        found = self._kinds.get((device, row_cost))
        return found if found is not None and found.known else None

    def _concerned(self, device: str, row_cost: int) -> list[Profile]:
        """Those beside `every`."""
        kinds = [(device, _ANY_COST)] if self._by_device else []
        if row_cost != _ANY_COST:
            kinds += [(at, row_cost) for at in (_ANY_DEVICE, *(at for at, _ in kinds))]
        found = [self._kind(kind) for kind in kinds]
        return [profile for profile in found if profile is not None]

    def _kind(self, kind: tuple[str, int]) -> Profile | None:
        """None: there are too many."""
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            return None
        # By those of a device batches are formed.
        after = FORGOTTEN_AFTER if kind[0] == _ANY_DEVICE else FORGOTTEN_SOON
        return self._kinds.setdefault(kind, Profile(after))
