"""What the connections of a front have in common."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from tideserve.server.front.native.deadlines import Deadlines
from tideserve.server.front.native.outbox import Unsent
from tideserve.v1.methods import Kind


@dataclass(slots=True, eq=False)
class Shared:
    """Bounds, and what counts against them.

    `methods` by path; `held_bytes` of requests that are not whole yet; `unsent` of answers whose
    clients do not take them; `deadlines` by call; `at_work` has the ids of calls whose requests are
    inflated, a step each in turn.
    """

    methods: Mapping[str, Kind]
    max_message_bytes: int
    max_held_bytes: int
    max_unsent_bytes: int
    max_concurrent_streams: int
    held_bytes: int = 0
    unsent: Unsent = field(default_factory=Unsent)
    deadlines: Deadlines = field(default_factory=Deadlines)
    at_work: deque[int] = field(default_factory=deque)
