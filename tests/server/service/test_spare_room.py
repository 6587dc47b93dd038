"""A place for outputs without one of their own: `tideserve_outputs_region` and its two companions."""

from pathlib import Path

import pytest

from tests.server.fake_front import INFER, STREAM, FakeReplica, World
from tests.server.samples import make_config, make_found
from tideserve.server import shared_regions
from tideserve.server.errors import Code
from tideserve.server.shared_regions import SharedRegions
from tideserve.v1 import inference_pb2 as wire
from tideserve.v1.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from tideserve.v1.methods import INFERENCE_SERVICE
from tideserve.v1.model_config_pb2 import DataType
from tideserve.v1.replica_pb2 import BatchResult, Lease, Outcome, Tensor

ROW = bytes(range(8))
SEGMENT_BYTES = 512
BEFORE = b"\xee" * SEGMENT_BYTES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # What is worth a place, in small.
    monkeypatch.setattr(shared_regions, "MIN_OUTPUT_BYTES", 8)
    (tmp_path / "room").write_bytes(BEFORE)
    return tmp_path


@pytest.fixture
def world(folder: Path) -> World:
    """A model with three outputs: OUT of 8 bytes a row, LARGE of 80 and SMALL of 4."""
    config = make_config()
    config.output.add(name="LARGE", data_type=DataType.TYPE_FP32, dims=[20])
    config.output.add(name="SMALL", data_type=DataType.TYPE_FP32, dims=[1])
    world = World(make_found(config=config), regions=SharedRegions(1 << 16, folder))
    register(world)
    return world


@pytest.fixture
def replica(world: World) -> FakeReplica:
    return world.replica()


def register(world: World) -> None:
    request = wire.SystemSharedMemoryRegisterRequest(
        name="room", key="/room", byte_size=SEGMENT_BYTES
    )
    world.call(f"/{INFERENCE_SERVICE}/SystemSharedMemoryRegister", request)


def make_request(byte_size: int, offset: int | None = None, *, rows: int = 1) -> ModelInferRequest:
    request = ModelInferRequest(model_name="m", id="7", raw_input_contents=[ROW * rows])
    request.inputs.add(name="IN", datatype="FP32", shape=[rows, 2])
    request.parameters["tideserve_outputs_region"].string_param = "room"
    request.parameters["tideserve_outputs_byte_size"].int64_param = byte_size
    if offset is not None:
        request.parameters["tideserve_outputs_offset"].int64_param = offset
    return request


def outcome(lease: Lease) -> Outcome:
    """Row n of an output has bytes that say so."""
    outputs = [
        Tensor(
            name=name,
            datatype="FP32",
            shape=[lease.rows, values],
            data=b"".join(bytes([mark + row]) * 4 * values for row in range(lease.rows)),
        )
        for name, values, mark in (("OUT", 2, 16), ("LARGE", 20, 32), ("SMALL", 1, 48))
    ]
    return Outcome(lease_id=lease.lease_id, result=BatchResult(outputs=outputs), infer_s=0.001)


def infer(world: World, replica: FakeReplica, request: ModelInferRequest) -> ModelInferResponse:
    call_id = world.call(INFER, request)
    replica.exchange(outcome(replica.lease(replica.exchange())), want=False)
    return world.answer(call_id, ModelInferResponse)


def places(answer: ModelInferResponse) -> dict[str, tuple[int, int]]:
    """Offset and bytes of each output that is in the region."""
    found = {}
    for output in answer.outputs:
        if output.parameters:
            assert output.parameters["shared_memory_region"].string_param == "room"
            found[output.name] = (
                output.parameters["shared_memory_offset"].int64_param,
                output.parameters["shared_memory_byte_size"].int64_param,
            )
    return found


@pytest.mark.parametrize("round_", [1, 2])
def test_all_outputs_come_and_those_that_are_worth_it_lie_in_the_region(
    world: World, replica: FakeReplica, folder: Path, round_: int
) -> None:
    for _ in range(round_):  # the second goes by its plan
        (folder / "room").write_bytes(BEFORE)
        answer = infer(world, replica, make_request(256, 128))
    assert [it.name for it in answer.outputs] == ["OUT", "LARGE", "SMALL"]
    assert places(answer) == {"OUT": (128, 8), "LARGE": (192, 80)}
    assert list(answer.raw_output_contents) == [b"", b"", bytes([48]) * 4]
    held = (folder / "room").read_bytes()
    assert held == BEFORE[:128] + bytes([16]) * 8 + BEFORE[:56] + bytes([32]) * 80 + BEFORE[272:]


def test_what_does_not_fit_comes_in_the_answer(
    world: World, replica: FakeReplica, folder: Path
) -> None:
    answer = infer(world, replica, make_request(64 + 79))
    assert places(answer) == {"OUT": (0, 8)}
    assert list(answer.raw_output_contents) == [b"", bytes([32]) * 80, bytes([48]) * 4]
    answer = infer(world, replica, make_request(0))
    assert places(answer) == {}
    assert [len(raw) for raw in answer.raw_output_contents] == [8, 80, 4]
    assert (folder / "room").read_bytes()[8:] == BEFORE[8:]


def test_outputs_that_are_asked_for_and_places_of_their_own_come_first(
    world: World, replica: FakeReplica, folder: Path
) -> None:
    request = make_request(256)
    request.outputs.add(name="LARGE")
    own = request.outputs.add(name="OUT")
    own.parameters["shared_memory_region"].string_param = "room"
    own.parameters["shared_memory_byte_size"].int64_param = 8
    own.parameters["shared_memory_offset"].int64_param = 400
    answer = infer(world, replica, request)
    assert places(answer) == {"LARGE": (0, 80), "OUT": (400, 8)}
    assert list(answer.raw_output_contents) == [b"", b""]


def test_each_caller_of_a_batch_has_its_own_rows(
    world: World, replica: FakeReplica, folder: Path
) -> None:
    waiting = replica.exchange()
    calls = [world.post(INFER, make_request(144, 160 * at)) for at in range(3)]
    world.turn()
    replica.exchange(outcome(replica.lease(waiting)), want=False)
    held = (folder / "room").read_bytes()
    for at, call_id in enumerate(calls):
        found = places(world.answer(call_id, ModelInferResponse))
        assert found == {"OUT": (160 * at, 8), "LARGE": (160 * at + 64, 80)}
        assert held[160 * at : 160 * at + 8] == bytes([16 + at]) * 8
        assert held[160 * at + 64 : 160 * at + 144] == bytes([32 + at]) * 80


def test_a_streams_answers_do_so_too(world: World, replica: FakeReplica, folder: Path) -> None:
    stream = world.call(STREAM)
    world.message(stream, make_request(256).SerializeToString())
    replica.exchange(outcome(replica.lease(replica.exchange())), want=False)
    (sent,) = world.front.sent[stream]
    answer = ModelStreamInferResponse.FromString(sent).infer_response
    assert places(answer) == {"OUT": (0, 8), "LARGE": (64, 80)}
    assert answer.parameters["triton_final_response"].bool_param


def test_a_place_that_is_none_is_refused_before_anything_is_computed(world: World) -> None:
    world.replica()
    for byte_size, offset, says in (
        (513, None, "the outputs: expected a place within the 512 bytes"),
        (1, 512, "got 1 bytes at offset 512"),
    ):
        refused = world.failed(world.call(INFER, make_request(byte_size, offset)))
        assert refused.code == Code.INVALID_ARGUMENT
        assert says in refused.message
    strange = make_request(8)
    strange.parameters["tideserve_outputs_region"].string_param = "none"
    refused = world.failed(world.call(INFER, strange))
    assert "the outputs: shared memory region 'none' is not registered" in refused.message
    half = make_request(8)
    del half.parameters["tideserve_outputs_byte_size"]
    refused = world.failed(world.call(INFER, half))
    assert "expected tideserve_outputs_region and tideserve_outputs_byte_size" in refused.message


def test_a_region_that_is_gone_after_a_known_kind_is_refused(
    world: World, replica: FakeReplica, folder: Path
) -> None:
    infer(world, replica, make_request(256))
    path = f"/{INFERENCE_SERVICE}/SystemSharedMemoryUnregister"
    world.call(path, wire.SystemSharedMemoryUnregisterRequest(name="room"))
    refused = world.failed(world.call(INFER, make_request(256)))
    assert "shared memory region 'room' is not registered" in refused.message
    register(world)
    assert places(infer(world, replica, make_request(256)))
