"""Shared memory through the whole frontend: registering, reading, answering into regions."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.fake_front import INFER, STREAM, FakeReplica, World, echo
from tests.server.samples import elements, make_config, make_found, make_request
from tideserve.server.errors import Code
from tideserve.server.service.shared_memory import is_on_this_machine
from tideserve.server.shared_regions import SharedRegions
from tideserve.v1 import inference_pb2 as wire
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse
from tideserve.v1.metadata import STREAM_STATUS_PARAMETER
from tideserve.v1.methods import INFERENCE_SERVICE
from tideserve.v1.model_config_pb2 import DataType
from tideserve.v1.replica_pb2 import Lease, Outcome, Tensor

SEGMENT_BYTES = 256
LIMIT_BYTES = 1 << 16
ROW = bytes(range(8))


def path(name: str) -> str:
    return f"/{INFERENCE_SERVICE}/SystemSharedMemory{name}"


def register(world: World, name: str, byte_size: int = SEGMENT_BYTES, offset: int = 0) -> int:
    request = wire.SystemSharedMemoryRegisterRequest(
        name=name, key=f"/{name}", offset=offset, byte_size=byte_size
    )
    return world.call(path("Register"), request)


def status(world: World, name: str = "") -> dict[str, tuple[str, int, int]]:
    request = wire.SystemSharedMemoryStatusRequest(name=name)
    answer = world.answer(
        world.call(path("Status"), request), wire.SystemSharedMemoryStatusResponse
    )
    return {key: (it.key, it.offset, it.byte_size) for key, it in answer.regions.items()}


def place(tensor: object, region: str, byte_size: int, offset: int | None = None) -> None:
    parameters = tensor.parameters  # type: ignore[attr-defined]
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = byte_size
    if offset is not None:
        parameters["shared_memory_offset"].int64_param = offset


def shared_request(
    rows: int = 1, region: str = "in", offset: int | None = None, out: str = "", out_offset: int = 0
) -> ModelInferRequest:
    """Reads `IN` from a region, and has `OUT` written to another where one is named."""
    request = ModelInferRequest(model_name="m", id="7")
    place(request.inputs.add(name="IN", datatype="FP32", shape=[rows, 2]), region, rows * 8, offset)
    if out:
        place(request.outputs.add(name="OUT"), out, rows * 8, out_offset)
    return request


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("in", "out"):
        (tmp_path / name).write_bytes(bytes(SEGMENT_BYTES))
    return tmp_path


@pytest.fixture
def world(folder: Path) -> World:
    world = World(regions=SharedRegions(LIMIT_BYTES, folder))
    for name in ("in", "out"):
        world.answer(register(world, name), wire.SystemSharedMemoryRegisterResponse)
    return world


@pytest.fixture
def replica(world: World) -> FakeReplica:
    return world.replica()


def put(folder: Path, data: bytes, offset: int = 0, name: str = "in") -> None:
    with (folder / name).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def infer(world: World, replica: FakeReplica, request: ModelInferRequest) -> ModelInferResponse:
    """One request by itself, echoed."""
    call_id = world.call(INFER, request)
    replica.exchange(echo(replica.lease(replica.exchange())), want=False)
    return world.answer(call_id, ModelInferResponse)


def echo_of(tensor: Tensor, lease_id: int) -> Outcome:
    """The outcome of a model that gives one of its inputs back as `OUT`."""
    lease = Lease(lease_id=lease_id)
    lease.inputs.append(tensor)
    return echo(lease)


# --- registering --------------------------------------------------------------------------------


def test_regions_are_registered_listed_and_unregistered(world: World) -> None:
    assert status(world) == {"in": ("/in", 0, SEGMENT_BYTES), "out": ("/out", 0, SEGMENT_BYTES)}
    assert status(world, "in") == {"in": ("/in", 0, SEGMENT_BYTES)}
    assert world.failed(register(world, "in")).code == Code.ALREADY_EXISTS
    for name in ("in", "in", ""):
        request = wire.SystemSharedMemoryUnregisterRequest(name=name)
        world.answer(
            world.call(path("Unregister"), request), wire.SystemSharedMemoryUnregisterResponse
        )
    assert status(world) == {}
    call_id = world.call(path("Status"), wire.SystemSharedMemoryStatusRequest(name="in"))
    assert world.failed(call_id).code == Code.NOT_FOUND
    assert world.failed(register(world, "nothing")).code == Code.NOT_FOUND


def test_a_caller_on_another_machine_registers_nothing(world: World) -> None:
    request = wire.SystemSharedMemoryRegisterRequest(name="far", key="/in", byte_size=1)
    # An address for documentation (RFC 5737).
    call_id = world.call(path("Register"), request, peer="ipv4:203.0.113.77:5000")

    refused = world.failed(call_id)
    assert refused.code == Code.PERMISSION_DENIED
    assert "expected a caller on the server's own machine, got ipv4:203.0.113.77:5000" in (
        refused.message
    )
    assert "far" not in status(world)


@pytest.mark.parametrize(
    ("peer", "is_here"),
    [
        ("ipv4:127.0.0.1:5000", True),
        ("ipv4:127.1.2.3:5000", True),
        ("ipv6:[::1]:5000", True),
        ("ipv6:%5B::1%5D:5000", True),
        ("ipv6:[::ffff:127.0.0.1]:5000", True),
        ("unix:", True),
        ("unix:/run/socket", True),
        ("unix-abstract:name", True),
        ("ipv4:203.0.113.77:5000", False),
        ("ipv4:0.0.0.0:5000", False),
        ("ipv6:[2001:db8::77]:5000", False),
        ("ipv6:[::ffff:203.0.113.77]:5000", False),
        ("ipv6:[::]:5000", False),
        ("ipv4:localhost:5000", False),
        ("", False),
    ],
)
def test_a_peer_is_on_this_machine_if_its_address_is(peer: str, is_here: bool) -> None:
    assert is_on_this_machine(peer) is is_here


@pytest.mark.parametrize("method", ["Register", "Unregister", "Status"])
def test_without_shared_memory_every_call_is_refused(method: str) -> None:
    world = World()

    refused = world.failed(world.call(path(method)))

    assert refused.code == Code.UNIMPLEMENTED
    assert "--shared-memory" in refused.message


# --- inputs -------------------------------------------------------------------------------------


def test_an_input_is_read_when_its_request_comes(
    world: World, replica: FakeReplica, folder: Path
) -> None:
    put(folder, ROW * 2)
    call_id = world.call(INFER, shared_request(2))
    put(folder, bytes(16))

    lease = replica.lease(replica.exchange())
    assert lease.inputs[0].data == ROW * 2
    replica.exchange(echo(lease))

    answer = world.answer(call_id, ModelInferResponse)
    assert list(answer.raw_output_contents) == [ROW * 2]
    assert not answer.outputs[0].parameters


def test_a_known_kind_is_read_anew_each_time(
    world: World, replica: FakeReplica, folder: Path
) -> None:
    for at in range(4):
        put(folder, bytes([at]) * 8, 24)
        answer = infer(world, replica, shared_request(offset=24))
        assert (answer.id, list(answer.raw_output_contents)) == ("7", [bytes([at]) * 8])
    assert world.stats.arrivals == world.stats.admitted == 4


def test_a_known_kind_whose_region_is_another_now_reads_that_one(
    world: World, replica: FakeReplica, folder: Path
) -> None:
    infer(world, replica, shared_request())
    world.call(path("Unregister"), wire.SystemSharedMemoryUnregisterRequest(name="in"))
    refused = world.failed(world.call(INFER, shared_request()))
    assert refused.code == Code.INVALID_ARGUMENT
    assert "input 'IN': shared memory region 'in' is not registered" in refused.message
    assert "registered are: 'out'" in refused.message
    put(folder, ROW, 100)
    register(world, "in", byte_size=8, offset=100)

    answer = infer(world, replica, shared_request())

    assert list(answer.raw_output_contents) == [ROW]
    assert world.stats.rejected == {"invalid_request": 1}


def test_a_region_cut_short_refuses_requests_of_a_known_kind_and_nothing_else(
    world: World, replica: FakeReplica, folder: Path
) -> None:
    infer(world, replica, shared_request())
    os.truncate(folder / "in", 4)
    refused = world.failed(world.call(INFER, shared_request()))
    assert refused.code == Code.INVALID_ARGUMENT
    assert "it was cut short after it was registered" in refused.message

    answer = infer(world, replica, ModelInferRequest.FromString(make_request(raw=ROW)))

    assert list(answer.raw_output_contents) == [ROW]


def test_inputs_in_regions_and_in_the_message_are_mixed_in_any_order(folder: Path) -> None:
    config = make_config()
    config.input.add(name="B", data_type=DataType.TYPE_FP32, dims=[2])
    config.input.add(name="S", data_type=DataType.TYPE_STRING, dims=[1])
    world = World(make_found(config=config), regions=SharedRegions(LIMIT_BYTES, folder))
    replica = world.replica()
    register(world, "in")
    words = elements([2, 1], [b"ab", b""])
    for round_ in range(3):
        put(folder, words, 50)
        mark = bytes([round_]) * 16
        request = ModelInferRequest(model_name="m")
        request.inputs.add(name="B", datatype="FP32", shape=[2, 2])
        place(request.inputs.add(name="S", datatype="BYTES", shape=[2, 1]), "in", len(words), 50)
        request.inputs.add(name="IN", datatype="FP32", shape=[2, 2])
        request.raw_input_contents.extend([mark, ROW * 2])
        world.call(INFER, request)
        lease = replica.lease(replica.exchange())
        assert {it.name: it.data for it in lease.inputs} == {"IN": ROW * 2, "B": mark, "S": words}
        replica.exchange(echo_of(lease.inputs[0], lease.lease_id), want=False)


def test_typed_contents_beside_a_region_are_each_requests_own(folder: Path) -> None:
    config = make_config()
    config.input.add(name="B", data_type=DataType.TYPE_INT32, dims=[1])
    world = World(make_found(config=config), regions=SharedRegions(LIMIT_BYTES, folder))
    replica = world.replica()
    register(world, "in")
    for value in (1, 1, 2):
        request = shared_request()
        tensor = request.inputs.add(name="B", datatype="INT32", shape=[1, 1])
        tensor.contents.int_contents.append(value)
        world.call(INFER, request)
        lease = replica.lease(replica.exchange())
        assert lease.inputs[1].data == value.to_bytes(4, "little")
        replica.exchange(echo_of(lease.inputs[0], lease.lease_id), want=False)


Change = Callable[[ModelInferRequest], object]


def change(what: str) -> Change:
    """Of one parameter of the input."""
    name, field, value = {
        "no region": ("shared_memory_region", "", None),
        "no size": ("shared_memory_byte_size", "", None),
        "no name": ("shared_memory_region", "string_param", ""),
        "a number for a name": ("shared_memory_region", "int64_param", 3),
        "a negative size": ("shared_memory_byte_size", "int64_param", -8),
        "a negative offset": ("shared_memory_offset", "int64_param", -8),
        "half an offset": ("shared_memory_offset", "double_param", 0.5),
    }[what]

    def apply(request: ModelInferRequest) -> None:
        parameters = request.inputs[0].parameters
        if field:
            setattr(parameters[name], field, value)
        else:
            del parameters[name]

    return apply


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (change("no region"), "together, got shared_memory_byte_size"),
        (change("no size"), "together, got shared_memory_region"),
        (change("no name"), "the name of a registered region in shared_memory_region"),
        (change("a number for a name"), "in int64_param"),
        (change("a negative size"), "'shared_memory_byte_size': expected a whole number"),
        (change("a negative offset"), "'shared_memory_offset': expected a whole number"),
        (change("half an offset"), "'shared_memory_offset': expected a whole number"),
        (lambda it: place(it.inputs[0], "in", 9), "expected 8 bytes for FP32 [1, 2], got 9"),
        (lambda it: place(it.inputs[0], "in", 8, 249), "8 bytes at offset 249"),
        (lambda it: place(it.inputs[0], "in", 8, 2**63 - 1), "within the 256 bytes"),
        (lambda it: place(it.inputs[0], "no", 8), "'no' is not registered"),
        (lambda it: it.raw_input_contents.append(ROW), "all 0 inputs that are not in shared"),
        (
            lambda it: it.inputs[0].contents.fp32_contents.extend([1.0, 2.0]),
            "either in shared memory or in contents, got both",
        ),
        (
            lambda it: place(it.outputs.add(name="OUT"), "no", 8),
            "output 'OUT': shared memory region 'no' is not registered",
        ),
        (lambda it: place(it.outputs.add(name="OUT"), "out", 8, 249), "8 bytes at offset 249"),
        (
            lambda it: it.outputs.add(name="OUT").parameters["shared_memory_offset"].Clear(),
            "output 'OUT': expected shared_memory_region and shared_memory_byte_size together",
        ),
    ],
)
def test_what_is_wrong_with_a_place_is_said_with_what_was_expected(
    world: World, replica: FakeReplica, changed: Change, says: str
) -> None:
    infer(world, replica, shared_request())
    request = shared_request()
    changed(request)

    for _ in range(2):
        refused = world.failed(world.call(INFER, request))
        assert refused.code == Code.INVALID_ARGUMENT
        assert says in refused.message
    infer(world, replica, shared_request())


def test_more_than_a_message_may_have_is_not_even_read(world: World, folder: Path) -> None:
    os.truncate(folder / "out", 10 * LIMIT_BYTES)
    world.replica()
    request = wire.SystemSharedMemoryRegisterRequest(
        name="big", key="/out", byte_size=10 * LIMIT_BYTES
    )
    world.call(path("Register"), request)

    refused = world.failed(world.call(INFER, shared_request(LIMIT_BYTES // 8 + 1, "big")))

    assert refused.code == Code.RESOURCE_EXHAUSTED
    assert f"at most {LIMIT_BYTES} bytes in shared memory" in refused.message
    assert world.stats.rejected == {"too_large": 1}


# --- outputs ------------------------------------------------------------------------------------


def test_an_output_is_written_to_its_region_and_its_raw_content_is_empty(
    world: World, replica: FakeReplica, folder: Path
) -> None:
    put(folder, ROW)
    request = shared_request(out="out", out_offset=40)
    request.outputs[0].parameters["shared_memory_byte_size"].int64_param = 100
    for _ in range(2):
        put(folder, bytes(8), 40, "out")
        answer = infer(world, replica, request)

        (output,) = answer.outputs
        assert (output.name, output.datatype, list(output.shape)) == ("OUT", "FP32", [1, 2])
        assert output.parameters["shared_memory_region"].string_param == "out"
        assert output.parameters["shared_memory_byte_size"].int64_param == 8
        assert output.parameters["shared_memory_offset"].int64_param == 40
        assert list(answer.raw_output_contents) == [b""]
        assert answer.id == "7"
        assert (folder / "out").read_bytes() == bytes(40) + ROW + bytes(SEGMENT_BYTES - 48)
    assert world.stats.success.count == 2


def test_each_caller_of_a_batch_gets_its_rows_where_it_wanted_them(
    world: World, replica: FakeReplica, folder: Path
) -> None:
    put(folder, bytes(range(64)))
    ids = [
        world.post(INFER, shared_request(1, offset=0, out="out", out_offset=100)),
        world.post(INFER, make_request(2, raw=b"m" * 16)),
        world.post(INFER, shared_request(3, offset=8, out="out", out_offset=0)),
        world.post(INFER, shared_request(1, offset=32)),
    ]
    world.turn()
    lease = replica.lease(replica.exchange())
    assert lease.rows == 7
    replica.exchange(echo(lease), want=False)

    raw = [list(world.answer(it, ModelInferResponse).raw_output_contents) for it in ids]
    assert raw == [[b""], [b"m" * 16], [b""], [bytes(range(32, 40))]]
    written = (folder / "out").read_bytes()
    assert written[100:108] == bytes(range(8))
    assert written[:24] == bytes(range(8, 32))


@pytest.mark.parametrize("trouble", ["too small", "cut short"])
def test_an_answer_that_cannot_be_written_fails_its_own_request_alone(
    world: World, replica: FakeReplica, folder: Path, trouble: str
) -> None:
    request = shared_request(2, out="out", out_offset=8)
    if trouble == "too small":
        request.outputs[0].parameters["shared_memory_byte_size"].int64_param = 15
    bad = world.post(INFER, request)
    good = world.post(INFER, make_request(1, raw=ROW))
    world.turn()
    lease = replica.lease(replica.exchange())
    if trouble == "cut short":
        os.truncate(folder / "out", 23)
    replica.exchange(echo(lease), want=False)

    refused = world.failed(bad)
    assert refused.code == Code.INVALID_ARGUMENT
    says = "expected a place of at least 16 bytes" if trouble == "too small" else "was cut short"
    assert says in refused.message
    assert list(world.answer(good, ModelInferResponse).raw_output_contents) == [ROW]
    assert not any((folder / "out").read_bytes())
    assert world.stats.failed == {"shared_memory": 1}
    assert world.stats.success.count == 1
    assert world.services.inference.open_calls == 0


def test_a_region_that_is_unregistered_while_in_use_still_gets_its_answer(
    world: World, replica: FakeReplica, folder: Path
) -> None:
    put(folder, ROW)
    call_id = world.call(INFER, shared_request(out="out"))
    world.call(path("Unregister"), wire.SystemSharedMemoryUnregisterRequest())
    replica.exchange(echo(replica.lease(replica.exchange())), want=False)

    world.answer(call_id, ModelInferResponse)
    assert (folder / "out").read_bytes()[:8] == ROW


def test_two_outputs_one_in_a_region_keep_the_places_of_their_raw_contents(folder: Path) -> None:
    config = make_config()
    config.output.add(name="S", data_type=DataType.TYPE_STRING, dims=[1])
    world = World(make_found(config=config), regions=SharedRegions(LIMIT_BYTES, folder))
    replica = world.replica()
    register(world, "out")
    words = elements([1, 1], [b"word"])
    for shared in ("OUT", "S"):
        request = ModelInferRequest.FromString(make_request(raw=ROW))
        for name in ("S", "OUT"):
            output = request.outputs.add(name=name)
            if name == shared:
                place(output, "out", 100)
        call_id = world.call(INFER, request)
        lease = replica.lease(replica.exchange())
        outcome = echo(lease)
        outcome.result.outputs.add(
            name="S", datatype="BYTES", shape=[1, 1], data=words, row_bytes=[len(words)]
        )
        replica.exchange(outcome, want=False)
        answer = world.answer(call_id, ModelInferResponse)
        assert [it.name for it in answer.outputs] == ["S", "OUT"]
        expected = {"S": words, "OUT": ROW}
        written = expected.pop(shared)
        assert (folder / "out").read_bytes()[: len(written)] == written
        raw = dict(zip(("S", "OUT"), answer.raw_output_contents, strict=True))
        assert raw == {**expected, shared: b""}


# --- streams ------------------------------------------------------------------------------------


def test_a_stream_uses_regions_and_goes_on_after_one_that_cannot(
    world: World, replica: FakeReplica, folder: Path
) -> None:
    put(folder, ROW)
    stream = world.call(STREAM)
    small = shared_request(out="out")
    small.outputs[0].parameters["shared_memory_byte_size"].int64_param = 7
    for request in (shared_request(out="out"), small, shared_request(region="no")):
        world.message(stream, request.SerializeToString())
    replica.exchange(echo(replica.lease(replica.exchange())), want=False)

    first, second, third = (
        wire.ModelStreamInferResponse.FromString(it) for it in world.front.sent[stream]
    )
    assert not first.error_message
    assert first.infer_response.outputs[0].parameters["shared_memory_byte_size"].int64_param == 8
    assert first.infer_response.parameters["triton_final_response"].bool_param
    assert (folder / "out").read_bytes()[:8] == ROW
    assert "expected a place of at least 8 bytes" in second.error_message
    assert "'no' is not registered" in third.error_message
    for refused in (second, third):
        code = refused.infer_response.parameters[STREAM_STATUS_PARAMETER].int64_param
        assert code == Code.INVALID_ARGUMENT


def test_an_answer_may_be_put_where_its_input_lay(
    world: World, replica: FakeReplica, folder: Path
) -> None:
    """Overlapping regions and places are the client's own business: what was sent was read before."""
    rows = [bytes([at + 1]) * 8 for at in range(2)]
    put(folder, rows[0] + rows[1])
    calls = [
        world.post(INFER, shared_request(offset=8 * at, out="in", out_offset=8 - 8 * at))
        for at in range(2)
    ]
    world.turn()
    lease = replica.lease(replica.exchange())
    assert lease.inputs[0].data == rows[0] + rows[1]
    replica.exchange(echo(lease), want=False)
    for call_id in calls:
        world.answer(call_id, ModelInferResponse)
    assert (folder / "in").read_bytes()[:16] == rows[1] + rows[0]
