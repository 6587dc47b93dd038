"""Batches through an arena: the whole frontend but its sockets, and a replica's own memory."""

import random
from pathlib import Path

import pytest

from tests.server.fake_front import INFER, FakeReplica, World
from tests.server.samples import make_config, make_found
from tideserve.replica.arena import Outbox
from tideserve.server.arena import Arena
from tideserve.v1 import replica_pb2
from tideserve.v1.arena import MIN_BYTES
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse
from tideserve.v1.methods import REPLICA_SERVICE

ROW_BYTES = MIN_BYTES
CAPACITY_BYTES = 4 * ROW_BYTES


def make_world(*, capacity_bytes: int = CAPACITY_BYTES, preserve_ordering: bool = False) -> World:
    config = make_config()
    config.input[0].dims[:] = config.output[0].dims[:] = [ROW_BYTES // 4]
    config.dynamic_batching.preserve_ordering = preserve_ordering
    return World(make_found(config=config), arena_bytes=capacity_bytes)


class Caller:
    """One request of a row, and what it brought."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self.row = random.Random(seed).randbytes(ROW_BYTES)
        request = ModelInferRequest(model_name="m")
        request.inputs.add(name="IN", datatype="FP32", shape=[1, ROW_BYTES // 4])
        request.raw_input_contents.append(self.row)
        self.call_id = world.call(INFER, request)

    def is_right(self) -> bool:
        (raw,) = self._world.answer(self.call_id, ModelInferResponse).raw_output_contents
        return raw == self.row


def arena_of(world: World, replica_id: str = "r") -> Arena:
    arena = world.services.replicas._arenas.of(replica_id)
    assert arena is not None
    return arena


def compute(replica: FakeReplica, lease: replica_pb2.Lease) -> tuple[replica_pb2.Outcome, Outbox]:
    """What a replica does with a batch of an identity model."""
    assert replica.arena is not None
    (given,) = lease.inputs
    data = bytes(given.data)
    if given.arena_bytes:
        assert not data
        data = bytes(replica.arena.tensor(given.arena_offset, given.arena_bytes))
    outbox = Outbox(replica.arena)
    offsets = outbox.put([data])
    output = replica_pb2.Tensor(name="OUT", datatype="FP32", shape=given.shape)
    if offsets is None:
        output.data = data
    else:
        output.arena_offset, output.arena_bytes = offsets[0], len(data)
    result = replica_pb2.BatchResult(outputs=[output])
    return replica_pb2.Outcome(lease_id=lease.lease_id, result=result, infer_s=0.001), outbox


def test_batches_go_and_come_back_through_the_arena() -> None:
    world = make_world()
    replica = world.replica()
    callers = [Caller(world, seed) for seed in range(2)]
    lease = replica.lease(replica.exchange())
    assert lease.inputs[0].arena_bytes == 2 * ROW_BYTES
    outcome, outbox = compute(replica, lease)
    assert outbox.extent is not None
    replica.exchange(outcome)
    assert all(caller.is_right() for caller in callers)


def test_an_answered_exchange_has_let_go_of_its_outputs() -> None:
    """The replica overwrites them at once."""
    world = make_world()
    replica = world.replica()
    caller = Caller(world, 1)
    outcome, outbox = compute(replica, replica.lease(replica.exchange()))
    call_id = replica.exchange(outcome, want=False)
    assert not world.is_open(call_id)
    assert replica.arena is not None
    assert outbox.extent is not None
    replica.arena.write(outbox.extent, bytes(ROW_BYTES))
    assert caller.is_right()


def test_answers_held_back_for_their_order_survive_that() -> None:
    world = make_world(preserve_ordering=True)
    first, second = world.replica("r"), world.replica("s")
    early = Caller(world, 1)
    early_lease = first.lease(first.exchange())
    late = Caller(world, 2)
    outcome, outbox = compute(second, second.lease(second.exchange()))
    second.exchange(outcome, want=False)
    assert world.is_open(late.call_id)
    ordering = world.scheduler.models[world.keys[0]].ordering
    assert ordering is not None
    assert ordering.held_bytes == 2 * ROW_BYTES  # what came and what goes
    assert second.arena is not None
    assert outbox.extent is not None
    second.arena.write(outbox.extent, bytes(ROW_BYTES))
    first.exchange(compute(first, early_lease)[0], want=False)
    assert early.is_right()
    assert late.is_right()


def test_what_does_not_fit_travels_in_the_message() -> None:
    world = make_world(capacity_bytes=3 * ROW_BYTES)
    replica = world.replica()
    callers = [Caller(world, seed) for seed in range(2)]
    first = replica.lease(replica.exchange())
    callers += [Caller(world, seed) for seed in range(2, 4)]
    second = replica.lease(replica.exchange())
    assert first.inputs[0].arena_bytes == 2 * ROW_BYTES
    assert len(second.inputs[0].data) == 2 * ROW_BYTES
    outcomes = [compute(replica, lease)[0] for lease in (first, second)]
    replica.exchange(*outcomes)
    assert all(caller.is_right() for caller in callers)


def test_a_replica_without_the_memory_gets_bytes() -> None:
    world = make_world()
    replica = world.replica()
    replica.arena = None
    Caller(world, 1)
    assert len(replica.lease(replica.exchange()).inputs[0].data) == ROW_BYTES


def test_a_repeated_exchange_gets_the_same_lease_again() -> None:
    world = make_world()
    replica = world.replica()
    caller = Caller(world, 1)
    lease = replica.lease(replica.exchange())
    again = replica.lease(replica.exchange(sequence=replica.sequence))
    assert again == lease
    assert arena_of(world).used_bytes == ROW_BYTES
    replica.exchange(compute(replica, again)[0])
    assert caller.is_right()


def test_an_outcome_at_another_place_fails_its_batch_alone() -> None:
    world = make_world()
    replica = world.replica()
    wrong = Caller(world, 1)
    outcome, _ = compute(replica, replica.lease(replica.exchange()))
    outcome.result.outputs[0].arena_offset = 64
    replica.exchange(outcome)
    assert "expected an output between" in world.failed(wrong.call_id).message
    right = Caller(world, 2)
    # The Exchange that brought the wrong one waited, and has the next lease.
    lease = replica.lease(max(world.front.answers))
    replica.exchange(compute(replica, lease)[0])
    assert right.is_right()


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_the_arena_is_empty_when_a_batch_is_over(is_cancelled: bool) -> None:
    world = make_world()
    replica = world.replica()
    caller = Caller(world, 1)
    lease = replica.lease(replica.exchange())
    if is_cancelled:
        world.cancel(caller.call_id)
    replica.beat()
    assert arena_of(world).used_bytes == ROW_BYTES
    replica.exchange(compute(replica, lease)[0], want=False)
    replica.beat()
    assert arena_of(world).used_bytes == 0


def test_the_arena_is_empty_when_a_batch_was_not_delivered() -> None:
    world = make_world()
    replica = world.replica()
    replica.exchange(want=False)
    world.front.gone.add(replica.exchange())
    caller = Caller(world, 1)
    replica.beat()
    assert arena_of(world).used_bytes == 0
    replica.exchange(compute(replica, replica.lease(replica.exchange()))[0])
    assert caller.is_right()


def test_a_lost_replicas_memory_is_gone_and_its_batch_is_computed_by_another() -> None:
    world = make_world()
    replica = world.replica("r")
    caller = Caller(world, 1)
    path = Path(replica.commands()[0].welcome.arena.path)
    assert path.exists()
    replica.lease(replica.exchange())
    assert not path.exists(), "nobody needs the file once it is mapped"
    world.cancel(replica.life_line)
    other = world.replica("s")
    other.exchange(compute(other, other.lease(other.exchange()))[0])
    assert caller.is_right()
    assert world.services.replicas._arenas.mapped == 1


@pytest.mark.parametrize(("device", "keeps"), [("cpu", False), ("gpu:0", True), ("", False)])
def test_the_memory_of_a_replica_with_a_device_keeps_its_pages(device: str, keeps: bool) -> None:
    """The replica may register it: a page that is given back is not the device's any more."""
    world = make_world()
    world.scheduler.members.announce("r", world.keys[0], world.now_s)
    join = replica_pb2.JoinRequest(replica_id="r", pid=7, device=device)
    call_id = world.call(f"/{REPLICA_SERVICE}/Join", join)
    (command, *_) = (replica_pb2.Command.FromString(it) for it in world.front.sent[call_id])
    assert command.welcome.arena.keeps_pages is keeps
