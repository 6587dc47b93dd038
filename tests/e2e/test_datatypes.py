"""Every datatype and shape: each caller gets its own rows, bit for bit, from mixed batches (R4)."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any, Final

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray

from tests.e2e.caller import INFER_PATH, STREAM_PATH, Caller, connect
from tests.e2e.model_folder import write_model
from tests.e2e.running import running
from tests.e2e.server import Server
from tests.e2e.server_log import mistakes
from tideserve.client import Client
from tideserve.v1.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)

pytestmark = pytest.mark.e2e

Array = NDArray[Any]

NUMPY: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
CONTENTS: Final = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
MAX_ROWS: Final = 8


def _tensor(name: str, datatype: str, dims: str, more: str = "") -> str:
    data_type = "STRING" if datatype == "BYTES" else datatype
    return f'{{ name: "{name}" data_type: TYPE_{data_type} dims: {dims} {more} }}'


# Every datatype with any sizes; all but FP32 may be left out and come back without elements.
ALL_CONFIG: Final = f"""
backend: "python"
max_batch_size: {MAX_ROWS}
input [ {", ".join(_tensor(it, it, "[ -1, 2 ]", "" if it == "FP32" else "optional: true") for it in NUMPY)} ]
output [ {", ".join(_tensor(f"{it}_OUT", it, "[ -1, 2 ]") for it in NUMPY)} ]
"""
# Slow enough for callers to meet in a batch.
ALL_SOURCE: Final = """
import time
import ml_dtypes
import numpy as np
TYPES = {"BOOL": "?", "FP16": "f2", "BF16": ml_dtypes.bfloat16, "FP32": "f4", "FP64": "f8",
         "BYTES": object, **{f"INT{8 * n}": f"i{n}" for n in (1, 2, 4, 8)},
         **{f"UINT{8 * n}": f"u{n}" for n in (1, 2, 4, 8)}}
class Model:
    def load(self, context): pass
    def infer(self, inputs):
        time.sleep(0.01)
        rows = len(inputs["FP32"])
        for name, array in inputs.items():
            assert array.shape[0] == rows and array.shape[2] == 2, (name, array.shape)
            assert array.dtype == np.dtype(TYPES[name]), (name, array.dtype)
        return {f"{name}_OUT": inputs.get(name, np.zeros((rows, 0, 2), np.dtype(kind)))
                for name, kind in TYPES.items()}
    def unload(self): pass
"""
# One value a row, which the model sees without its dimension; dims in another order.
SCALAR_CONFIG: Final = f"""
backend: "python"
max_batch_size: {MAX_ROWS}
input [ {_tensor("NUMBER", "INT64", "[ 1 ]", "reshape { }")}, {_tensor("TEXT", "BYTES", "[ 1 ]", "reshape { }")}, {_tensor("GRID", "FP32", "[ 2, 3 ]", "reshape { shape: [ 6 ] }")} ]
output [ {_tensor("NUMBER", "INT64", "[ 1 ]", "reshape { }")}, {_tensor("TEXT", "BYTES", "[ 1 ]", "reshape { }")}, {_tensor("GRID", "FP32", "[ 2, 3 ]", "reshape { shape: [ 6 ] }")} ]
"""
SCALAR_SOURCE: Final = """
class Model:
    def load(self, context): pass
    def infer(self, inputs):
        rows = len(inputs["NUMBER"])
        assert inputs["NUMBER"].shape == inputs["TEXT"].shape == (rows,), inputs["TEXT"].shape
        assert inputs["GRID"].shape == (rows, 6), inputs["GRID"].shape
        return inputs
    def unload(self): pass
"""
# No batch dimension: shapes are whole, every request runs by itself.
WHOLE_CONFIG: Final = f"""
backend: "python"
max_batch_size: 0
input [ {_tensor("TABLE", "FP64", "[ -1, -1 ]")}, {_tensor("TEXT", "BYTES", "[ -1 ]", "optional: true")} ]
output [ {_tensor("TABLE", "FP64", "[ -1, -1 ]")}, {_tensor("TEXT", "BYTES", "[ -1 ]")}, {_tensor("SIZE", "INT32", "[ 1 ]")} ]
"""
WHOLE_SOURCE: Final = """
import numpy as np
class Model:
    def load(self, context): pass
    def infer(self, inputs):
        table = inputs["TABLE"]
        return {"TABLE": table.T, "SIZE": np.array([table.size], np.int32),
                "TEXT": inputs.get("TEXT", np.array(["none"], dtype=object))}
    def unload(self): pass
"""


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    write_model(repository, "all", ALL_CONFIG, ALL_SOURCE)
    write_model(repository, "scalar", SCALAR_CONFIG, SCALAR_SOURCE)
    write_model(repository, "whole", WHOLE_CONFIG, WHOLE_SOURCE)
    state = tmp_path_factory.mktemp("state")
    with running(repository, state, f"--front={request.param}", "--replicas=2") as server:
        yield server
        assert server.stop() == 0
        assert not mistakes(server.log)


@pytest.fixture(scope="module")
def caller(server: Server) -> Iterator[Caller]:
    with connect(server.address) as caller:
        yield caller


def _random(datatype: str, shape: tuple[int, ...], source: np.random.Generator) -> Array:
    """Any bits, so also NaNs and their payloads; texts of any bytes and lengths."""
    if datatype == "BYTES":
        array = np.empty(shape, dtype=object)
        for index in np.ndindex(shape):
            array[index] = source.bytes(int(source.integers(0, 9)))
        return array
    if datatype == "BOOL":
        return source.integers(0, 2, shape).astype(bool)
    kind = NUMPY[datatype]
    count = int(np.prod(shape))
    return np.frombuffer(source.bytes(count * kind.itemsize), kind).reshape(shape)


def _finite(datatype: str, shape: tuple[int, ...], source: np.random.Generator) -> Array:
    """Values that are equal to themselves, for clients that give arrays."""
    if datatype in ("FP16", "BF16", "FP32", "FP64"):
        return source.normal(0, 100, shape).astype(NUMPY[datatype])
    return _random(datatype, shape, source)


def _bytes_of(array: Array) -> bytes:
    if array.dtype == object:
        return b"".join(len(text).to_bytes(4, "little") + text for text in array.ravel())
    return array.tobytes()


def _request(
    model: str,
    inputs: dict[str, tuple[str, Array]],
    outputs: tuple[str, ...] = (),
    *,
    typed: bool = False,
) -> ModelInferRequest:
    """`typed`: with contents instead of raw ones, which FP16 and BF16 do not have."""
    message = ModelInferRequest(model_name=model)
    for name, (datatype, array) in inputs.items():
        tensor = message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if typed:
            getattr(tensor.contents, CONTENTS[datatype]).extend(array.ravel().tolist())
        else:
            message.raw_input_contents.append(_bytes_of(array))
    for name in outputs:
        message.outputs.add(name=name)
    return message


def _check(answer: ModelInferResponse, expected: dict[str, tuple[str, Array]]) -> None:
    """These outputs in this order, to the bit."""
    assert [output.name for output in answer.outputs] == list(expected)
    for output, raw, (datatype, array) in zip(
        answer.outputs, answer.raw_output_contents, expected.values(), strict=True
    ):
        assert output.datatype == datatype
        assert tuple(output.shape) == array.shape
        assert raw == _bytes_of(array)


def _everything(
    source: np.random.Generator, given: set[str], rows: int, size: int
) -> tuple[dict[str, tuple[str, Array]], dict[str, tuple[str, Array]]]:
    """Inputs for the model `all`, and the outputs that belong to them."""
    inputs = {}
    outputs = {}
    for datatype in NUMPY:
        shape = (rows, size, 2)
        if datatype in given:
            inputs[datatype] = (datatype, _random(datatype, shape, source))
        empty = np.empty((rows, 0, 2), NUMPY[datatype])
        outputs[f"{datatype}_OUT"] = inputs.get(datatype, (datatype, empty))
    return inputs, outputs


@pytest.mark.parametrize("size", [0, 1, 3])
def test_all_datatypes_at_once_come_back_bit_for_bit(caller: Caller, size: int) -> None:
    inputs, outputs = _everything(np.random.default_rng(size), set(NUMPY), 3, size)
    _check(caller.infer(_request("all", inputs)), outputs)


@pytest.mark.parametrize("datatype", NUMPY)
def test_an_optional_input_of_each_datatype_is_given_or_left_out(
    caller: Caller, datatype: str
) -> None:
    source = np.random.default_rng(1)
    inputs, outputs = _everything(source, {datatype, "FP32"}, 2, 2)
    _check(caller.infer(_request("all", inputs)), outputs)
    inputs, outputs = _everything(source, set(NUMPY) - {datatype} | {"FP32"}, 2, 2)
    _check(caller.infer(_request("all", inputs)), outputs)


@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_contents_are_read_as_raw_ones_are(caller: Caller, datatype: str) -> None:
    source = np.random.default_rng(2)
    for size in (0, 1, 4):
        array = _finite(datatype, (2, size, 2), source)
        ones = np.ones((2, 1, 2), np.float32)
        inputs = {"FP32": ("FP32", ones), datatype: (datatype, array)}
        expected = {f"{datatype}_OUT": (datatype, array)}
        message = _request("all", inputs, (f"{datatype}_OUT",), typed=True)
        _check(caller.infer(message), expected)


@pytest.mark.parametrize("datatype", ["INT8", "INT16", "UINT8", "UINT16"])
def test_the_ends_of_a_range_pass_as_typed_contents_and_what_is_beyond_does_not(
    caller: Caller, datatype: str
) -> None:
    limits = np.iinfo(NUMPY[datatype])
    array = np.array([[[limits.min, limits.max]]], NUMPY[datatype])
    ones = np.ones((1, 1, 2), np.float32)
    inputs = {"FP32": ("FP32", ones), datatype: (datatype, array)}
    message = _request("all", inputs, (f"{datatype}_OUT",), typed=True)
    _check(caller.infer(message), {f"{datatype}_OUT": (datatype, array)})
    getattr(message.inputs[1].contents, CONTENTS[datatype])[1] = limits.max + 1
    code, sentence = caller.refusal(INFER_PATH, message)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"does not fit {datatype}" in sentence
    assert str(limits.max + 1) in sentence


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_what_has_no_typed_contents_says_so(caller: Caller, datatype: str) -> None:
    message = _request("all", {"FP32": ("FP32", np.ones((1, 1, 2), np.float32))}, typed=True)
    message.inputs.add(name=datatype, datatype=datatype, shape=[1, 1, 2])
    message.inputs[1].contents.fp32_contents.extend([1.0, 2.0])
    code, sentence = caller.refusal(INFER_PATH, message)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"{datatype} has no typed contents" in sentence


def test_requested_outputs_come_alone_and_in_the_order_asked_for(caller: Caller) -> None:
    inputs, outputs = _everything(np.random.default_rng(3), set(NUMPY), 2, 1)
    wanted = ("UINT8_OUT", "BYTES_OUT", "BOOL_OUT")
    answer = caller.infer(_request("all", inputs, wanted))
    _check(answer, {name: outputs[name] for name in wanted})


def test_inputs_in_any_order_are_told_apart(caller: Caller) -> None:
    inputs, outputs = _everything(np.random.default_rng(4), set(NUMPY), 2, 1)
    shuffled = dict(sorted(inputs.items(), key=lambda item: item[0][::-1]))
    assert list(shuffled) != list(inputs)
    for _ in range(3):
        _check(caller.infer(_request("all", shuffled)), outputs)
        _check(caller.infer(_request("all", inputs)), outputs)


def test_a_value_a_row_reaches_the_model_without_its_dimension(caller: Caller) -> None:
    source = np.random.default_rng(5)
    for rows in range(1, MAX_ROWS + 1):
        inputs = {
            "NUMBER": ("INT64", _random("INT64", (rows, 1), source)),
            "TEXT": ("BYTES", _random("BYTES", (rows, 1), source)),
            "GRID": ("FP32", _random("FP32", (rows, 2, 3), source)),
        }
        _check(caller.infer(_request("scalar", inputs)), inputs)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (0, 3), (3, 0), (0, 0), (100, 70)])
def test_a_model_without_batching_gets_the_whole_shape(
    caller: Caller, shape: tuple[int, int]
) -> None:
    source = np.random.default_rng(6)
    table = _random("FP64", shape, source)
    text = _random("BYTES", (shape[0],), source)
    expected = {
        "TABLE": ("FP64", np.ascontiguousarray(table.T)),
        "TEXT": ("BYTES", text),
        "SIZE": ("INT32", np.array([table.size], np.int32)),
    }
    inputs = {"TABLE": ("FP64", table), "TEXT": ("BYTES", text)}
    _check(caller.infer(_request("whole", inputs)), expected)
    expected["TEXT"] = ("BYTES", np.array([b"none"], object))
    _check(caller.infer(_request("whole", {"TABLE": ("FP64", table)})), expected)


def test_both_clients_send_and_read_every_datatype_alike(server: Server) -> None:
    source = np.random.default_rng(7)
    arrays = {datatype: _finite(datatype, (3, 2, 2), source) for datatype in NUMPY}
    with Client(server.address) as client:
        ours = client.infer("all", arrays)
    theirs = _infer_with_triton(server.address, "all", {it: (it, arrays[it]) for it in arrays})
    assert set(ours) == set(theirs) == {f"{datatype}_OUT" for datatype in NUMPY}
    for datatype, array in arrays.items():
        got, other = ours[f"{datatype}_OUT"], theirs[f"{datatype}_OUT"]
        assert got.dtype == NUMPY[datatype]
        np.testing.assert_array_equal(got, array)
        np.testing.assert_array_equal(other, array)


def test_both_clients_send_and_read_sizes_of_zero_and_models_without_batching(
    server: Server,
) -> None:
    none = np.empty((2, 0, 2), np.float32)
    table = np.arange(6, dtype=np.float64).reshape(2, 3)
    with Client(server.address) as client:
        ours = client.infer("all", {"FP32": none}, outputs=["FP32_OUT", "BYTES_OUT"])
        whole = client.infer("whole", {"TABLE": table})
    theirs = _infer_with_triton(server.address, "all", {"FP32": ("FP32", none)})
    for name in ("FP32_OUT", "BYTES_OUT"):
        assert ours[name].shape == theirs[name].shape == (2, 0, 2)
    assert set(ours) == {"FP32_OUT", "BYTES_OUT"}
    other = _infer_with_triton(server.address, "whole", {"TABLE": ("FP64", table)})
    np.testing.assert_array_equal(whole["TABLE"], table.T)
    for name in ("TABLE", "TEXT", "SIZE"):
        np.testing.assert_array_equal(whole[name], other[name])


def _infer_with_triton(
    address: str, model: str, inputs: dict[str, tuple[str, Array]]
) -> dict[str, Array]:
    tensors = []
    for name, (datatype, array) in inputs.items():
        tensor = triton.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    with triton.InferenceServerClient(address) as client:
        result = client.infer(model, tensors)
        names = [output.name for output in result.get_response().outputs]
        return {name: result.as_numpy(name) for name in names}


CALLERS: Final = 24
CALLS: Final = 12
# Kinds of requests, so that some callers share a batch and others must not.
KINDS: Final = (
    (frozenset(NUMPY), 1),
    (frozenset({"FP32", "BYTES", "BF16"}), 2),
    (frozenset({"FP32", "INT8", "BOOL"}), 0),
)


def test_many_callers_of_random_rows_get_their_own_from_mixed_batches(server: Server) -> None:
    async def call(infer: Any, seed: int) -> None:
        source = np.random.default_rng(seed)
        for _ in range(CALLS):
            message, expected = _random_call(source)
            _check(
                ModelInferResponse.FromString(await infer(message.SerializeToString())), expected
            )

    async def cancel(infer: Any, seed: int) -> None:
        """Callers that give up take nothing from their batch mates."""
        source = np.random.default_rng(seed)
        for _ in range(CALLS):
            message, _ = _random_call(source)
            pending = infer(message.SerializeToString())
            await asyncio.wait(
                [asyncio.ensure_future(pending.code())], timeout=source.random() / 200
            )
            pending.cancel()

    async def run() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            infer: Any = channel.unary_unary(INFER_PATH)
            await asyncio.gather(
                *(call(infer, seed) for seed in range(CALLERS)),
                *(cancel(infer, seed) for seed in range(CALLERS, CALLERS + 4)),
            )

    with Client(server.address) as client:
        (before,) = client.statistics("all")
        asyncio.run(run())
        (after,) = client.statistics("all")
    batches = after.execution_count - before.execution_count
    assert CALLERS * CALLS // MAX_ROWS <= batches < CALLERS * CALLS * 3 // 4


def test_streams_beside_each_other_get_their_own_rows_in_order(server: Server) -> None:
    async def stream(start: Any, seed: int) -> None:
        source = np.random.default_rng(seed)
        pairs = [_random_call(source) for _ in range(CALLS)]
        call = start(iter([message.SerializeToString() for message, _ in pairs]))
        answers = [ModelStreamInferResponse.FromString(payload) async for payload in call]
        for answer, (_, expected) in zip(answers, pairs, strict=True):
            assert not answer.error_message
            _check(answer.infer_response, expected)

    async def run() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            start: Any = channel.stream_stream(STREAM_PATH)
            await asyncio.gather(*(stream(start, seed) for seed in range(CALLERS)))

    asyncio.run(run())


def _random_call(
    source: np.random.Generator,
) -> tuple[ModelInferRequest, dict[str, tuple[str, Array]]]:
    given, size = KINDS[int(source.integers(len(KINDS)))]
    rows = int(source.integers(1, MAX_ROWS + 1)) if source.random() < 0.3 else 1
    inputs, outputs = _everything(source, set(given), rows, size)
    names: tuple[str, ...] = ()
    if source.random() < 0.5:
        names = tuple(random.Random(int(source.integers(2**32))).sample(list(outputs), 3))
        outputs = {name: outputs[name] for name in names}
    return _request("all", inputs, names), outputs
