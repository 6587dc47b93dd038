"""Which device the next replica gets: slots and memory, as they are taken now."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tideserve.autoscaler.core.settings import Device


@dataclass(slots=True)
class _Room:
    device: Device
    replicas: int = 0
    memory_bytes: int = 0

    def fits(self, memory_bytes: int) -> bool:
        """One more replica."""
        return self.replicas < self.device.slots and self.holds(memory_bytes)

    def holds(self, memory_bytes: int) -> bool:
        """That much more; a model that counts no memory always fits."""
        limit = self.device.memory_bytes
        return not limit or not memory_bytes or self.memory_bytes + memory_bytes <= limit


class Slots:
    """The ledger of one pass. `taken`: device name and memory of each replica there is; one on a
    device that is not listed (any more) takes nothing."""

    def __init__(self, devices: Sequence[Device], taken: Iterable[tuple[str, int]]) -> None:
        self._rooms = {device.name: _Room(device) for device in devices}
        for name, memory_bytes in taken:
            self._take(name, memory_bytes)

    def pick(self, memory_bytes: int, *, beyond: bool = False) -> str | None:
        """Takes a slot on the device with the fewest replicas, the first of those; None: no
        device has room. `beyond`: then one more than there are slots."""
        rooms = [room for room in self._rooms.values() if room.fits(memory_bytes)]
        if not rooms and beyond:
            rooms = list(self._rooms.values())
        if not rooms:
            return None
        name = min(rooms, key=lambda room: room.replicas).device.name
        self._take(name, memory_bytes)
        return name

    def take(self, name: str, memory_bytes: int) -> bool:
        """A slot on this device; False: it has no room."""
        room = self._rooms.get(name)
        if room is None or not room.fits(memory_bytes):
            return False
        self._take(name, memory_bytes)
        return True

    def grow(self, name: str, memory_bytes: int) -> bool:
        """That much more memory for a replica that has its slot on this device; False: it has no
        room."""
        room = self._rooms.get(name)
        if room is None or not room.holds(memory_bytes):
            return False
        room.memory_bytes += memory_bytes
        return True

    def lists(self, name: str) -> bool:
        return name in self._rooms

    def replicas(self, name: str) -> int:
        """How many this device has."""
        room = self._rooms.get(name)
        return room.replicas if room is not None else 0

    def _take(self, name: str, memory_bytes: int) -> None:
        room = self._rooms.get(name)
        if room is not None:
            room.replicas += 1
            room.memory_bytes += memory_bytes
