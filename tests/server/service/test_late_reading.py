"""Large inputs in regions are read as their batch leaves, straight to where the replica reads them."""

import os
import random
from pathlib import Path

import pytest

from tests.server.fake_front import INFER, FakeReplica, World
from tests.server.samples import elements, make_config, make_found
from tideserve.server.errors import Code
from tideserve.server.shared_regions import SharedRegions
from tideserve.v1 import inference_pb2 as wire
from tideserve.v1 import replica_pb2
from tideserve.v1.arena import MIN_BYTES
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse
from tideserve.v1.methods import INFERENCE_SERVICE
from tideserve.v1.model_config_pb2 import DataType, ModelConfig

ROW_BYTES = MIN_BYTES
ROWS = [random.Random(seed).randbytes(ROW_BYTES) for seed in range(3)]


def make_model() -> ModelConfig:
    config = make_config()
    config.input[0].dims[:] = config.output[0].dims[:] = [ROW_BYTES // 4]
    return config


def write(folder: Path, at: int, data: bytes) -> None:
    with (folder / "in").open("r+b") as file:
        file.seek(at * ROW_BYTES)
        file.write(data)


def make_world(folder: Path, config: ModelConfig, *, arena_bytes: int = 8 * ROW_BYTES) -> World:
    (folder / "in").write_bytes(b"".join(ROWS))
    regions = SharedRegions(1 << 24, folder)
    world = World(make_found(config=config), arena_bytes=arena_bytes, regions=regions)
    request = wire.SystemSharedMemoryRegisterRequest(
        name="in", key="/in", byte_size=len(ROWS) * ROW_BYTES
    )
    call_id = world.call(f"/{INFERENCE_SERVICE}/SystemSharedMemoryRegister", request)
    world.answer(call_id, wire.SystemSharedMemoryRegisterResponse)
    return world


# In the arena, in the message, and where the arena has no room for it.
@pytest.fixture(params=[8 * ROW_BYTES, 0, ROW_BYTES // 2])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    return make_world(tmp_path, make_model(), arena_bytes=request.param)


def request_at(at: int, datatype: str = "FP32") -> ModelInferRequest:
    request = ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="IN", datatype=datatype, shape=[1, ROW_BYTES // 4])
    tensor.parameters["shared_memory_region"].string_param = "in"
    tensor.parameters["shared_memory_byte_size"].int64_param = ROW_BYTES
    tensor.parameters["shared_memory_offset"].int64_param = at * ROW_BYTES
    return request


def read(replica: FakeReplica, tensor: replica_pb2.Tensor) -> bytes:
    """What the model is given."""
    if not tensor.arena_bytes:
        return tensor.data
    assert replica.arena is not None
    return bytes(replica.arena.tensor(tensor.arena_offset, tensor.arena_bytes))


def echo(replica: FakeReplica, lease: replica_pb2.Lease) -> replica_pb2.Outcome:
    (given,) = lease.inputs
    data = read(replica, given)
    output = replica_pb2.Tensor(name="OUT", datatype="FP32", shape=given.shape, data=data)
    result = replica_pb2.BatchResult(outputs=[output])
    return replica_pb2.Outcome(lease_id=lease.lease_id, result=result, infer_s=0.001)


def answered(world: World, call_id: int) -> bytes:
    (raw,) = world.answer(call_id, ModelInferResponse).raw_output_contents
    return raw


def test_each_caller_gets_its_own_rows(world: World) -> None:
    replica = world.replica()
    inline = ModelInferRequest(model_name="m")
    inline.inputs.add(name="IN", datatype="FP32", shape=[1, ROW_BYTES // 4])
    own = bytes(reversed(ROWS[0]))
    inline.raw_input_contents.append(own)
    for _ in range(2):  # the second time by a known plan
        calls = [world.call(INFER, request_at(2)), world.call(INFER, inline)]
        calls += [world.call(INFER, request_at(at)) for at in (0, 1)]
        lease = replica.lease(replica.exchange())
        assert lease.rows == 4
        assert read(replica, lease.inputs[0]) == ROWS[2] + own + ROWS[0] + ROWS[1]
        replica.exchange(echo(replica, lease), want=False)
        assert [answered(world, call_id) for call_id in calls] == [ROWS[2], own, ROWS[0], ROWS[1]]


def test_a_request_that_waits_holds_no_copy(world: World, tmp_path: Path) -> None:
    replica = world.replica()
    call_id = world.call(INFER, request_at(0))
    own = bytes(reversed(ROWS[0]))
    write(tmp_path, 0, own)
    lease = replica.lease(replica.exchange())
    assert read(replica, lease.inputs[0]) == own
    write(tmp_path, 0, ROWS[0])
    replica.exchange(echo(replica, lease), want=False)
    assert answered(world, call_id) == own


def test_one_that_can_be_read_no_more_fails_alone(world: World, tmp_path: Path) -> None:
    replica = world.replica()
    calls = [world.call(INFER, request_at(at)) for at in range(3)]
    os.truncate(tmp_path / "in", 2 * ROW_BYTES + 100)
    lease = replica.lease(replica.exchange())
    refused = world.failed(calls[2])
    assert refused.code == Code.INVALID_ARGUMENT
    assert "model 'm': shared memory region 'in'" in refused.message
    assert "it was cut short after it was registered" in refused.message
    assert read(replica, lease.inputs[0]) == ROWS[0] + ROWS[1] + bytes(ROW_BYTES)
    replica.exchange(echo(replica, lease), want=False)
    assert [answered(world, call_id) for call_id in calls[:2]] == ROWS[:2]
    assert world.stats.failed == {"shared_memory": 1}
    assert not world.services.inference.open_calls


def test_one_that_is_too_short_as_it_comes_is_refused(world: World, tmp_path: Path) -> None:
    world.replica()
    os.truncate(tmp_path / "in", 2 * ROW_BYTES + 100)
    for _ in range(2):
        refused = world.failed(world.call(INFER, request_at(2)))
        assert refused.code == Code.INVALID_ARGUMENT
        assert "it was cut short after it was registered" in refused.message
        assert world.is_open(world.call(INFER, request_at(1)))
    assert world.stats.rejected == {"invalid_request": 2}


def test_it_is_read_anew_where_its_replica_died(world: World) -> None:
    first = world.replica("first")
    call_id = world.call(INFER, request_at(1))
    first.lease(first.exchange())
    world.cancel(first.life_line)
    second = world.replica("second")
    lease = second.lease(second.exchange())
    assert read(second, lease.inputs[0]) == ROWS[1]
    second.exchange(echo(second, lease), want=False)
    assert answered(world, call_id) == ROWS[1]


def test_a_lease_whose_answer_was_lost_is_not_read_again(world: World, tmp_path: Path) -> None:
    """The replica may have it from the first answer."""
    replica = world.replica()
    call_id = world.call(INFER, request_at(0))
    lease = replica.lease(replica.exchange())
    os.truncate(tmp_path / "in", 0)
    again = replica.lease(replica.exchange(sequence=replica.sequence))
    assert again.lease_id == lease.lease_id
    if lease.inputs[0].arena_bytes:
        assert read(replica, again.inputs[0]) == ROWS[0]
        replica.exchange(echo(replica, again), want=False)
        assert answered(world, call_id) == ROWS[0]
    else:
        # In a message there is nothing to say it with but to read it.
        assert world.failed(call_id).code == Code.INVALID_ARGUMENT
        replica.exchange(echo(replica, again), want=False)


def test_a_caller_that_gave_up_is_not_read(world: World, tmp_path: Path) -> None:
    replica = world.replica()
    call_id = world.call(INFER, request_at(0))
    world.cancel(call_id)
    other = world.call(INFER, request_at(1))
    lease = replica.lease(replica.exchange())
    assert read(replica, lease.inputs[0]) == ROWS[1]
    replica.exchange(echo(replica, lease), want=False)
    assert answered(world, other) == ROWS[1]


@pytest.mark.parametrize("kind", ["padded", "strings"])
def test_strings_and_what_may_be_padded_are_read_as_they_come(tmp_path: Path, kind: str) -> None:
    """Their sizes are in their bytes; a batch's padding is laid around them."""
    config = make_model()
    if kind == "padded":
        config.input[0].dims[:] = [-1]
        config.parameters["tideserve.pad"].string_value = f"dim=0,edges={ROW_BYTES // 4}"
        row, datatype = ROWS[0], "FP32"
    else:
        config.input[0].data_type = DataType.TYPE_STRING
        row, datatype = elements([ROW_BYTES // 4], [b""] * (ROW_BYTES // 4)), "BYTES"
    world = make_world(tmp_path, config)
    replica = world.replica()
    for _ in range(2):
        write(tmp_path, 0, row)
        world.call(INFER, request_at(0, datatype))
        write(tmp_path, 0, bytes(reversed(ROWS[0])))
        lease = replica.lease(replica.exchange())
        assert read(replica, lease.inputs[0]) == row
        replica.exchange(echo(replica, lease), want=False)
