"""One call, as its connection knows it."""

from tideserve.server.front.native.deadlines import Deadlines
from tideserve.server.front.native.headers import RequestHead
from tideserve.server.front.native.outbox import Outgoing
from tideserve.server.front.native.request import Request
from tideserve.v1.methods import Kind


class Stream(Outgoing):
    """Its request so far. `begun`: its `Call` was given; `answered`: the server has ended it."""

    __slots__ = (
        "answered",
        "began_s",
        "begun",
        "call_id",
        "half_closed",
        "head",
        "kind",
        "opened",
        "request",
        "taken_bytes",
    )

    def __init__(
        self, number: int, call_id: int, head: RequestHead, kind: Kind, began_s: float
    ) -> None:
        super().__init__(number)
        self.call_id = call_id
        self.began_s = began_s
        self.head = head
        self.kind = kind
        self.request: Request | None = None  # what is not here at once of it
        self.taken_bytes = 0
        self.half_closed = self.begun = self.opened = self.answered = False

    def release(self, deadlines: Deadlines) -> None:
        """Gives back what the call has of the front's bounds."""
        if self.request is not None:
            self.request.release()
            self.request = None
        if self.head.timeout_s is not None:
            deadlines.drop(self.call_id)
