"""Each kind of bad input gets its code and its sentence, and nothing else is disturbed."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from tests.e2e.caller import INFER_PATH, Caller, connect, refusal_of
from tests.e2e.model_folder import link_example, write_model
from tests.e2e.running import running
from tests.e2e.server import Server
from tests.e2e.server_log import mistakes
from tideserve.v1 import methods
from tideserve.v1.control_pb2 import AssignModelRequest, DrainReplicaRequest, WatchRequest
from tideserve.v1.inference_pb2 import (
    CudaSharedMemoryStatusRequest,
    LogSettingsRequest,
    ModelConfigRequest,
    ModelInferRequest,
    ModelMetadataRequest,
    ModelStatisticsRequest,
    RepositoryModelUnloadRequest,
    SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryStatusRequest,
    TraceSettingRequest,
)
from tideserve.v1.metadata import STREAM_STATUS_PARAMETER, TOKEN_METADATA_KEY
from tideserve.v1.methods import Kind
from tideserve.v1.replica_pb2 import BeatRequest, ExchangeRequest, JoinRequest

pytestmark = pytest.mark.e2e

MAX_MESSAGE_BYTES: Final = 1024 * 1024
VALUES: Final = np.arange(32, dtype=np.float32).reshape(2, 16)

INVALID: Final = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND: Final = grpc.StatusCode.NOT_FOUND
UNIMPLEMENTED: Final = grpc.StatusCode.UNIMPLEMENTED
UNAUTHENTICATED: Final = grpc.StatusCode.UNAUTHENTICATED
IN: Final = ("IN", "FP32", VALUES.shape)
RAW: Final = VALUES.tobytes()
TWO_TEXTS: Final = b"\1\0\0\0a\2\0\0\0bc"
INT64_MAX: Final = 2**63 - 1
SHAPE: Final = "expected shape [-1, 16], its first dimension being the rows (1 to 64)"

# Two inputs of any length, one of them optional, two outputs, three priorities.
PAIR_CONFIG: Final = """
backend: "python"
max_batch_size: 4
input [
  { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "BYTE" data_type: TYPE_INT8 dims: [ -1 ] optional: true }
]
output [ { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] } ]
dynamic_batching { priority_levels: 3 default_priority_level: 2 }
"""
PAIR_SOURCE: Final = """
class Model:
    def load(self, context): pass
    def infer(self, inputs): return {"TEXT": inputs["TEXT"]}
    def unload(self): pass
"""


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server for the module; at its end nothing of what it was sent is left in it."""
    repository = tmp_path_factory.mktemp("repository")
    link_example(repository, "identity")
    write_model(repository, "pair", PAIR_CONFIG, PAIR_SOURCE)
    options = (f"--front={request.param}", f"--max-message-bytes={MAX_MESSAGE_BYTES}")
    with running(repository, tmp_path_factory.mktemp("state"), *options) as server:
        yield server
        assert server.stop() == 0
        assert "finishing 0 calls" in server.log
        assert not mistakes(server.log)
        assert "is LOST" not in server.log


@pytest.fixture(scope="module")
def caller(server: Server) -> Iterator[Caller]:
    with connect(server.address) as caller:
        yield caller


def _request(
    model: str = "identity",
    inputs: Sequence[tuple[str, str, Sequence[int]]] = (("IN", "FP32", VALUES.shape),),
    raw: Sequence[bytes] = (VALUES.tobytes(),),
    outputs: Sequence[str] = (),
    version: str = "",
) -> ModelInferRequest:
    """By default a good one."""
    message = ModelInferRequest(model_name=model, model_version=version, id="an id")
    for name, datatype, shape in inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
    for name in outputs:
        message.outputs.add(name=name)
    message.raw_input_contents.extend(raw)
    return message


def _shaped(*shape: int) -> ModelInferRequest:
    return _request(inputs=[("IN", "FP32", shape)])


def _pair(
    texts: bytes,
    shape: Sequence[int],
    numbers: bytes = b"\1\2",
    numbers_shape: Sequence[int] = (1, 2),
) -> ModelInferRequest:
    inputs = [("TEXT", "BYTES", shape), ("BYTE", "INT8", numbers_shape)]
    return _request("pair", inputs, [texts, numbers])


def _typed(field: str, values: Sequence[Any], raw: Sequence[bytes] = ()) -> ModelInferRequest:
    message = _request(raw=raw)
    getattr(message.inputs[0].contents, field).extend(values)
    return message


def _with_parameter(name: str, field: str, value: object, model: str = "pair") -> ModelInferRequest:
    message = _pair(TWO_TEXTS, [1, 2]) if model == "pair" else _request()
    setattr(message.parameters[name], field, value)
    return message


def _with_shared_memory(
    direction: str = "inputs", byte_size: int | None = 128, offset: int = 0
) -> ModelInferRequest:
    """In a region that nobody registered."""
    is_input = direction == "inputs"
    message = _request(raw=[] if is_input else [RAW], outputs=["OUT"])
    parameters = getattr(message, direction)[0].parameters
    parameters["shared_memory_region"].string_param = "region"
    parameters["shared_memory_offset"].int64_param = offset
    if byte_size is not None:
        parameters["shared_memory_byte_size"].int64_param = byte_size
    return message


def _register(name: str = "region", key: str = "/tideserve-none") -> Message:
    return SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=1)


def _with_classification() -> ModelInferRequest:
    message = _request(outputs=["OUT"])
    message.outputs[0].parameters["classification"].int64_param = 3
    return message


class Bad(NamedTuple):
    """A request, and what its caller is to read."""

    message: ModelInferRequest
    says: tuple[str, ...]
    code: grpc.StatusCode = INVALID


BAD: Final = {
    "unknown model": Bad(_request("nothing"), ("'nothing'", "identity 1", "pair 1"), NOT_FOUND),
    "no model": Bad(_request(""), ("model ''", "identity 1"), NOT_FOUND),
    "a model's name of line ends and NUL": Bad(_request("a\n\0b"), ("identity 1",), NOT_FOUND),
    "a very long name": Bad(_request("n" * 100_000), ("model 'nnn", "..."), NOT_FOUND),
    "a long name in another script": Bad(_request("\u7a0b" * 3000), ("\u7a0b", "..."), NOT_FOUND),
    "unknown version": Bad(_request(version="7"), ("version '7'", "identity 1"), NOT_FOUND),
    "a version that is no number": Bad(_request(version="x"), ("'x'", "identity 1"), NOT_FOUND),
    "missing input": Bad(_request(inputs=[], raw=[]), ("missing input 'IN'", "got none")),
    "missing input of two": Bad(
        _request("pair", [("BYTE", "INT8", [1, 2])], [b"12"]),
        ("missing input 'TEXT'", "got 'BYTE'"),
    ),
    "extra input": Bad(
        _request(inputs=[IN, ("MORE", "FP32", [2, 16])], raw=[RAW, RAW]),
        ("unexpected input 'MORE'", "expected 'IN'"),
    ),
    "duplicate input": Bad(_request(inputs=[IN, IN], raw=[RAW, RAW]), ("'IN' is given twice",)),
    "misnamed input": Bad(
        _request(inputs=[("in", "FP32", [2, 16])]), ("unexpected input 'in'", "expected 'IN'")
    ),
    "wrong datatype": Bad(
        _request(inputs=[("IN", "FP64", [2, 16])]), ("expected datatype FP32, got 'FP64'",)
    ),
    "a datatype that there is not": Bad(
        _request(inputs=[("IN", "FP31", [2, 16])]), ("expected datatype FP32, got 'FP31'",)
    ),
    "no datatype": Bad(_request(inputs=[("IN", "", [2, 16])]), ("expected datatype FP32, got ''",)),
    "rank too low": Bad(_shaped(32), (SHAPE, "got [32]")),
    "rank too high": Bad(_shaped(2, 16, 1), (SHAPE, "got [2, 16, 1]")),
    "no shape": Bad(_shaped(), (SHAPE, "got []")),
    "wrong dimension": Bad(_shaped(1, 32), (SHAPE, "got [1, 32]")),
    "negative rows": Bad(_shaped(-2, 16), (SHAPE, "got [-2, 16]")),
    "negative size": Bad(_shaped(2, -16), (SHAPE, "got [2, -16]")),
    "rows of int64's maximum": Bad(_shaped(INT64_MAX, 16), (SHAPE, f"got [{INT64_MAX}, 16]")),
    "all sizes of int64's maximum": Bad(
        _pair(TWO_TEXTS, [INT64_MAX, INT64_MAX]), ("expected shape [-1, -1]", f"{INT64_MAX}]")
    ),
    "sizes whose product is 0 in 64 bits": Bad(
        _pair(b"", [2**32, 2**32]), ("expected shape [-1, -1]", f"{2**32}]")
    ),
    "int64's minimum": Bad(_shaped(2, -(2**63)), (SHAPE, f"got [2, {-(2**63)}]")),
    "an absurd size beside none": Bad(
        _pair(b"", [0, INT64_MAX]), ("expected shape [-1, -1]", f"got [0, {INT64_MAX}]")
    ),
    "a huge rank": Bad(_shaped(*[1] * 500_000), (SHAPE, "got [1, 1, 1,", "of 500000 dimensions")),
    "raw contents too short": Bad(_request(raw=[RAW[:-1]]), ("expected 128 bytes", "got 127")),
    "raw contents too long": Bad(_request(raw=[RAW + b"x"]), ("expected 128 bytes", "got 129")),
    "empty raw contents": Bad(_request(raw=[b""]), ("expected 128 bytes", "got 0")),
    "no contents at all": Bad(_request(raw=[]), ("expected 32 elements", "got 0")),
    "more raw contents than inputs": Bad(_request(raw=[RAW, RAW]), ("all 1 inputs", "got 2")),
    "fewer raw contents than inputs": Bad(
        _request("pair", [("TEXT", "BYTES", [1, 2]), ("BYTE", "INT8", [1, 2])], [TWO_TEXTS]),
        ("all 2 inputs", "got 1"),
    ),
    "200000 empty raw contents": Bad(_request(raw=[b""] * 200_000), ("all 1 inputs", "got 200000")),
    "raw and typed contents": Bad(
        _typed("fp32_contents", [0.0] * 32, [RAW]), ("raw_input_contents", "got both")
    ),
    "too few typed contents": Bad(
        _typed("fp32_contents", [0.0] * 31), ("expected 32 elements in contents.fp32", "got 31")
    ),
    "typed contents of another type": Bad(
        _typed("fp64_contents", [0.0] * 32), ("contents.fp32_contents", "got contents.fp64")
    ),
    "typed contents of two types": Bad(
        _typed("bytes_contents", [b""]), ("contents.fp32_contents", "got contents.bytes_contents")
    ),
    "BYTES whose length passes the end": Bad(
        _pair(b"\xff\xff\xff\xffab", [1, 1]), ("expected 1 BYTES elements", "do not fit the data")
    ),
    "BYTES that end inside a length": Bad(
        _pair(TWO_TEXTS + b"\0\0", [1, 2]), ("expected 2 BYTES elements", "do not fit the data")
    ),
    "BYTES with fewer elements": Bad(
        _pair(TWO_TEXTS, [1, 3]), ("expected 3 BYTES elements for shape [1, 3]", "got 2")
    ),
    "BYTES with more elements": Bad(
        _pair(TWO_TEXTS, [1, 1]), ("expected 1 BYTES elements for shape [1, 1]", "got more")
    ),
    "zero rows": Bad(
        _request(inputs=[("IN", "FP32", [0, 16])], raw=[b""]), ("expected 1 to 64 rows", "got 0")
    ),
    "more rows than max_batch_size": Bad(
        _request(inputs=[("IN", "FP32", [65, 16])], raw=[bytes(65 * 64)]),
        ("expected 1 to 64 rows (max_batch_size)", "got 65"),
    ),
    "inputs of unequal rows": Bad(
        _pair(TWO_TEXTS, [2, 1]), ("the same rows in every input", "got 2 in 'TEXT'", "1 in 'BYTE'")
    ),
    "unknown requested output": Bad(
        _request(outputs=["IN"]), ("unexpected requested output 'IN'", "expected 'OUT'")
    ),
    "output requested twice": Bad(_request(outputs=["OUT", "OUT"]), ("'OUT' is requested twice",)),
    "an input in an unknown region": Bad(
        _with_shared_memory(), ("'IN': shared memory region 'region' is not registered", "none")
    ),
    "an output in an unknown region": Bad(
        _with_shared_memory("outputs"), ("'OUT': shared memory region 'region' is not", "none")
    ),
    "a region without a size": Bad(
        _with_shared_memory(byte_size=None), ("shared_memory_byte_size together", "got shared_")
    ),
    "a place of a negative size": Bad(
        _with_shared_memory("outputs", byte_size=-1), ("a whole number from 0", "got -1")
    ),
    "a place of int64's maximum": Bad(
        _with_shared_memory("outputs", INT64_MAX, INT64_MAX), ("'region' is not registered",)
    ),
    "an input of int64's maximum in shared memory": Bad(
        _with_shared_memory(byte_size=INT64_MAX),
        (f"at most {MAX_MESSAGE_BYTES} bytes in shared memory", f"got {INT64_MAX}"),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ),
    "a region and raw contents": Bad(
        ModelInferRequest.FromString(
            _with_shared_memory().SerializeToString()
            + ModelInferRequest(raw_input_contents=[RAW]).SerializeToString()
        ),
        ("all 0 inputs that are not in shared memory", "got 1"),
    ),
    "classification": Bad(_with_classification(), ("classification",), UNIMPLEMENTED),
    "a timeout that is no number": Bad(
        _with_parameter("timeout", "string_param", "soon"), ("'timeout'", "got 'soon'")
    ),
    "a negative timeout": Bad(
        _with_parameter("timeout", "int64_param", -1), ("a whole number from 0", "got -1")
    ),
    "a timeout of 400 digits": Bad(
        _with_parameter("timeout", "string_param", "9" * 400), ("'timeout'", "string_param")
    ),
    "a timeout of 5000 digits": Bad(
        _with_parameter("timeout", "string_param", "9" * 5000), ("a whole number from 0", "'999")
    ),
    "a timeout of true": Bad(
        _with_parameter("timeout", "bool_param", True), ("a whole number", "got True in bool_param")
    ),
    "a priority beyond the levels": Bad(
        _with_parameter("priority", "uint64_param", 4), ("from 1 (highest) to 3", "got 4")
    ),
    "a priority of half": Bad(
        _with_parameter("priority", "double_param", 0.5), ("'priority'", "got 0.5 in double_param")
    ),
}


def _check_good(caller: Caller) -> None:
    answer = caller.infer(_request())
    assert list(answer.raw_output_contents) == [RAW]
    assert answer.id == "an id"


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_request_gets_its_code_and_sentence_and_the_next_good_one_its_answer(
    caller: Caller, bad: Bad
) -> None:
    code, sentence = caller.refusal(INFER_PATH, bad.message)
    assert code is bad.code, sentence
    for words in bad.says:
        assert words in sentence
    _check_good(caller)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_request_in_a_stream_is_answered_in_its_place_and_the_stream_goes_on(
    caller: Caller, bad: Bad
) -> None:
    first, refused, last = caller.stream([_request(), bad.message, _request()])
    assert list(first.infer_response.raw_output_contents) == [RAW]
    for words in bad.says:
        assert words in refused.error_message
    status = refused.infer_response.parameters[STREAM_STATUS_PARAMETER].int64_param
    assert status == bad.code.value[0]
    assert refused.infer_response.id == "an id"
    assert list(last.infer_response.raw_output_contents) == [RAW]
    assert not first.error_message
    assert not last.error_message


def test_all_bad_requests_in_one_stream_and_good_ones_between_them_are_answered_in_order(
    caller: Caller,
) -> None:
    messages = [item for bad in BAD.values() for item in (bad.message, _request())]
    answers = list(caller.stream(messages))
    assert len(answers) == len(messages)
    assert all(answer.error_message for answer in answers[::2])
    assert all(list(answer.infer_response.raw_output_contents) == [RAW] for answer in answers[1::2])


# What protobuf refuses: a bad tag, a field that ends past the message, a name that is no UTF-8,
# an endless varint, a group that never ends, a length of 4 GiB.
BROKEN: Final = {
    "a bad tag": b"\xff" * 100,
    "NUL": b"\0",
    "cut off": _request().SerializeToString()[:-1],
    "no UTF-8": b"\x0a\x02\xff\xfe",
    "an endless varint": b"\x28" + b"\x80" * 11,
    "an open group": b"\x0b",
    "a length of 4 GiB": b"\x0a\xff\xff\xff\xff\x0f",
    "text": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("payload", BROKEN.values(), ids=BROKEN.keys())
def test_bytes_that_are_no_protobuf_are_refused_with_their_count(
    caller: Caller, payload: bytes
) -> None:
    code, sentence = caller.refusal(INFER_PATH, payload)
    assert code is INVALID
    assert f"expected a ModelInferRequest message, got {len(payload)} bytes" in sentence
    _check_good(caller)
    refused, answered = caller.stream([payload, _request()])
    assert "expected a ModelInferRequest message" in refused.error_message
    assert list(answered.infer_response.raw_output_contents) == [RAW]


@pytest.mark.parametrize(
    "method",
    [method for method in methods.INFERENCE if method.kind is Kind.UNARY],
    ids=lambda method: method.name,
)
def test_every_method_refuses_bytes_that_are_no_protobuf(
    caller: Caller, method: methods.Method
) -> None:
    code, sentence = caller.refusal(method.path, b"\xff" * 9)
    assert code is INVALID
    assert f"expected a {method.request.DESCRIPTOR.name} message, got 9 bytes" in sentence
    _check_good(caller)


def test_a_health_check_and_a_reflection_that_are_no_protobuf_are_refused(caller: Caller) -> None:
    for path, streams in (
        ("/grpc.health.v1.Health/Check", False),
        ("/grpc.health.v1.Health/Watch", True),
    ):
        code, sentence = caller.refusal(path, b"\xff", streams=streams)
        assert code is INVALID
        assert "HealthCheckRequest" in sentence
    code, sentence = caller.refusal(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", b"\xff", streams=True
    )
    assert code is INVALID
    assert "ServerReflectionRequest" in sentence
    code, sentence = caller.refusal("/grpc.health.v1.Health/Check", b"\x0a\x01x")
    assert code is NOT_FOUND
    assert "'x'" in sentence
    assert "identity" in sentence
    _check_good(caller)


def test_a_message_over_the_limit_is_refused_with_both_numbers(caller: Caller) -> None:
    message = _request(raw=[bytes(MAX_MESSAGE_BYTES)])
    code, sentence = caller.refusal(INFER_PATH, message)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(message.ByteSize()) in sentence
    assert str(MAX_MESSAGE_BYTES) in sentence
    _check_good(caller)
    with pytest.raises(grpc.RpcError) as failure:
        list(caller.stream([message]))
    code, sentence = refusal_of(failure.value)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_MESSAGE_BYTES) in sentence
    _check_good(caller)


def test_a_message_of_almost_the_limit_is_answered(caller: Caller) -> None:
    head = _pair(b"", [1, 1]).ByteSize()
    text_bytes = MAX_MESSAGE_BYTES - head - 8192
    text = text_bytes.to_bytes(4, "little") + bytes(text_bytes)
    answer = caller.infer(_request("pair", [("TEXT", "BYTES", [1, 1])], [text]))
    assert answer.raw_output_contents[0] == text


def test_a_method_that_there_is_not_is_refused(caller: Caller) -> None:
    for path in ("/inference.GRPCInferenceService/ModelGuess", "/no.Service/Method", "/x"):
        code, _ = caller.refusal(path, b"")
        assert code is UNIMPLEMENTED
    _check_good(caller)


GUARDED: Final = methods.REPLICA + methods.CONTROL


@pytest.mark.parametrize("method", GUARDED, ids=lambda method: method.name)
@pytest.mark.parametrize("token", [None, "", "x", "not-the-token-of-this-server" * 100])
def test_a_replica_or_control_call_without_the_token_or_with_another_is_refused(
    caller: Caller, method: methods.Method, token: str | None
) -> None:
    metadata = () if token is None else ((TOKEN_METADATA_KEY, token),)
    code, sentence = caller.refusal(
        method.path, b"", metadata, streams=method.kind is Kind.SERVER_STREAM
    )
    assert code is UNAUTHENTICATED
    assert TOKEN_METADATA_KEY in sentence
    assert ("got none" if token is None else "got another") in sentence
    _check_good(caller)


def test_the_token_is_not_in_a_refusal(caller: Caller, server: Server) -> None:
    watch = f"/{methods.CONTROL_SERVICE}/Watch"
    token = server.token
    for wrong in (token[:-1], token + "x", token.upper(), f" {token[1:]}"):
        code, sentence = caller.refusal(watch, b"", ((TOKEN_METADATA_KEY, wrong),), streams=True)
        assert code is UNAUTHENTICATED
        assert token not in sentence
    assert token not in server.log


@pytest.mark.parametrize("method", GUARDED, ids=lambda method: method.name)
def test_a_call_with_the_token_and_broken_bytes_is_refused(
    caller: Caller, server: Server, method: methods.Method
) -> None:
    metadata = ((TOKEN_METADATA_KEY, server.token),)
    code, sentence = caller.refusal(
        method.path, b"\xff", metadata, streams=method.kind is Kind.SERVER_STREAM
    )
    assert code is INVALID
    assert f"expected a {method.request.DESCRIPTOR.name} message" in sentence
    _check_good(caller)


@pytest.mark.parametrize(
    ("path", "message", "code", "says"),
    [
        ("Join", JoinRequest(replica_id="ghost"), NOT_FOUND, "'ghost' was not announced"),
        ("Beat", BeatRequest(replica_id="ghost"), grpc.StatusCode.FAILED_PRECONDITION, "'ghost'"),
        (
            "Exchange",
            ExchangeRequest(replica_id="ghost", epoch=2**64 - 1, sequence=2**64 - 1, want=True),
            grpc.StatusCode.FAILED_PRECONDITION,
            "join again",
        ),
        ("DrainReplica", DrainReplicaRequest(replica_id="ghost"), NOT_FOUND, "'ghost'"),
        ("AssignModel", AssignModelRequest(replica_id="ghost"), NOT_FOUND, "not served"),
        (
            "DrainReplica",
            DrainReplicaRequest(replica_id="ghost", autoscaler_generation=1),
            grpc.StatusCode.FAILED_PRECONDITION,
            "generation 1",
        ),
        (
            "Watch",
            WatchRequest(autoscaler_generation=1),
            grpc.StatusCode.FAILED_PRECONDITION,
            "generation 1",
        ),
    ],
)
def test_a_call_of_a_replica_or_autoscaler_that_is_not_known_is_refused(
    caller: Caller, server: Server, path: str, message: Message, code: grpc.StatusCode, says: str
) -> None:
    (method,) = [method for method in GUARDED if method.name == path]
    got, sentence = caller.refusal(
        method.path,
        message,
        ((TOKEN_METADATA_KEY, server.token),),
        streams=method.kind is Kind.SERVER_STREAM,
    )
    assert got is code, sentence
    assert says in sentence
    _check_good(caller)


@pytest.mark.parametrize(
    ("method", "message", "code", "says"),
    [
        ("ModelMetadata", ModelMetadataRequest(name="no"), NOT_FOUND, "identity 1"),
        ("ModelConfig", ModelConfigRequest(name="identity", version="9"), NOT_FOUND, "'9'"),
        ("ModelStatistics", ModelStatisticsRequest(name="no"), NOT_FOUND, "identity 1"),
        (
            "RepositoryModelUnload",
            RepositoryModelUnloadRequest(model_name="identity"),
            grpc.StatusCode.UNAVAILABLE,
            "--model-control explicit",
        ),
        ("SystemSharedMemoryRegister", _register(""), INVALID, "a name of 1 to 256 bytes, got 0"),
        ("SystemSharedMemoryRegister", _register("n" * 300), INVALID, "got 300"),
        ("SystemSharedMemoryRegister", _register(), NOT_FOUND, "create it before"),
        (
            "SystemSharedMemoryRegister",
            _register(key="/../etc/passwd"),
            INVALID,
            "'/../etc/passwd'",
        ),
        (
            "SystemSharedMemoryRegister",
            _register(key="/.."),
            INVALID,
            "POSIX shared memory segment",
        ),
        (
            "SystemSharedMemoryRegister",
            _register(key="a\0b"),
            INVALID,
            "POSIX shared memory segment",
        ),
        (
            "SystemSharedMemoryRegister",
            SystemSharedMemoryRegisterRequest(name="region", key="/tideserve-none"),
            INVALID,
            "a byte_size of 1 or more",
        ),
        (
            "SystemSharedMemoryStatus",
            SystemSharedMemoryStatusRequest(name="region"),
            NOT_FOUND,
            "registered are: none",
        ),
        (
            "CudaSharedMemoryStatus",
            CudaSharedMemoryStatusRequest(),
            UNIMPLEMENTED,
            "CUDA shared memory",
        ),
        ("TraceSetting", TraceSettingRequest(), UNIMPLEMENTED, "tracing"),
        (
            "LogSettings",
            LogSettingsRequest(settings={"log_file": LogSettingsRequest.SettingValue()}),
            INVALID,
            "'log_file'",
        ),
    ],
)
def test_the_other_methods_of_the_client_plane_say_what_is_wrong(
    caller: Caller, method: str, message: Message, code: grpc.StatusCode, says: str
) -> None:
    got, sentence = caller.refusal(f"/{methods.INFERENCE_SERVICE}/{method}", message)
    assert got is code, sentence
    assert says in sentence
    _check_good(caller)


def test_a_refused_request_is_counted_and_leaves_nothing_behind(
    caller: Caller, server: Server
) -> None:
    def counts() -> tuple[int, int, int]:
        (pair,) = [model for model in server.snapshot().models if model.name == "pair"]
        return pair.arrivals, pair.rejected, pair.queued_requests + pair.leased_requests

    arrivals, rejected, _ = counts()
    for _ in range(3):
        caller.refusal(INFER_PATH, _pair(b"", [1, 1]))
    assert counts() == (arrivals + 3, rejected + 3, 0)


def test_requests_that_pass_the_limit_only_together_are_all_answered(server: Server) -> None:
    text_bytes = MAX_MESSAGE_BYTES * 2 // 5
    text = text_bytes.to_bytes(4, "little") + bytes(text_bytes)
    message = _request("pair", [("TEXT", "BYTES", [1, 1])], [text])
    with connect(server.address) as caller, ThreadPoolExecutor(12) as pool:
        for answer in pool.map(caller.infer, [message] * 36):
            assert answer.raw_output_contents[0] == text
