"""Clients that we did not write, and our own, get right answers from real models."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
import torch
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from numpy.typing import NDArray

from examples.train.split import Digits, split
from tests.e2e.model_folder import write_model
from tests.e2e.running import running
from tests.e2e.server import EXAMPLES, Server, wait_until
from tideserve.client import Client
from tideserve.client.aio import Client as AioClient
from tideserve.v1.methods import CONTROL_SERVICE, INFERENCE_SERVICE, REPLICA_SERVICE

pytestmark = pytest.mark.e2e

Scores = NDArray[np.float32]
MODELS = ("digits_onnx", "digits_torch")
ROWS = 8
FULL_BATCH_ROWS = 64


@pytest.fixture(
    scope="module",
    params=[("--front=native",), ("--front=grpcio",), ("--front=native", "--busy-poll-us=500")],
    ids=["native", "grpcio", "busy"],
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("state")
    with running(EXAMPLES, state, *request.param) as server:
        yield server


@pytest.fixture(scope="module")
def digits() -> Digits:
    return split().held_out


@pytest.fixture(scope="module")
def direct() -> dict[str, Callable[[Scores], Scores]]:
    """The runtimes called on the model files, without a server."""
    session = onnxruntime.InferenceSession(EXAMPLES / "digits_onnx" / "1" / "model.onnx")
    with pytest.warns(DeprecationWarning, match="jit"):
        module = torch.jit.load(str(EXAMPLES / "digits_torch" / "1" / "model.pt"))

    def onnx(images: Scores) -> Scores:
        scores: Scores = session.run(["scores"], {"image": images})[0]
        return scores

    def torchscript(images: Scores) -> Scores:
        with torch.inference_mode():
            scores: Scores = module(torch.from_numpy(images.copy())).numpy()
        return scores

    return {"digits_onnx": onnx, "digits_torch": torchscript}


@pytest.fixture
def triton_client(server: Server) -> Iterator[Any]:
    client = triton.InferenceServerClient(server.address)
    yield client
    client.close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    name = request.param
    assert isinstance(name, str)
    return name


@pytest.fixture
def check(
    model: str, digits: Digits, direct: dict[str, Callable[[Scores], Scores]]
) -> Callable[[list[Scores]], None]:
    """Looks at the scores of all pieces of `digits`, in order."""

    def check(pieces: list[Scores]) -> None:
        scores = np.concatenate(pieces)
        expected = direct[model](digits.images)
        assert (scores.argmax(axis=1) == digits.labels).mean() >= 0.97
        np.testing.assert_array_equal(scores.argmax(axis=1), expected.argmax(axis=1))
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)

    return check


# --- tritonclient ---------------------------------------------------------------------------


def test_tritonclient_scores_the_held_out_digits(
    triton_client: Any, model: str, digits: Digits, check: Callable[[list[Scores]], None]
) -> None:
    answers = [
        triton_client.infer(model, _triton_inputs(piece), outputs=_triton_outputs())
        for piece in _pieces(digits.images)
    ]
    check([answer.as_numpy("scores") for answer in answers])


def test_tritonclient_aio_scores_the_held_out_digits(
    server: Server, model: str, digits: Digits, check: Callable[[list[Scores]], None]
) -> None:
    async def score() -> list[Scores]:
        async with triton_aio.InferenceServerClient(server.address) as client:
            calls = (client.infer(model, _triton_inputs(it)) for it in _pieces(digits.images))
            return [answer.as_numpy("scores") for answer in await asyncio.gather(*calls)]

    check(asyncio.run(score()))


def test_tritonclient_stream_scores_the_held_out_digits(
    triton_client: Any, model: str, digits: Digits, check: Callable[[list[Scores]], None]
) -> None:
    answers: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
    triton_client.start_stream(callback=lambda result, error: answers.put((result, error)))
    pieces = _pieces(digits.images)
    for number, piece in enumerate(pieces):
        triton_client.async_stream_infer(model, _triton_inputs(piece), request_id=str(number))
    scores = []
    for number in range(len(pieces)):
        result, error = answers.get(timeout=20)
        assert error is None
        assert result.get_response().id == str(number)
        scores.append(result.as_numpy("scores"))
    triton_client.stop_stream()
    check(scores)


def test_tritonclient_aio_stream_scores_the_held_out_digits(
    server: Server, model: str, digits: Digits, check: Callable[[list[Scores]], None]
) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for piece in _pieces(digits.images):
            yield {"model_name": model, "inputs": _triton_inputs(piece)}

    async def score() -> list[Scores]:
        scores = []
        async with triton_aio.InferenceServerClient(server.address) as client:
            async for result, error in client.stream_infer(requests()):
                assert error is None
                scores.append(result.as_numpy("scores"))
        return scores

    check(asyncio.run(score()))


def test_a_full_batch_is_bit_for_bit_what_the_runtime_gives(
    triton_client: Any,
    model: str,
    digits: Digits,
    direct: dict[str, Callable[[Scores], Scores]],
) -> None:
    images = digits.images[:FULL_BATCH_ROWS]
    answer = triton_client.infer(model, _triton_inputs(images))
    np.testing.assert_array_equal(answer.as_numpy("scores"), direct[model](images))


def test_a_gzipped_request_is_read(triton_client: Any) -> None:
    values = np.zeros((64, 16), np.float32)
    values[:, 3] = np.arange(64)
    tensor = triton.InferInput("IN", values.shape, "FP32")
    tensor.set_data_from_numpy(values)
    answer = triton_client.infer("identity", [tensor], compression_algorithm="gzip")
    np.testing.assert_array_equal(answer.as_numpy("OUT"), values)


def test_request_ids_and_model_names_come_back(triton_client: Any) -> None:
    for request_id in ("", "first", "ünïcode-2"):
        answer = triton_client.infer(
            "digits_onnx", _triton_inputs(np.ones((1, 1, 8, 8), np.float32)), request_id=request_id
        ).get_response()
        assert (answer.id, answer.model_name, answer.model_version) == (
            request_id,
            "digits_onnx",
            "1",
        )


def test_texts_go_in_and_out_as_bytes(triton_client: Any, client: Client) -> None:
    texts = np.array(
        [["  \N{FULLWIDTH LATIN CAPITAL LETTER T}ide "], ["SERVE\tis\n up"], [""], ["straße"]],
        dtype=object,
    )
    expected = [[b"tide"], [b"serve is up"], [b""], [b"strasse"]]
    tensor = triton.InferInput("TEXT", texts.shape, "BYTES")
    tensor.set_data_from_numpy(texts)
    answer = triton_client.infer("text_python", [tensor]).as_numpy("NORMALIZED")
    assert answer.tolist() == expected
    assert client.infer("text_python", {"TEXT": texts})["NORMALIZED"].tolist() == expected


# --- tideserve.client, in the same process ---------------------------------------------------


def test_our_client_scores_the_held_out_digits(
    client: Client, model: str, digits: Digits, check: Callable[[list[Scores]], None]
) -> None:
    check([client.infer(model, {"image": it})["scores"] for it in _pieces(digits.images)])


def test_our_aio_client_scores_the_held_out_digits(
    server: Server, model: str, digits: Digits, check: Callable[[list[Scores]], None]
) -> None:
    async def score() -> list[Scores]:
        async with AioClient(server.address) as client:
            calls = [client.infer(model, {"image": it}) for it in _pieces(digits.images)]
            unary = [answer["scores"] for answer in await asyncio.gather(*calls)]
            inputs = [{"image": it} for it in _pieces(digits.images)]
            streamed = [
                result.outputs["scores"] async for result in client.infer_stream(model, inputs)
            ]
        np.testing.assert_allclose(
            np.concatenate(unary), np.concatenate(streamed), rtol=1e-5, atol=1e-5
        )
        return streamed

    check(asyncio.run(score()))


def test_our_stream_scores_the_held_out_digits(
    client: Client, model: str, digits: Digits, check: Callable[[list[Scores]], None]
) -> None:
    inputs = ({"image": it} for it in _pieces(digits.images))
    check([result.outputs["scores"] for result in client.infer_stream(model, inputs)])


# --- what the server says of itself ------------------------------------------------------------


def test_the_metadata_is_that_of_the_model_file(triton_client: Any) -> None:
    metadata = triton_client.get_model_metadata("digits_onnx")
    assert (metadata.name, list(metadata.versions)) == ("digits_onnx", ["1"])
    assert metadata.platform == "onnxruntime_onnx"
    ((image,), (scores,)) = metadata.inputs, metadata.outputs
    assert (image.name, image.datatype, list(image.shape)) == ("image", "FP32", [-1, 1, 8, 8])
    assert (scores.name, scores.datatype, list(scores.shape)) == ("scores", "FP32", [-1, 10])


def test_the_configuration_is_completed_from_the_model_file(triton_client: Any) -> None:
    config = triton_client.get_model_config("digits_onnx").config
    assert config.name == "digits_onnx"
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 64
    ((image,), (scores,)) = config.input, config.output
    assert (image.name, list(image.dims)) == ("image", [1, 8, 8])
    assert (scores.name, list(scores.dims)) == ("scores", [10])
    assert config.HasField("dynamic_batching")


def test_the_server_lives_and_tells_its_name(triton_client: Any) -> None:
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    assert triton_client.is_model_ready("digits_onnx", "1")
    assert not triton_client.is_model_ready("digits_onnx", "2")
    metadata = triton_client.get_server_metadata()
    assert metadata.name == "tideserve"
    assert "statistics" in metadata.extensions


def test_the_repository_index_lists_every_model_once(triton_client: Any) -> None:
    models = triton_client.get_model_repository_index().models
    assert sorted((model.name, model.version, model.state) for model in models) == sorted(
        (folder.name, "1", "READY") for folder in EXAMPLES.iterdir()
    )


def test_statistics_count_what_was_sent(triton_client: Any) -> None:
    before = triton_client.get_inference_statistics("identity").model_stats[0]
    calls = []
    for rows in (1, 2, 3, 4) * 10:
        tensor = triton.InferInput("IN", (rows, 16), "FP32")
        tensor.set_data_from_numpy(np.ones((rows, 16), np.float32))
        answers: SimpleQueue[Any] = SimpleQueue()
        triton_client.async_infer(
            "identity", [tensor], callback=lambda result, error, to=answers: to.put(error)
        )
        calls.append(answers)
    assert [answers.get(timeout=20) for answers in calls] == [None] * 40
    after = triton_client.get_inference_statistics("identity").model_stats[0]
    assert (after.name, after.version) == ("identity", "1")
    assert after.inference_count - before.inference_count == 100
    stats, earlier = after.inference_stats, before.inference_stats
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(stats, part).count - getattr(earlier, part).count == 40, part
        # What is leased in the turn of the loop in which it came has waited for 0 ns.
        least = 0 if part == "queue" else 1
        assert getattr(stats, part).ns - getattr(earlier, part).ns >= least, part
    assert stats.fail.count == earlier.fail.count
    batches = after.batch_stats
    assert sum(it.compute_infer.count for it in batches) == after.execution_count
    assert sum(it.compute_infer.count * it.batch_size for it in batches) == after.inference_count
    assert after.last_inference > before.last_inference


def test_failures_are_counted(triton_client: Any) -> None:
    before = triton_client.get_inference_statistics("identity").model_stats[0]
    tensor = triton.InferInput("IN", (65, 16), "FP32")
    tensor.set_data_from_numpy(np.ones((65, 16), np.float32))
    with pytest.raises(triton.InferenceServerException, match="65"):
        triton_client.infer("identity", [tensor])
    after = triton_client.get_inference_statistics("identity").model_stats[0]
    assert after.inference_stats.fail.count == before.inference_stats.fail.count + 1
    assert after.inference_count == before.inference_count


def test_missed_deadlines_are_failures_that_expired(
    start_server: Callable[..., Server], tmp_path: Path, front: str
) -> None:
    config = """
    backend: "python"
    max_batch_size: 1
    input { name: "IN" data_type: TYPE_FP32 dims: 1 }
    output { name: "OUT" data_type: TYPE_FP32 dims: 1 }
    instance_group { count: 2 }
    """
    source = (
        "import time\nclass Model:\n    def load(self, context): pass\n"
        "    def infer(self, inputs):\n        time.sleep(0.6)\n"
        "        return {'OUT': inputs['IN']}\n    def unload(self): pass\n"
    )
    write_model(tmp_path / "models", "slow", config, source)
    server = start_server(tmp_path / "models", f"--front={front}")
    # instance_group's count, where no --replicas is given.
    wait_until(lambda: len(server.ready_pids("slow")) == 2, 20, lambda: server.log)
    with triton.InferenceServerClient(server.address) as client, ThreadPoolExecutor(6) as pool:
        tensor = triton.InferInput("IN", (1, 1), "FP32")
        tensor.set_data_from_numpy(np.ones((1, 1), np.float32))

        def ask(timeout_s: float) -> str:
            try:
                client.infer("slow", [tensor], client_timeout=timeout_s)
            except triton.InferenceServerException as error:
                return str(error.status())
            return "answered"

        # Two that compute and two that wait miss theirs; the others are answered after them.
        ends = list(pool.map(ask, [0.3] * 4 + [20.0] * 2))
        assert ends == ["StatusCode.DEADLINE_EXCEEDED"] * 4 + ["answered"] * 2

        def settled() -> bool:
            stats = client.get_inference_statistics("slow").model_stats[0].inference_stats
            return bool(stats.fail.count == 4)

        wait_until(settled, 5, lambda: str(client.get_inference_statistics("slow")))
        stats = client.get_inference_statistics("slow").model_stats[0].inference_stats
        assert stats.success.count == stats.compute_infer.count == 2
    (model,) = server.snapshot().models
    assert (model.expired, model.cancelled) == (4, 0)


def test_reflection_tells_clients_without_our_files_the_real_names(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) >= {
            INFERENCE_SERVICE,
            REPLICA_SERVICE,
            CONTROL_SERVICE,
            "grpc.health.v1.Health",
        }
        pool: Any = DescriptorPool(database)
        service = pool.FindServiceByName(INFERENCE_SERVICE)
        method = service.FindMethodByName("ModelInfer")
        assert method.input_type.full_name == "inference.ModelInferRequest"
        assert method.output_type.fields_by_name["raw_output_contents"].number == 6
        streamed = service.FindMethodByName("ModelStreamInfer")
        assert streamed.output_type.full_name == "inference.ModelStreamInferResponse"


# --- inside ------------------------------------------------------------------------------------


def _pieces(images: Scores) -> list[Scores]:
    return [images[first : first + ROWS] for first in range(0, len(images), ROWS)]


def _triton_inputs(images: Scores) -> list[Any]:
    tensor = triton.InferInput("image", images.shape, "FP32")
    tensor.set_data_from_numpy(images)
    return [tensor]


def _triton_outputs() -> list[Any]:
    return [triton.InferRequestedOutput("scores")]
