"""Triton's preserve_ordering: answers leave in the order in which requests were admitted."""

from collections import OrderedDict

from tideserve.server.core.actions import Action, Complete
from tideserve.server.core.leases import Lease
from tideserve.server.core.request import Request


class OrderKeeper:
    """Holds completed answers until every earlier request has its outcome.

    Owns an entry for each admitted request without one: None while it is awaited, else the
    answer that is held. Bounded by the queue and the leases.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[int, tuple[Lease, Request, int] | None] = OrderedDict()

    def expect(self, request: Request) -> None:
        """A request was admitted."""
        self._entries[request.request_id] = None

    def complete(self, complete: Complete) -> list[Action]:
        """Answers came: those that may go out now."""
        for request, first_row in complete.answers:
            self._entries[request.request_id] = (complete.lease, request, first_row)
        # The lease itself is settled now, whenever its answers leave.
        return [Complete(complete.lease, []), *self._release()]

    def skip(self, request: Request) -> list[Action]:
        """A request ended otherwise: those that waited for it."""
        self._entries.pop(request.request_id, None)
        return self._release()

    def _release(self) -> list[Action]:
        released: list[Action] = []
        while self._entries:
            request_id, held = next(iter(self._entries.items()))
            if held is None:
                break
            del self._entries[request_id]
            lease, request, first_row = held
            released.append(Complete(lease, [(request, first_row)]))
        return released
