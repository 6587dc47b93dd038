"""The steps of one request, and a stopwatch that gives each the time that is its own."""

from collections.abc import Callable
from enum import Enum


class Stage(Enum):
    """A step on the dispatcher's thread."""

    RECEIVE = "receive"
    """Waiting for the front's sockets, reading them, and HTTP/2 on the way in."""
    SEND = "send"
    """Writing to the front's sockets."""
    PARSE = "parse"
    ADMIT = "admission"
    DECIDE = "decide"
    """The core: batches, leases, deadlines."""
    GATHER = "gather"
    """Joining a batch."""
    LINK = "link"
    """Messages to and from replicas."""
    SCATTER = "scatter"
    """Checking a batch's outputs, cutting them into answers."""
    RESPOND = "respond"
    """Handing answers to the front: HTTP/2 on the way out."""
    LOOP = "loop"
    """The dispatcher's turn around all of these."""


class Stopwatch:
    """Adds up exclusive seconds by stage, on one thread: entering a stage stops the one that
    it is entered from. Its own cost, `lap_s` a reading, is taken off again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._totals_s = dict.fromkeys(Stage, 0.0)
        self._stack: list[Stage] = []
        self._since_s = 0.0
        self.lap_s = 0.0
        self.laps = 0

    def calibrate(self, rounds: int = 20_000) -> None:
        """Measures what one lap costs."""
        began_s = self._clock()
        for _ in range(rounds):
            self.enter(Stage.LOOP)
            self.leave()
        self.lap_s = (self._clock() - began_s) / (2 * rounds)
        self._totals_s = dict.fromkeys(Stage, 0.0)
        self.laps = 0

    @property
    def now(self) -> Stage | None:
        """The stage that runs."""
        return self._stack[-1] if self._stack else None

    def enter(self, stage: Stage) -> None:
        """`stage` begins inside the one that runs."""
        self._count()
        self._stack.append(stage)

    def leave(self) -> None:
        """The stage that runs ends."""
        self._count()
        self._stack.pop()

    def totals_s(self) -> dict[Stage, float]:
        """Seconds of each so far."""
        self._count()
        return dict(self._totals_s)

    def _count(self) -> None:
        now_s = self._clock()
        if self._stack:
            self._totals_s[self._stack[-1]] += now_s - self._since_s - self.lap_s
        self.laps += 1
        self._since_s = now_s
