"""What a launcher last saw of its containers, and what it has yet to do to them.

Two threads meet here: one asks for things, one looks at the engine. A look takes a while, so
what was asked for meanwhile wins over it.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Final

from tideserve.autoscaler.core.fleet import Exit
from tideserve.autoscaler.launchers import Handle
from tideserve.autoscaler.launchers.containers import container_name

_KEPT_LOGS: Final = 50
_REMOVED: Final = Exit("its container was removed by somebody else")


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the engine begins with. `kills`: replica ids, `doomed`: containers to be
    removed until a look no longer lists them, with the time until which they may yet appear. `ended`: whose end is known."""

    count: int
    kills: tuple[str, ...]
    doomed: Mapping[str, float]
    ended: frozenset[str]


@dataclass(slots=True)
class _Entry:
    """`changed`: the table's count when it was last put here by a start."""

    handle: Handle
    changed: int
    kill: bool = False


class ContainerTable:
    """Owns the handles, the kills and removals that are due, and the last lines of containers
    that ended. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._doomed: dict[str, float] = {}
        self._last_lines: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._count = 0

    # --- of who asks ----------------------------------------------------------------------

    def handles(self) -> list[Handle]:
        with self._lock:
            return [entry.handle for entry in self._entries.values()]

    def get(self, replica_id: str) -> Handle | None:
        with self._lock:
            entry = self._entries.get(replica_id)
            return None if entry is None else entry.handle

    def put(self, handle: Handle) -> Handle:
        """One that was started or prepared just now."""
        with self._lock:
            self._count += 1
            self._entries[handle.replica_id] = _Entry(handle, self._count)
        return handle

    def kill(self, replica_id: str) -> None:
        """Has one that runs killed; one that does not is forgotten and removed."""
        with self._lock:
            entry = self._entries.get(replica_id)
            if entry is None:
                return
            if entry.handle.exit is None and not entry.handle.prepared:
                entry.kill = True
            else:
                del self._entries[replica_id]
                self._doomed[container_name(replica_id)] = 0.0

    def abandon(self, replica_id: str, until_s: float) -> None:
        """Forgets one and has it removed, also if it appears later, until then."""
        with self._lock:
            self._entries.pop(replica_id, None)
            self._doomed[container_name(replica_id)] = until_s

    def last_lines(self, replica_id: str) -> tuple[str, ...] | None:
        """None: not remembered."""
        with self._lock:
            return self._last_lines.get(replica_id)

    def owes(self) -> bool:
        """A kill or a removal is due."""
        with self._lock:
            return bool(self._doomed) or any(entry.kill for entry in self._entries.values())

    # --- of who looks ---------------------------------------------------------------------

    def begin(self) -> Look:
        with self._lock:
            entries = self._entries.items()
            return Look(
                self._count,
                tuple(name for name, entry in entries if entry.kill),
                dict(self._doomed),
                frozenset(name for name, entry in entries if entry.handle.exit is not None),
            )

    def killed(self, replica_id: str) -> None:
        """The engine was told."""
        with self._lock:
            if replica_id in self._entries:
                self._entries[replica_id].kill = False

    def merge(
        self, look: Look, seen: Mapping[str, Handle], removing: Set[str], now_s: float
    ) -> bool:
        """Takes in what a look saw, by replica id; True: something ended. `removing`: the doomed
        containers that were still listed."""
        with self._lock:
            ended = [self._take(look, handle) for handle in seen.values()]
            missing = [
                entry
                for replica_id, entry in self._entries.items()
                if replica_id not in seen and entry.changed <= look.count
            ]
            ended += [self._miss(entry) for entry in missing]
            for name, until_s in look.doomed.items():
                over = now_s >= until_s and name not in removing
                if over and self._doomed.get(name) == until_s:
                    del self._doomed[name]
        return any(ended)

    def _take(self, look: Look, handle: Handle) -> bool:
        replica_id = handle.replica_id
        if container_name(replica_id) in self._doomed:
            return False
        entry = self._entries.get(replica_id)
        if entry is None:
            entry = self._entries[replica_id] = _Entry(replace(handle, exit=None), look.count)
        if entry.changed > look.count or entry.handle.exit is not None:
            return False
        # A prepared one got its model after its labels were written.
        entry.handle = replace(handle, key=handle.key or entry.handle.key)
        if handle.exit is not None:
            self._remember(replica_id, handle.exit.log_tail)
        return handle.exit is not None

    def _miss(self, entry: _Entry) -> bool:
        if entry.handle.exit is not None:
            return False
        if entry.handle.prepared:
            del self._entries[entry.handle.replica_id]
        else:
            entry.handle = replace(entry.handle, exit=_REMOVED)
        return True

    def _remember(self, replica_id: str, lines: tuple[str, ...]) -> None:
        self._last_lines[replica_id] = lines
        while len(self._last_lines) > _KEPT_LOGS:
            self._last_lines.popitem(last=False)
