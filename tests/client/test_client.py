import math
import subprocess
import sys
import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from tests.client.certificates import Certificates
from tests.client.fake_server import TOKEN, Failure, FakeServer
from tideserve.client import (
    Cancelled,
    Client,
    ClientClosed,
    DeadlineExceeded,
    Disconnected,
    InvalidArgument,
    InvalidResponse,
    ModelError,
    NotFound,
    ResourceExhausted,
    RetryPolicy,
    StreamRequestError,
    TideserveClientError,
    TlsOptions,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from tideserve.client.transport import Closed
from tideserve.v1.inference_pb2 import ModelInferResponse

X = np.arange(6, dtype=np.float32).reshape(2, 3)
UNAVAILABLE = Failure(grpc.StatusCode.UNAVAILABLE, "nothing can serve")


class FakeWaits:
    """A clock that moves when it is slept on, and no chance."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []

    def now_s(self) -> float:
        return sum(self.slept_s)

    def uniform(self) -> float:
        return 0.0

    def sleep(self, wait_s: float, closed: Closed) -> None:
        self.slept_s.append(wait_s)


@pytest.fixture
def waits() -> FakeWaits:
    return FakeWaits()


@pytest.fixture
def client(server: FakeServer, waits: FakeWaits) -> Iterator[Client]:
    retry = RetryPolicy(max_attempts=3, initial_backoff_s=0.1, jitter=0.0)
    with Client(server.address, waits=waits, retry=retry, timeout_s=20.0) as client:
        yield client


# --- inference ---------------------------------------------------------------------------


def test_infer_returns_the_outputs_by_name(client: Client) -> None:
    result = client.infer("echo", {"x": X, "text": ["a", "b\0"]})
    np.testing.assert_array_equal(result["x"], X)
    assert result["text"].tolist() == [b"a", b"b\0"]


def test_infer_asks_for_the_named_outputs_only(client: Client) -> None:
    assert list(client.infer("echo", {"x": X, "z": X}, outputs=["z"])) == ["z"]


def test_the_deadline_travels(client: Client, server: FakeServer) -> None:
    client.infer("echo", {"x": X}, timeout_s=7.0)
    client.infer("echo", {"x": X})
    client.infer("echo", {"x": X}, timeout_s=math.inf)
    seven_s, default_s, none_s = server.timeouts_s
    assert seven_s is not None
    assert 5.0 < seven_s <= 7.1
    assert default_s is not None
    assert 15.0 < default_s <= 20.1
    assert none_s is None or none_s > 1e6


def test_the_token_stays_out_of_the_client_plane(server: FakeServer) -> None:
    with Client(server.address, token=TOKEN) as client:
        client.infer("echo", {"x": X})
        assert client.replicas()
    sent = {name: "tideserve-token" in metadata for name, metadata in server.metadata}
    assert sent == {"ModelInfer": False, "Watch": True}


def test_ten_threads_share_a_client(server: FakeServer) -> None:
    wrong: list[int] = []
    with Client(server.address) as client:

        def call(number: int) -> None:
            array = np.full((1, 4), number, np.int32)
            results = [client.infer("echo", {"x": array})["x"] for _ in range(10)]
            wrong.extend(number for result in results if not np.array_equal(result, array))

        threads = [threading.Thread(target=call, args=(n,)) for n in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(server.requests) == 100


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgument),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.INTERNAL, ModelError),
        (grpc.StatusCode.UNIMPLEMENTED, Unimplemented),
        (grpc.StatusCode.CANCELLED, Cancelled),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.DATA_LOSS, TideserveClientError),
    ],
)
def test_a_status_becomes_its_error(
    client: Client, server: FakeServer, code: grpc.StatusCode, kind: type[TideserveClientError]
) -> None:
    server.failures.append(Failure(code, "what happened"))
    with pytest.raises(kind, match="what happened") as caught:
        client.infer("echo", {"x": X})
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.model) == (code, "echo")
    assert client.infer("echo", {"x": X})["x"].shape == (2, 3)


def test_a_response_that_does_not_decode_is_a_typed_error(
    client: Client, server: FakeServer
) -> None:
    server.response = seven_bytes_for_eight()
    with pytest.raises(InvalidResponse, match="takes 8 bytes, got 7"):
        client.infer("echo", {"x": X})


def seven_bytes_for_eight() -> ModelInferResponse:
    response = ModelInferResponse(raw_output_contents=[b"1234567"])
    response.outputs.add(name="y", datatype="FP32", shape=[2])
    return response


# --- retries -----------------------------------------------------------------------------


def test_unavailable_is_retried_with_growing_waits(
    client: Client, server: FakeServer, waits: FakeWaits
) -> None:
    server.failures.extend([UNAVAILABLE, UNAVAILABLE])
    assert client.infer("echo", {"x": X})["x"].shape == (2, 3)
    assert waits.slept_s == pytest.approx([0.1, 0.2])


def test_the_last_attempts_error_is_raised(client: Client, server: FakeServer) -> None:
    server.failures.extend([UNAVAILABLE] * 5)
    with pytest.raises(Unavailable, match="nothing can serve"):
        client.infer("echo", {"x": X})
    assert len(server.requests) == 3


def test_a_push_back_is_obeyed(client: Client, server: FakeServer, waits: FakeWaits) -> None:
    server.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", pushback_ms=700))
    client.infer("echo", {"x": X})
    assert waits.slept_s == [0.7]


def test_a_negative_push_back_is_not_retried(client: Client, server: FakeServer) -> None:
    server.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", pushback_ms=-1))
    with pytest.raises(ResourceExhausted) as caught:
        client.infer("echo", {"x": X})
    assert caught.value.pushback_s == -1
    assert len(server.requests) == 1


def test_a_wait_past_the_deadline_is_not_slept(
    client: Client, server: FakeServer, waits: FakeWaits
) -> None:
    server.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", pushback_ms=9000))
    with pytest.raises(ResourceExhausted) as caught:
        client.infer("echo", {"x": X}, timeout_s=5.0)
    assert caught.value.pushback_s == 9.0
    assert waits.slept_s == []


# --- deadlines, cancels, connections -----------------------------------------------------


def test_a_call_past_its_deadline_ends_at_both_sides(client: Client, server: FakeServer) -> None:
    with pytest.raises(DeadlineExceeded):
        client.infer("hangs", {"x": X}, timeout_s=0.3)
    assert server.cancelled.wait(10)


def test_closing_ends_the_calls_under_way(server: FakeServer) -> None:
    client = Client(server.address)
    caught: list[Exception] = []

    def call() -> None:
        try:
            client.infer("hangs", {"x": X})
        except TideserveClientError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert server.begun.wait(10)
    client.close()
    client.close()
    thread.join(10)
    assert [type(error) for error in caught] == [ClientClosed]
    assert server.cancelled.wait(10)


def test_use_after_close_is_a_typed_error(server: FakeServer) -> None:
    client = Client(server.address)
    client.is_live()
    client.close()
    with pytest.raises(ClientClosed):
        client.is_live()
    with pytest.raises(ClientClosed):
        client.replicas()
    with pytest.raises(ClientClosed), client.stream():
        pass


def test_a_server_that_is_not_there_is_disconnected() -> None:
    retry = RetryPolicy(max_attempts=1)
    with Client("localhost:1", retry=retry) as client, pytest.raises(Disconnected):
        client.is_live(timeout_s=10)


def test_a_server_that_comes_back_is_found_again(server: FakeServer) -> None:
    with Client(server.address) as client:
        assert client.is_live()
        server.stop()
        with pytest.raises(Unavailable):
            client.is_live(timeout_s=0.5)
        server.start()
        client.wait_ready(20.0)
        assert client.infer("echo", {"x": X})["x"].shape == (2, 3)


def test_mutual_tls_from_files(certificates: Certificates) -> None:
    server = FakeServer(credentials=certificates.server_credentials())
    server.start()
    try:
        tls = TlsOptions(certificates.ca, certificates.certificate, certificates.key)
        with Client(server.address, tls=tls) as client:
            assert client.is_live()
        bare = Client(
            server.address, tls=TlsOptions(certificates.ca), retry=RetryPolicy(max_attempts=1)
        )
        with bare, pytest.raises(Unavailable):
            bare.is_live(timeout_s=10)
    finally:
        server.stop()


# --- health and metadata -----------------------------------------------------------------


def test_health(client: Client, server: FakeServer) -> None:
    assert (client.is_live(), client.is_ready(), client.is_model_ready("echo")) == (True,) * 3
    server.ready = False
    assert (client.is_live(), client.is_ready(), client.is_model_ready("echo")) == (
        True,
        False,
        False,
    )
    with pytest.raises(NotFound, match="there are"):
        client.is_model_ready("nobody")


def test_wait_ready_polls_at_growing_intervals(
    client: Client, server: FakeServer, waits: FakeWaits
) -> None:
    server.not_ready_answers = 4
    client.wait_ready(30.0)
    assert waits.slept_s == pytest.approx([0.05, 0.1, 0.2, 0.4])


def test_wait_ready_gives_up_and_says_what_was_not(client: Client, server: FakeServer) -> None:
    server.ready = False
    with pytest.raises(DeadlineExceeded, match="model 'echo' was not ready within 3 s"):
        client.wait_ready(3.0, model="echo")


def test_metadata(client: Client) -> None:
    assert client.server_metadata().version == "1.2"
    metadata = client.model_metadata("digits_onnx")
    assert [(t.name, t.datatype, t.shape) for t in metadata.inputs] == [
        ("image", "FP32", (-1, 1, 8, 8))
    ]
    config = client.model_config("text")
    assert (config.max_batch_size, config.backend) == (64, "onnxruntime")
    assert [(t.name, t.datatype, t.dims) for t in config.inputs] == [("TEXT", "BYTES", (1,))]
    assert dict(config.parameters) == {"tideserve.retryable": "true"}
    assert config.message.max_batch_size == 64


def test_statistics(client: Client) -> None:
    (stats,) = client.statistics("echo")
    assert (stats.inference_count, stats.execution_count) == (6, 3)
    assert (stats.success.count, stats.success.total_s) == (5, 2.5)
    assert [(b.batch_rows, b.compute_infer.count) for b in stats.batches] == [(2, 3)]
    assert len(client.statistics()) > 1


def test_models_load_and_unload(client: Client, server: FakeServer) -> None:
    states = {entry.name: entry.state for entry in client.models()}
    assert states["echo"] == "READY"
    assert states["broken"] == "UNAVAILABLE"
    assert "broken" not in {entry.name for entry in client.models(ready_only=True)}
    client.unload("echo")
    with pytest.raises(NotFound):
        client.infer("echo", {"x": X})
    client.load("echo", {"max_batch_size": 8})
    assert server.loads[-1].parameters["config"].string_param == '{"max_batch_size": 8}'
    assert client.is_model_ready("echo")
    with pytest.raises(InvalidArgument, match="config"):
        client.load("echo", {"x": object()})


def test_replicas_need_the_token(server: FakeServer) -> None:
    with Client(server.address, token=TOKEN) as client:
        first, second = client.replicas()
    assert (first.id, first.model, first.version, first.state, first.pid) == (
        "replica-1",
        "identity",
        "1",
        "READY",
        4321,
    )
    assert (second.model, second.version, second.state) == ("", "", "STANDBY")
    assert server.cancelled.wait(10)  # the rest of the Watch
    with Client(server.address, token="other") as client, pytest.raises(Unauthenticated):
        client.replicas()


# --- streams -----------------------------------------------------------------------------


def test_a_stream_gives_results_in_order(client: Client, server: FakeServer) -> None:
    server.swap_stream_answers = True
    with client.stream() as stream:
        ids = [stream.send("echo", {"x": X + n}, request_id=f"r{n}") for n in range(4)]
        results = list(stream)
        assert [result.request_id for result in results] == ids
        for number, result in enumerate(results):
            np.testing.assert_array_equal(result.outputs["x"], X + number)
        stream.send("echo", {"x": X})
        stream.send("echo", {"x": X})
        assert [result.version for result in stream] == ["1", "1"]


@pytest.mark.parametrize(("code", "kind"), [(13, ModelError), (None, StreamRequestError)])
def test_a_request_that_fails_leaves_the_stream_open(
    client: Client, server: FakeServer, code: int | None, kind: type[TideserveClientError]
) -> None:
    server.stream_code = code
    with client.stream() as stream:
        stream.send("echo", {"x": X})
        stream.send("fails", {"x": X}, request_id="bad")
        stream.send("echo", {"x": X + 1})
        assert stream.receive().outputs["x"].shape == (2, 3)
        with pytest.raises(kind, match="ValueError: 7") as caught:
            stream.receive()
        assert (caught.value.model, caught.value.request_id) == ("fails", "bad")
        np.testing.assert_array_equal(stream.receive().outputs["x"], X + 1)


def test_a_broken_stream_raises_for_whoever_asks(client: Client) -> None:
    with client.stream() as stream:
        stream.send("echo", {"x": X})
        stream.send("breaks", {"x": X})
        assert stream.receive().model == "echo"
        for _ in range(2):
            with pytest.raises(Unavailable, match="the stream breaks"):
                stream.receive()
        with pytest.raises(Unavailable, match="the stream breaks"):
            stream.send("echo", {"x": X})


@pytest.mark.parametrize(
    ("model", "sentence"), [("ends", "1 requests unanswered"), ("stranger", "'stranger'")]
)
def test_a_stream_out_of_step_is_an_invalid_response(
    client: Client, model: str, sentence: str
) -> None:
    with client.stream() as stream:
        stream.send(model, {"x": X})
        with pytest.raises(InvalidResponse, match=sentence):
            stream.receive(10)


def test_leaving_a_stream_cancels_what_is_left(client: Client, server: FakeServer) -> None:
    with client.stream() as stream:
        stream.send("hangs", {"x": X})
        with pytest.raises(DeadlineExceeded, match="no result within"):
            stream.receive(timeout_s=0.01)
        assert server.begun.wait(10)
    assert server.cancelled.wait(10)
    with pytest.raises(ClientClosed):
        stream.send("echo", {"x": X})
    assert not [t for t in threading.enumerate() if t.name == "tideserve-stream"]


def test_a_streams_deadline_bounds_the_whole_of_it(client: Client) -> None:
    with client.stream(timeout_s=0.3) as stream:
        stream.send("hangs", {"x": X})
        with pytest.raises(DeadlineExceeded):
            stream.receive()


def test_sending_too_far_ahead_is_refused(client: Client) -> None:
    with client.stream(max_outstanding=2) as stream:
        stream.send("echo", {"x": X})
        stream.send("echo", {"x": X})
        with pytest.raises(ResourceExhausted, match="max_outstanding is 2"):
            stream.send("echo", {"x": X})
        assert len(list(stream)) == 2


def test_infer_stream_answers_all_in_order(client: Client) -> None:
    inputs = ({"x": X + n} for n in range(50))
    results = [r.outputs["x"] for r in client.infer_stream("echo", inputs, max_outstanding=4)]
    assert len(results) == 50
    for number, result in enumerate(results):
        np.testing.assert_array_equal(result, X + number)


def test_infer_stream_of_nothing_is_empty(client: Client) -> None:
    assert list(client.infer_stream("echo", [])) == []


def test_infer_stream_ends_with_the_first_error(client: Client, server: FakeServer) -> None:
    server.stream_code = 13
    with pytest.raises(ModelError):
        list(client.infer_stream("fails", [{"x": X}] * 3))


# --- the package -------------------------------------------------------------------------


def test_the_client_imports_no_numpy_and_works_beside_tritonclient() -> None:
    script = (
        "import sys, tideserve.client, tideserve.client.aio\n"
        "assert 'numpy' not in sys.modules\n"
        "import tritonclient.grpc\n"
        "import tideserve.client.tensors\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)
