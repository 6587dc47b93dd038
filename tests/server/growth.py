"""Bytes that a request leaves behind, by tracemalloc: `python -m tests.server.growth answered`."""

import gc
import logging
import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

from tests.server.fake_front import INFER, STREAM, FakeReplica, World, echo, failure
from tests.server.samples import make_request
from tideserve.server.front import Cancel
from tideserve.v1.inference_pb2 import ModelInferRequest
from tideserve.v1.replica_pb2 import BatchFailure, ExchangeResponse

ROUND_S = 0.01
ROWS = 8  # of a batch
WARM_UP_ROUNDS = 400  # windows of outcomes and of arrivals are full
# What leaks grows in each of them; what only settles does not.
WINDOWS = 3
WINDOW_ROUNDS = 200

Round = Callable[["Load", int], None]


class Load:
    """A world with one replica that always has an Exchange waiting."""

    def __init__(self) -> None:
        self.world = World()
        self.replica: FakeReplica = self.world.replica()
        self.waiting = self.replica.exchange()

    def post(self, number: int, payload: bytes | None = None) -> int:
        payload = payload or make_request(1, request_id=f"request-{number}")
        return self.world.post(INFER, payload, time_left_s=5.0)

    def hand_back(self, fails: bool = False) -> None:
        """The batch that was leased, and asks for the next."""
        answer = self.world.answer(self.waiting, ExchangeResponse)
        assert answer.HasField("lease")
        lease = answer.lease
        outcome = failure(lease, BatchFailure.MODEL_ERROR) if fails else echo(lease)
        self.waiting = self.replica.exchange(outcome)

    def forget_answers(self) -> None:
        """What the front of lists keeps for tests to look at."""
        front = self.world.front
        waiting = front.answers.get(self.waiting)
        front.answers, front.failures = {}, {}
        if waiting is not None:
            front.answers[self.waiting] = waiting
        del front.ended[:], front.timeouts_s[:]
        front.gone.clear()
        for sent in front.sent.values():
            sent.clear()
        for call_id in list(front.sent):
            if call_id != self.replica.life_line:
                del front.sent[call_id]


def answered(load: Load, number: int) -> None:
    for at in range(ROWS):
        load.post(number * ROWS + at)
    load.world.turn()
    load.hand_back()


def failed_by_the_model(load: Load, number: int) -> None:
    for at in range(ROWS):
        load.post(number * ROWS + at)
    load.world.turn()
    load.hand_back(fails=True)


def cancelled_in_the_batch(load: Load, number: int) -> None:
    calls = [load.post(number * ROWS + at) for at in range(ROWS)]
    load.world.turn()
    for call_id in calls[1:]:
        load.world.front.gone.add(call_id)
    load.world.turn(*(Cancel(call_id) for call_id in calls[1:]))
    load.hand_back()


def refused(load: Load, number: int) -> None:
    """An unknown model, a wrong size, no message at all, each with a name of its own."""
    for at in range(ROWS // 2):
        unknown = ModelInferRequest(model_name=f"unknown-{number * ROWS + at}")
        load.post(0, unknown.SerializeToString())
        load.post(0, make_request(1, request_id=f"short-{number}-{at}", raw=b"123"))
    load.post(0, b"\xff")
    load.world.turn()


def streamed(load: Load, number: int) -> None:
    calls = [load.world.post(STREAM) for _ in range(ROWS)]
    load.world.turn()
    for call_id in calls:
        load.world.message(call_id, make_request(1, request_id=f"stream-{number}"))
        if load.waiting in load.world.front.answers:
            load.hand_back()
    for call_id in calls:
        load.world.half_close(call_id)
    while load.waiting in load.world.front.answers:
        load.hand_back()


def joined_and_left(load: Load, number: int) -> None:
    """Replicas come and go: drained, and lost."""
    world = load.world
    for name in (f"drained-{number}", f"lost-{number}"):
        other = FakeReplica(world, name, world.keys[0])
        other.ready()
        if name.startswith("drained"):
            world.scheduler.on_drain(name, world.now_s, "drained by request")
        world.front.gone.add(other.life_line)
        world.turn(Cancel(other.life_line))
        world.services.replicas.forget(name)


PLAYS = {
    play.__name__: play
    for play in (
        answered,
        failed_by_the_model,
        cancelled_in_the_batch,
        refused,
        streamed,
        joined_and_left,
    )
}


def growth_bytes(play: Round) -> float:
    """By which a request makes the process larger: of the window that grew least."""
    logging.disable(logging.CRITICAL)
    tracemalloc.start()
    load = Load()

    def run(numbers: range) -> None:
        for number in numbers:
            load.world.now_s += ROUND_S
            load.replica.beat()
            play(load, number)
            load.forget_answers()

    def held_bytes() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    run(range(WARM_UP_ROUNDS))
    held = [held_bytes()]
    for window in range(WINDOWS):
        begin = WARM_UP_ROUNDS + window * WINDOW_ROUNDS
        run(range(begin, begin + WINDOW_ROUNDS))
        held.append(held_bytes())
    grown_bytes = min(after - before for before, after in pairwise(held))
    return grown_bytes / (WINDOW_ROUNDS * ROWS)


if __name__ == "__main__":
    print(growth_bytes(PLAYS[sys.argv[1]]))  # noqa: T201 - read by test_growth
