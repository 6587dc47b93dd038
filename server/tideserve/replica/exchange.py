"""Which Exchange a replica sends next, and when it computes (15.3): a pure state machine.

Two threads share it. The compute thread calls the frontend itself while it has nothing to
compute: with one caller and short batches that is one call a batch and no hand-over. The
link thread calls while the compute thread computes: to hand over the last outcome and to
prefetch the next lease. So at most two calls are out, and the older of two is answered
empty by the frontend.

Two calls may overtake each other on the way. The older is then refused; its outcomes travel
again with the next call, which is harmless: an outcome for a lease that is no longer held
is dropped.
"""

import sys
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate
from typing import Final, NamedTuple

from tideserve.replica.wire import Answer, Lease

# A call costs about 0.2 ms of CPU: below this much compute, prefetching hides less than
# its second call costs.
PREFETCH_MIN_COMPUTE_S: Final = 0.001
COMPUTE_WEIGHT: Final = 0.2
# After so many prefetches without a lease only every so-manieth batch tries again.
PREFETCH_MAX_MISSES: Final = 4
PREFETCH_PROBE_BATCHES: Final = 8


class Worker(Enum):
    """Who makes a call."""

    COMPUTE = "compute"
    LINK = "link"


class Call(NamedTuple):
    """Send this Exchange and report its answer under the same number."""

    sequence: int
    outcomes: tuple[bytes, ...]
    want: bool


class Compute(NamedTuple):
    """Run this lease and report `on_finished`."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until the state changes."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Drained, with empty hands: done."""


class Broken(Enum):
    """What to do about a call that ended without an answer."""

    REPEAT = "repeat"
    """The same number again, with the same content."""
    LIFE_OVER = "life over"
    """It was superseded: its answer may have held a lease that nobody can name."""


@dataclass(slots=True)
class Prefetch:
    """Whether to ask for the next batch while one computes: worth it when batches take long
    enough to hide a call, and when earlier prefetches brought leases."""

    enabled: bool = True
    compute_s: float = 0.0
    misses: int = 0
    batches: int = 0

    def observe_compute(self, compute_s: float) -> None:
        """One batch took so long."""
        self.batches += 1
        if self.batches == 1:
            self.compute_s = compute_s
        self.compute_s += COMPUTE_WEIGHT * (compute_s - self.compute_s)

    def observe_answer(self, *, hit: bool) -> None:
        """A prefetching call was answered."""
        self.misses = 0 if hit else self.misses + 1

    def wanted(self) -> bool:
        """For the batch that computes now."""
        if not self.enabled or self.compute_s < PREFETCH_MIN_COMPUTE_S:
            return False
        return self.misses < PREFETCH_MAX_MISSES or self.batches % PREFETCH_PROBE_BATCHES == 0


class _Outcome(NamedTuple):
    message: bytes
    extent: int | None


class _Sent(NamedTuple):
    worker: Worker
    call: Call
    outcomes: tuple[_Outcome, ...]


@dataclass(slots=True)
class ExchangeState:
    """Owns the numbering, the leases in hand and the outcomes not yet handed over.

    One call carries outcomes of at most `max_call_bytes`, or a single one.
    """

    prefetch: Prefetch = field(default_factory=Prefetch)
    max_call_bytes: int = sys.maxsize
    draining: bool = False
    computing: Lease | None = None
    _sequence: int = 0
    _out: dict[int, _Sent] = field(default_factory=dict)
    _leases: deque[Lease] = field(default_factory=deque)
    _outcomes: list[_Outcome] = field(default_factory=list)

    # --- events ---------------------------------------------------------------------------

    def on_finished(self, outcome: bytes, compute_s: float, extent: int | None = None) -> None:
        """The lease that was computing has an outcome, with outputs in an arena's `extent`."""
        self.computing = None
        self._outcomes.append(_Outcome(outcome, extent))
        self.prefetch.observe_compute(compute_s)

    def on_answer(self, answer: Answer) -> list[int]:
        """A call was answered: the extents of its outcomes, which nobody reads any more. One
        that is not out any more changes nothing."""
        sent = self._out.pop(answer.sequence, None)
        if sent is None:
            return []
        if answer.lease is not None:
            self._leases.append(answer.lease)
        if sent.worker is Worker.LINK and sent.call.want and not self.draining:
            self.prefetch.observe_answer(hit=answer.lease is not None)
        self.draining = self.draining or answer.drain
        return [outcome.extent for outcome in sent.outcomes if outcome.extent is not None]

    def on_broken(self, sequence: int) -> Broken:
        """A call ended without an answer; it stays out if it is to be repeated."""
        if sequence == self._sequence:
            return Broken.REPEAT
        return Broken.LIFE_OVER

    def on_refused(self, sequence: int, *, repeated: bool) -> bool:
        """A call was refused as out of order or of another life. True: a newer one overtook
        it and its outcomes wait for the next call. False: this life is over, as it is for a
        repeated call: an answer that was lost may have held a lease that nobody can name."""
        if repeated or sequence == self._sequence:
            return False
        self._outcomes += self._out.pop(sequence).outcomes
        return True

    def on_drain(self) -> None:
        """Finish what is in hand, ask for no more."""
        self.draining = True

    def is_newest(self, sequence: int) -> bool:
        """No later Exchange was sent."""
        return sequence == self._sequence

    # --- decisions ------------------------------------------------------------------------

    def next_for_compute(self) -> Call | Compute | Wait | Leave:
        """What the compute thread does now."""
        if self._leases:
            self.computing = self._leases.popleft()
            return Compute(self.computing)
        newest = self._out.get(self._sequence)
        if self._outcomes or (newest is None and not self.draining):
            return self._call(Worker.COMPUTE, want=not self.draining)
        if not self.draining:
            return Wait()
        if newest is not None and newest.call.want:
            # Frees the call that waits for a lease which is no longer wanted.
            return self._call(Worker.COMPUTE, want=False)
        return Wait() if self._out else Leave()

    def next_for_link(self) -> Call | Wait:
        """What the link thread does now."""
        want = self._link_wants()
        return Wait() if want is None else self._call(Worker.LINK, want=want)

    def link_has_work(self) -> bool:
        """Whether `next_for_link` would be a call: the link thread sleeps otherwise."""
        return self._link_wants() is not None

    def _link_wants(self) -> bool | None:
        """`want` of the link thread's next call; None for no call."""
        newest = self._out.get(self._sequence)
        want = not self.draining and self.prefetch.wanted()
        if self.computing is not None:
            want = want and not self._leases
            return want if self._outcomes or (want and newest is None) else None
        if newest is None or newest.worker is not Worker.COMPUTE or not newest.call.want:
            return None
        # The compute thread waits in a call though there is a lease to compute, or though
        # none is wanted any more: a newer call frees it.
        if self._leases or self.draining:
            return want
        # Or there are outcomes, of a call that it overtook: all callers may wait for these, so
        # that no work comes to end its call.
        return False if self._outcomes else None

    def _call(self, worker: Worker, *, want: bool) -> Call:
        self._sequence += 1
        outcomes = self._take_outcomes()
        messages = tuple([outcome.message for outcome in outcomes])
        # What is left goes with the next call, so this one must not wait for a lease.
        call = Call(self._sequence, messages, want and not self._outcomes)
        self._out[call.sequence] = _Sent(worker, call, outcomes)
        return call

    def _take_outcomes(self) -> tuple[_Outcome, ...]:
        """Those that the next call carries, from the oldest."""
        if len(self._outcomes) < 2:
            taken = tuple(self._outcomes)
            self._outcomes.clear()
            return taken
        ends = list(accumulate(len(outcome.message) for outcome in self._outcomes))
        count = max(bisect_right(ends, self.max_call_bytes), min(1, len(ends)))
        taken = tuple(self._outcomes[:count])
        del self._outcomes[:count]
        return taken
