"""Triton's preserve_ordering: answers leave in the order in which requests were admitted."""

from collections import OrderedDict

from tideserve.server.core.actions import Complete
from tideserve.server.core.leases import Lease
from tideserve.server.core.request import Request


class OrderKeeper:
    """Holds completed answers until every earlier request has its outcome.

    Owns an entry for each admitted request without one: None while it is awaited, else the
    answer that is held. `held` counts the latter, `held_bytes` what they keep: their requests' and
    the outputs of their batches, each of which is kept whole. Admission bounds both (R2).
    """

    def __init__(self) -> None:
        self.held = 0
        self.held_bytes = 0
        self._held_of: dict[int, int] = {}  # by lease
        self._entries: OrderedDict[int, tuple[Lease, Request, int] | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def expect(self, request: Request) -> None:
        """A request was admitted."""
        self._entries[request.request_id] = None

    def complete(self, lease: Lease, answers: list[tuple[Request, int]]) -> list[Complete]:
        """Answers came: those that may go out now, each `done` from here on. The lease itself
        is settled now, by an entry without answers if need be."""
        for request, first_row in answers:
            self._entries[request.request_id] = (lease, request, first_row)
            self._hold(lease, request)
        released = self._release()
        if not any(complete.lease is lease for complete in released):
            released.insert(0, Complete(lease, []))
        return released

    def skip(self, request: Request) -> list[Complete]:
        """A request ended otherwise: those that waited for it."""
        entry = self._entries.pop(request.request_id, None)
        if entry is not None:
            self._let_go(entry[0], request)
        return self._release()

    def _release(self) -> list[Complete]:
        released: list[Complete] = []
        while self._entries:
            request_id, entry = next(iter(self._entries.items()))
            if entry is None:
                break
            del self._entries[request_id]
            lease, request, first_row = entry
            self._let_go(lease, request)
            request.done = True
            if released and released[-1].lease is lease:
                released[-1].answers.append((request, first_row))
            else:
                released.append(Complete(lease, [(request, first_row)]))
        return released

    def _hold(self, lease: Lease, request: Request) -> None:
        self.held += 1
        self.held_bytes += request.payload_bytes
        held = self._held_of.get(lease.lease_id, 0)
        self._held_of[lease.lease_id] = held + 1
        if not held:
            self.held_bytes += lease.output_bytes

    def _let_go(self, lease: Lease, request: Request) -> None:
        self.held -= 1
        self.held_bytes -= request.payload_bytes
        self._held_of[lease.lease_id] -= 1
        if not self._held_of[lease.lease_id]:
            del self._held_of[lease.lease_id]
            self.held_bytes -= lease.output_bytes
