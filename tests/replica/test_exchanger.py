"""The exchanger on its two threads, against a frontend that is a queue in this process."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tideserve.replica import exchanger as module
from tideserve.replica.arena import Outbox
from tideserve.replica.errors import CallBrokenError, CallRefusedError
from tideserve.replica.exchange import ExchangeState, Prefetch
from tideserve.replica.exchanger import BusyClock, End, Exchanger
from tideserve.replica.wire import Lease, RequestWriter, Times, write_result
from tideserve.v1 import replica_pb2
from tideserve.v1.replica_pb2 import ExchangeRequest, ExchangeResponse

TIMEOUT_S = 10.0
Step = Callable[[ExchangeRequest], ExchangeResponse]


@dataclass
class ScriptedFrontend:
    """Answers the n-th call as the n-th step says, drains after the last."""

    steps: deque[Step]
    messages: list[bytes] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def exchange(self, message: bytes) -> bytes:
        with self._lock:
            self.messages.append(message)
            request = ExchangeRequest.FromString(message)
            step = self.steps.popleft() if self.steps else drains
        return step(request).SerializeToString()

    @property
    def requests(self) -> list[ExchangeRequest]:
        return [ExchangeRequest.FromString(message) for message in self.messages]

    @property
    def outcomes(self) -> list[int]:
        return [outcome.lease_id for request in self.requests for outcome in request.outcomes]


class EchoRunner:
    """Gives empty results; loses its device with the lease `lost_with`."""

    def __init__(self, lost_with: int = 0, before: Callable[[Lease], None] | None = None) -> None:
        self.device_lost = False
        self.ran: list[int] = []
        self._lost_with = lost_with
        self._before = before

    def run(self, lease: Lease, max_message_bytes: int, outbox: Outbox | None = None) -> bytes:
        if self._before is not None:
            self._before(lease)
        self.ran.append(lease.lease_id)
        self.device_lost = lease.lease_id == self._lost_with
        return write_result(lease.lease_id, (), Times(0.0, 0.0, 0.0))


def gives(number: int) -> Step:
    return lambda request: ExchangeResponse(
        sequence=request.sequence, lease=replica_pb2.Lease(lease_id=number, rows=1)
    )


def empty(request: ExchangeRequest) -> ExchangeResponse:
    return ExchangeResponse(sequence=request.sequence)


def drains(request: ExchangeRequest) -> ExchangeResponse:
    return ExchangeResponse(sequence=request.sequence, drain=True)


def breaks(request: ExchangeRequest) -> ExchangeResponse:
    raise CallBrokenError("the connection broke")


def refuses(request: ExchangeRequest) -> ExchangeResponse:
    raise CallRefusedError("another life")


def answers_another(request: ExchangeRequest) -> ExchangeResponse:
    return ExchangeResponse(sequence=request.sequence + 1)


def exchanger_of(
    caller: Any, runner: EchoRunner, ends: list[tuple[End, str]], prefetch: Prefetch | None = None
) -> Exchanger:
    return Exchanger(
        caller,
        runner,
        ExchangeState(prefetch or Prefetch(enabled=False)),
        RequestWriter("r1", 7),
        max_message_bytes=1 << 20,
        busy=BusyClock(),
        on_end=lambda end, detail: ends.append((end, detail)),
    )


def run(exchanger: Exchanger) -> threading.Thread:
    exchanger.start()
    thread = threading.Thread(target=exchanger.run, daemon=True)
    thread.start()
    return thread


def served(
    *steps: Step, runner: EchoRunner | None = None, prefetch: Prefetch | None = None
) -> tuple[ScriptedFrontend, EchoRunner, list[tuple[End, str]]]:
    """A whole life, until the exchanger ends by itself."""
    frontend, ends = ScriptedFrontend(deque(steps)), list[tuple[End, str]]()
    runner = runner or EchoRunner()
    exchanger = exchanger_of(frontend, runner, ends, prefetch)
    thread = run(exchanger)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    exchanger.close()
    return frontend, runner, ends


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPEAT_PAUSE_S", 0.0)
    monkeypatch.setattr(module, "EMPTY_PAUSE_S", 0.0)


def test_leases_are_computed_and_handed_back_once_until_drained() -> None:
    frontend, runner, ends = served(gives(1), empty, gives(2), gives(3))
    assert runner.ran == [1, 2, 3]
    assert frontend.outcomes == [1, 2, 3]
    assert [request.sequence for request in frontend.requests] == [1, 2, 3, 4, 5]
    assert {(request.replica_id, request.epoch) for request in frontend.requests} == {("r1", 7)}
    assert ends == [(End.DRAINED, "")]


def test_a_drain_with_a_lease_hands_its_outcome_back_without_asking_for_more() -> None:
    def last(request: ExchangeRequest) -> ExchangeResponse:
        answer = gives(1)(request)
        answer.drain = True
        return answer

    frontend, _, ends = served(last)
    assert frontend.outcomes == [1]
    assert [request.want for request in frontend.requests] == [True, False]
    assert ends == [(End.DRAINED, "")]


def test_a_broken_call_is_repeated_byte_for_byte() -> None:
    frontend, runner, ends = served(gives(1), breaks, breaks, gives(2))
    assert frontend.messages[1] == frontend.messages[2] == frontend.messages[3]
    assert [request.sequence for request in frontend.requests] == [1, 2, 2, 2, 3]
    assert runner.ran == [1, 2]
    assert ends == [(End.DRAINED, "")]


def test_an_answer_to_another_number_counts_as_broken() -> None:
    frontend, runner, _ = served(answers_another, gives(1))
    assert frontend.messages[0] == frontend.messages[1]
    assert runner.ran == [1]


@pytest.mark.interpreted
def test_a_call_that_stays_broken_ends_the_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPEAT_LIMIT_S", -1.0)
    frontend, _, ends = served(breaks)
    assert len(frontend.messages) == 1
    assert ends == [(End.BROKEN, "the connection broke")]


@pytest.mark.parametrize(
    ("steps", "end"), [((refuses,), End.REFUSED), ((breaks, refuses), End.BROKEN)]
)
def test_a_refusal_ends_it_and_after_a_break_it_may_be_another_frontends(
    steps: tuple[Step, ...], end: End
) -> None:
    _, runner, ends = served(*steps)
    assert runner.ran == []
    assert ends == [(end, "another life")]


def test_a_lost_device_is_handed_back_and_ends_it() -> None:
    frontend, runner, ends = served(gives(1), gives(2), empty, runner=EchoRunner(lost_with=2))
    assert runner.ran == frontend.outcomes == [1, 2]
    assert [request.want for request in frontend.requests] == [True, True, False]
    assert ends == [(End.DEVICE_LOST, "")]


def test_while_a_batch_computes_the_next_is_fetched() -> None:
    fetched = threading.Event()

    def second(request: ExchangeRequest) -> ExchangeResponse:
        fetched.set()
        return gives(2)(request)

    def before(lease: Lease) -> None:
        if lease.lease_id == 1:
            assert fetched.wait(TIMEOUT_S)

    slow = Prefetch(compute_s=1.0, batches=1)
    frontend, runner, ends = served(
        gives(1), second, runner=EchoRunner(before=before), prefetch=slow
    )
    assert runner.ran == [1, 2]
    assert frontend.outcomes == [1, 2]
    assert ends == [(End.DRAINED, "")]


def test_closing_ends_a_thread_that_waits_and_tells_nobody() -> None:
    asked, closed = threading.Event(), threading.Event()

    class Silent:
        def exchange(self, message: bytes) -> bytes:
            asked.set()
            assert closed.wait(TIMEOUT_S)
            raise CallBrokenError("the life is closed")

    ends: list[tuple[End, str]] = []
    exchanger = exchanger_of(Silent(), EchoRunner(), ends)
    thread = run(exchanger)
    assert asked.wait(TIMEOUT_S)
    exchanger.close()
    closed.set()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert ends == []


def test_a_signals_drain_ends_an_exchanger_that_waits_in_a_call() -> None:
    asked, freed = threading.Event(), threading.Event()

    class Frontend:
        def exchange(self, message: bytes) -> bytes:
            request = ExchangeRequest.FromString(message)
            if request.want:
                asked.set()
                assert freed.wait(TIMEOUT_S)
            else:
                freed.set()
            return empty(request).SerializeToString()

    ends: list[tuple[End, str]] = []
    exchanger = exchanger_of(Frontend(), EchoRunner(), ends)
    thread = run(exchanger)
    assert asked.wait(TIMEOUT_S)
    exchanger.drain()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert ends == [(End.DRAINED, "")]


@pytest.mark.interpreted
def test_an_early_empty_answer_is_not_followed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EMPTY_PAUSE_S", 3600.0)
    again = threading.Event()
    paused = threading.Event()

    class Frontend:
        def exchange(self, message: bytes) -> bytes:
            (again if paused.is_set() else paused).set()
            return empty(ExchangeRequest.FromString(message)).SerializeToString()

    exchanger = exchanger_of(Frontend(), EchoRunner(), [])
    thread = run(exchanger)
    assert paused.wait(TIMEOUT_S)
    assert not again.wait(0.1)
    exchanger.close()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def test_busy_time_counts_the_batch_that_runs_now() -> None:
    busy = BusyClock(total_s=2.0)
    assert busy.busy_s(100.0) == 2.0
    busy.since_s = 99.5
    assert busy.busy_s(100.0) == 2.5
