"""Carries out what `exchange` decides, on two threads, for one life."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from threading import Condition, Event, RLock, Thread
from time import monotonic
from typing import Final, Protocol, assert_never

from tideserve.replica.arena import Arena, Outbox
from tideserve.replica.errors import CallBrokenError, CallRefusedError, WireError
from tideserve.replica.exchange import (
    Broken,
    Call,
    Compute,
    ExchangeState,
    Leave,
    Wait,
    Worker,
)
from tideserve.replica.wire import Answer, Lease, RequestWriter, read_answer

_LOG: Final = logging.getLogger(__name__)
# A broken call is repeated after this long, and given up with the life after so long.
REPEAT_PAUSE_S: Final = 0.05
REPEAT_LIMIT_S: Final = 5.0
# An Exchange answered empty sooner than this is not followed by another one at once.
EMPTY_PAUSE_S: Final = 0.02


class Caller(Protocol):
    """`Link`, to an exchanger."""

    def exchange(self, message: bytes) -> bytes: ...


class LeaseRunner(Protocol):
    """`Runner`, to an exchanger."""

    @property
    def device_lost(self) -> bool: ...

    def run(self, lease: Lease, max_message_bytes: int, outbox: Outbox | None = None) -> bytes: ...


class End(Enum):
    """Why an exchanger ended by itself."""

    DRAINED = "drained"
    DEVICE_LOST = "device lost"
    REFUSED = "refused"
    BROKEN = "broken"


@dataclass(slots=True)
class BusyClock:
    """Time the compute thread was busy since the process started. One thread writes."""

    total_s: float = 0.0
    since_s: float | None = None

    def busy_s(self, now_s: float) -> float:
        since_s = self.since_s
        return self.total_s + (0.0 if since_s is None else now_s - since_s)


class Exchanger:
    """Owns one life's Exchanges. `run` on the compute thread, `start` and `close` around it.

    `on_end` hears, once and from any of the threads, why the exchanger ended by itself.
    """

    def __init__(
        self,
        caller: Caller,
        runner: LeaseRunner,
        state: ExchangeState,
        writer: RequestWriter,
        *,
        max_message_bytes: int,
        busy: BusyClock,
        on_end: Callable[[End, str], None],
        arena: Arena | None = None,
    ) -> None:
        self._caller = caller
        self._runner = runner
        self._state = state
        self._writer = writer
        self._max_message_bytes = max_message_bytes
        self._busy = busy
        self._on_end = on_end
        self._arena = arena
        lock = RLock()
        self._compute_wake = Condition(lock)
        self._link_wake = Condition(lock)
        self._lock = lock
        self._over = Event()
        self._link_thread = Thread(target=self._run_link, name="link", daemon=True)
        self.last_sent_s = 0.0

    def start(self) -> None:
        """Starts the link thread."""
        self._link_thread.start()

    def drain(self) -> None:
        """Finish what is in hand, then end with `DRAINED`."""
        with self._lock:
            self._state.on_drain()
            self._wake_all()

    def close(self) -> None:
        """Ends both threads once their calls are over; close the link as well."""
        with self._lock:
            self._over.set()
            self._wake_all()

    def run(self) -> None:
        """The compute thread's part: returns when the life ends."""
        while not self._over.is_set():
            match step := self._next_for_compute():
                case Wait():
                    continue  # it has waited
                case Compute(lease):
                    self._compute(lease)
                case Call():
                    self._perform(step, Worker.COMPUTE)
                case Leave():
                    lost = self._runner.device_lost
                    self._end(End.DEVICE_LOST if lost else End.DRAINED, "")
                case _:
                    assert_never(step)

    def _run_link(self) -> None:
        while not self._over.is_set():
            step = self._next_for_link()
            if not isinstance(step, Wait):
                self._perform(step, Worker.LINK)

    def _next_for_compute(self) -> Call | Compute | Wait | Leave:
        """What the compute thread does now; `Wait` once it has waited for a change."""
        with self._lock:
            step = self._state.next_for_compute()
            if self._state.link_has_work():
                self._link_wake.notify()
            if isinstance(step, Wait):
                self._compute_wake.wait()
            return step

    def _next_for_link(self) -> Call | Wait:
        """What the link thread does now; `Wait` once it has waited for a change."""
        with self._lock:
            step = self._state.next_for_link()
            if isinstance(step, Wait):
                self._link_wake.wait()
            return step

    def _compute(self, lease: Lease) -> None:
        start_s = monotonic()
        self._busy.since_s = start_s
        outbox = None if self._arena is None else Outbox(self._arena)
        outcome = self._runner.run(lease, self._max_message_bytes, outbox)
        compute_s = monotonic() - start_s
        self._busy.since_s = None
        self._busy.total_s += compute_s
        with self._lock:
            extent = None if outbox is None else outbox.extent
            self._state.on_finished(outcome, compute_s, extent)
            if self._runner.device_lost:
                self._state.on_drain()

    def _perform(self, call: Call, worker: Worker) -> None:
        message = self._writer.write(call.sequence, call.outcomes, want=call.want)
        first_sent_s = monotonic()
        repeated = False
        while not self._over.is_set():
            sent_s = self.last_sent_s = monotonic()
            try:
                answer = self._answer(call, message)
            except CallRefusedError as error:
                self._on_refused(call, error, repeated=repeated)
                break
            except (CallBrokenError, WireError) as error:
                if not self._on_broken(call, error, first_sent_s):
                    break
                repeated = True
                continue
            self._accept(call, answer, sent_s)
            break
        # The compute thread looks after the link thread in `run`: waking it here, too, would
        # be two thread switches a batch for nothing.
        if worker is Worker.LINK:
            with self._lock:
                self._compute_wake.notify()

    def _answer(self, call: Call, message: bytes) -> Answer:
        answer = read_answer(self._caller.exchange(message), self._arena)
        if answer.sequence != call.sequence:
            raise WireError(
                f"expected the answer to {call.sequence}, got that to {answer.sequence}"
            )
        return answer

    def _on_refused(self, call: Call, error: CallRefusedError, *, repeated: bool) -> None:
        with self._lock:
            overtaken = self._over.is_set() or self._state.on_refused(
                call.sequence, repeated=repeated
            )
        if not overtaken:
            # After a break it may be another frontend that refuses.
            self._end(End.BROKEN if repeated else End.REFUSED, str(error))

    def _on_broken(self, call: Call, error: Exception, first_sent_s: float) -> bool:
        """Whether to repeat the call."""
        with self._lock:
            what = self._state.on_broken(call.sequence)
        if what is Broken.LIFE_OVER or monotonic() - first_sent_s > REPEAT_LIMIT_S:
            self._end(End.BROKEN, str(error))
            return False
        self._over.wait(REPEAT_PAUSE_S)
        return True

    def _accept(self, call: Call, answer: Answer, sent_s: float) -> None:
        with self._lock:
            newest = self._state.is_newest(call.sequence)
            extents = self._state.on_answer(answer)
        if self._arena is not None:
            for extent in extents:
                self._arena.free(extent)
        if answer.dropped_lease_ids:
            _LOG.info("outcomes came too late for leases %s", answer.dropped_lease_ids)
        if (
            answer.lease is None
            and call.want
            and newest
            and not answer.drain
            and monotonic() - sent_s < EMPTY_PAUSE_S
        ):
            self._over.wait(EMPTY_PAUSE_S)

    def _end(self, end: End, detail: str) -> None:
        with self._lock:
            if self._over.is_set():
                return
            self._over.set()
            self._wake_all()
        self._on_end(end, detail)

    def _wake_all(self) -> None:
        self._compute_wake.notify_all()
        self._link_wake.notify_all()
