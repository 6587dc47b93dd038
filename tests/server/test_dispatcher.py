"""The loop over a front of lists: every call gets its one answer, and no call harms another."""

import logging
import math
from collections.abc import Callable

import pytest

from tests.server.fake_front import INFER, STREAM, TOKEN, World, echo, failure
from tests.server.samples import make_config, make_found, make_request
from tideserve.server.errors import Code
from tideserve.server.front import Call, Cancel, StreamMessage
from tideserve.server.models import ModelKey, ModelState
from tideserve.server.stranding import GRACE_S
from tideserve.v1 import control_pb2, methods, replica_pb2
from tideserve.v1.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStatisticsRequest,
    ModelStatisticsResponse,
    ModelStreamInferResponse,
    ServerLiveResponse,
)
from tideserve.v1.metadata import STREAM_STATUS_PARAMETER, TOKEN_METADATA_KEY
from tideserve.v1.replica_pb2 import BatchFailure, ExchangeResponse

LIVE = f"/{methods.INFERENCE_SERVICE}/ServerLive"
JOIN = f"/{methods.REPLICA_SERVICE}/Join"
BEAT = f"/{methods.REPLICA_SERVICE}/Beat"
EXCHANGE = f"/{methods.REPLICA_SERVICE}/Exchange"


def control(name: str) -> str:
    return f"/{methods.CONTROL_SERVICE}/{name}"


# --- calls -------------------------------------------------------------------------------------


def test_a_request_is_leased_computed_and_answered() -> None:
    world = World()
    replica = world.replica()
    waiting = replica.exchange()
    call_id = world.infer(3, request_id="seven")
    lease = replica.lease(waiting)
    assert (lease.rows, list(lease.request_rows)) == (3, [3])

    replica.exchange(echo(lease))

    response = world.answer(call_id, ModelInferResponse)
    assert (response.id, list(response.outputs[0].shape)) == ("seven", [3, 2])
    assert response.raw_output_contents == [bytes(range(24))]
    assert (world.stats.arrivals, world.stats.admitted, world.stats.success.count) == (1, 1, 1)
    assert (world.stats.inferences, world.stats.executions) == (3, 1)
    assert world.services.inference.open_calls == 0


def test_requests_of_one_turn_share_a_batch_and_get_their_own_rows() -> None:
    world = World()
    replica = world.replica()
    waiting = replica.exchange()
    calls = [world.post(INFER, make_request(1, raw=bytes([at]) * 8)) for at in range(4)]
    world.turn()
    lease = replica.lease(waiting)
    assert list(lease.request_rows) == [1, 1, 1, 1]

    replica.exchange(echo(lease))

    for at, call_id in enumerate(calls):
        response = world.answer(call_id, ModelInferResponse)
        assert response.raw_output_contents == [bytes([at]) * 8]


def test_an_unknown_method_is_unimplemented() -> None:
    world = World()
    status = world.failed(world.call("/inference.GRPCInferenceService/Nothing"))

    assert status.code == Code.UNIMPLEMENTED
    assert "/inference.GRPCInferenceService/Nothing" in status.message


@pytest.mark.parametrize(
    "path",
    [
        INFER,
        LIVE,
        JOIN,
        BEAT,
        EXCHANGE,
        control("Watch"),
        control("Announce"),
        control("ReportExit"),
        control("DrainReplica"),
        control("AssignModel"),
        control("ReportDecisions"),
        control("ScaleModel"),
        f"/{methods.INFERENCE_SERVICE}/RepositoryIndex",
        f"/{methods.INFERENCE_SERVICE}/RepositoryModelLoad",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    ],
)
def test_bytes_that_are_no_message_are_refused_and_the_next_call_answered(path: str) -> None:
    world = World()
    status = world.failed(world.call(path, b"\xff\xff\xff garbage"))

    assert status.code == Code.INVALID_ARGUMENT
    assert "expected a " in status.message
    assert "got 11 bytes" in status.message
    assert world.answer(world.call(LIVE), ServerLiveResponse).live


@pytest.mark.parametrize("method", methods.REPLICA + methods.CONTROL, ids=lambda it: it.name)
@pytest.mark.parametrize(
    ("metadata", "got"),
    [
        ((), "got none"),
        (((TOKEN_METADATA_KEY, "another token!!"),), "got another one"),
        (((TOKEN_METADATA_KEY, b"another"),), "got another one"),
        (((TOKEN_METADATA_KEY, "é"),), "got another one"),
        (((TOKEN_METADATA_KEY, ""),), "got another one"),
    ],
)
def test_the_inner_planes_need_the_token(
    method: methods.Method, metadata: tuple[tuple[str, str | bytes], ...], got: str
) -> None:
    world = World()
    status = world.failed(world.call(method.path, metadata=metadata))

    assert status.code == Code.UNAUTHENTICATED
    assert got in status.message
    assert TOKEN not in status.message


def test_a_token_as_bytes_is_the_token() -> None:
    world = World()
    call_id = world.call(
        control("Announce"),
        control_pb2.AnnounceRequest(),
        metadata=((TOKEN_METADATA_KEY, TOKEN.encode()),),
    )

    world.answer(call_id, control_pb2.AnnounceResponse)


def test_the_client_plane_needs_no_token() -> None:
    world = World()

    assert world.answer(world.call(LIVE, metadata=()), ServerLiveResponse).live


@pytest.mark.interpreted
def test_a_mistake_inside_fails_its_call_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    replica = world.replica()
    waiting = replica.exchange()

    def break_down(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    with monkeypatch.context() as patched:
        patched.setattr(world.services.inference, "on_half_close", break_down)
        stream = world.post(STREAM)
        world.half_close(stream)
    status = world.failed(stream)

    assert status.code == Code.INTERNAL
    assert "see its log" in status.message
    assert "secret" not in status.message
    assert "ZeroDivisionError" in caplog.text
    call_id = world.infer()
    replica.exchange(echo(replica.lease(waiting)))
    world.answer(call_id, ModelInferResponse)


@pytest.mark.interpreted
def test_an_admitted_request_whose_call_then_fails_inside_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    replica = world.replica()

    def break_down(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr("tideserve.server.service.inference._names", break_down)
        stream = world.call(STREAM)
        world.message(stream, make_request())
        world.message(stream, make_request(99))

    assert world.failed(stream).code == Code.INTERNAL
    assert world.services.inference.open_calls == 0
    assert world.scheduler.is_idle(world.keys[0])
    assert world.is_open(replica.exchange())


def test_a_request_for_a_model_that_loads_is_unavailable_and_an_unknown_one_not_found() -> None:
    world = World()
    status = world.failed(world.infer())
    assert (status.code, "is loading" in status.message) == (Code.UNAVAILABLE, True)

    status = world.failed(world.call(INFER, ModelInferRequest(model_name="x")))
    assert (status.code, "'x' is not served" in status.message) == (Code.NOT_FOUND, True)


def test_a_deadline_that_passes_in_the_queue_expires_the_request() -> None:
    world = World()
    world.replica()
    call_id = world.infer(time_left_s=0.5)
    world.turn(after_s=0.4)
    assert world.is_open(call_id)
    world.turn(after_s=0.2)

    assert world.failed(call_id).code == Code.DEADLINE_EXCEEDED
    assert world.stats.expired == 1
    assert world.stats.fail.count == 1


def test_a_request_that_comes_too_late_counts_as_expired_and_failed() -> None:
    world = World()
    world.replica()
    call_id = world.infer(time_left_s=0.0)

    assert world.failed(call_id).code == Code.DEADLINE_EXCEEDED
    assert (world.stats.arrivals, world.stats.admitted, world.stats.expired) == (1, 0, 1)
    assert world.stats.fail.count == 1


def test_a_full_queue_pushes_back_with_a_time() -> None:
    config = make_config(keys={"tideserve.max_queue_requests": "1"})
    world = World(make_found(config=config))
    world.replica()
    first = world.infer()
    status = world.failed(world.infer())

    assert world.is_open(first)
    assert status.code == Code.RESOURCE_EXHAUSTED
    assert "expected at most 1 requests to wait" in status.message
    assert status.pushback_ms is not None
    assert status.pushback_ms > 0
    assert world.stats.rejected == {"queue_requests": 1}


def test_a_cancelled_request_never_reaches_a_replica() -> None:
    world = World()
    replica = world.replica()
    call_id = world.infer()
    world.cancel(call_id)
    waiting = replica.exchange()

    assert world.is_open(waiting)
    assert world.stats.cancelled == 1
    assert world.services.inference.open_calls == 0


@pytest.mark.parametrize("gone_after_s", [0.99, 1.5])
def test_a_caller_who_goes_at_its_deadline_has_expired_and_one_before_was_cancelled(
    gone_after_s: float,
) -> None:
    world = World()
    replica = world.replica()
    late, early = world.infer(time_left_s=1.0), world.infer(time_left_s=100.0)
    lease = replica.lease(replica.exchange())
    world.now_s += gone_after_s
    world.cancel(late)
    world.cancel(early)
    replica.exchange(echo(lease))

    stats = world.stats
    assert (stats.expired, stats.cancelled, stats.success.count) == (1, 1, 0)
    assert stats.fail.count == 2
    assert stats.fail.ns == pytest.approx(2e9 * gone_after_s)
    # Computed for nobody: rows and executions count, requests do not.
    assert (stats.inferences, stats.executions, stats.compute_infer.count) == (2, 1, 0)


def test_a_cancelled_batch_mate_costs_the_others_nothing() -> None:
    world = World()
    replica = world.replica()
    waiting = replica.exchange()
    calls = [world.post(INFER, make_request(1, raw=bytes([at]) * 8)) for at in range(3)]
    world.turn()
    world.cancel(calls[0])
    replica.exchange(echo(replica.lease(waiting)))

    for at in (1, 2):
        assert world.answer(calls[at], ModelInferResponse).raw_output_contents == [bytes([at]) * 8]
    assert calls[0] not in world.front.answers


def test_an_event_of_an_unknown_call_is_nothing() -> None:
    world = World()
    world.cancel(77)
    world.message(77, b"x")
    world.half_close(77)

    assert not world.front.failures


# --- streams -----------------------------------------------------------------------------------


def stream_answers(world: World, call_id: int) -> list[ModelStreamInferResponse]:
    return [ModelStreamInferResponse.FromString(it) for it in world.front.sent[call_id]]


def test_a_streams_answers_come_in_the_order_of_its_requests() -> None:
    world = World()
    replica = world.replica()
    waiting = replica.exchange()
    stream = world.call(STREAM)
    world.message(stream, make_request(1, request_id="a"))
    world.message(stream, make_request(9, request_id="too many rows"))
    world.message(stream, make_request(1, request_id="c"))
    assert stream_answers(world, stream) == []

    again = replica.exchange(echo(replica.lease(waiting)))
    replica.exchange(echo(replica.lease(again)))

    first, second, third = stream_answers(world, stream)
    assert [it.infer_response.id for it in (first, second, third)] == ["a", "too many rows", "c"]
    assert (first.error_message, third.error_message) == ("", "")
    assert first.infer_response.parameters["triton_final_response"].bool_param
    assert "expected 1 to 8 rows" in second.error_message
    code = second.infer_response.parameters[STREAM_STATUS_PARAMETER].int64_param
    assert code == Code.INVALID_ARGUMENT
    assert world.is_open(stream)


def test_a_streams_requests_of_one_turn_share_a_batch() -> None:
    world = World()
    replica = world.replica()
    waiting = replica.exchange()
    stream = world.call(STREAM)
    requests = [make_request(1, raw=bytes([at]) * 8, request_id=str(at)) for at in range(4)]
    world.turn(*(StreamMessage(stream, request) for request in requests))

    lease = replica.lease(waiting)
    assert list(lease.request_rows) == [1, 1, 1, 1]
    replica.exchange(echo(lease))

    answers = [it.infer_response for it in stream_answers(world, stream)]
    assert [it.id for it in answers] == ["0", "1", "2", "3"]
    assert [it.raw_output_contents[0] for it in answers] == [bytes([at]) * 8 for at in range(4)]


@pytest.mark.interpreted
def test_a_streams_answers_that_wait_for_one_before_them_are_bounded_in_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """4,096 of them could wait, however large."""
    monkeypatch.setattr("tideserve.server.service.streams.MAX_STREAM_KEPT_BYTES", 10)
    world = World()
    replica = world.replica()
    waiting = replica.exchange()
    stream = world.call(STREAM)
    for rows, name in ((1, "a"), (9, "too many rows"), (1, "refused"), (1, "refused as well")):
        world.message(stream, make_request(rows, request_id=name))
    assert stream_answers(world, stream) == []

    again = replica.exchange(echo(replica.lease(waiting)))

    first, *others = stream_answers(world, stream)
    assert (first.infer_response.id, first.error_message) == ("a", "")
    assert [it.infer_response.id for it in others] == [
        "too many rows",
        "refused",
        "refused as well",
    ]
    assert all("wait for one before them" in it.error_message for it in others[1:])
    world.message(stream, make_request(1, request_id="later"))
    replica.exchange(echo(replica.lease(again)))
    assert stream_answers(world, stream)[-1].error_message == ""


def test_a_half_closed_stream_ends_with_its_last_answer() -> None:
    world = World()
    replica = world.replica()
    waiting = replica.exchange()
    stream = world.call(STREAM)
    world.message(stream, make_request())
    world.half_close(stream)
    assert world.is_open(stream)

    replica.exchange(echo(replica.lease(waiting)))

    assert len(stream_answers(world, stream)) == 1
    assert world.front.ended == [stream]
    assert world.services.inference.open_calls == 0


def test_an_empty_stream_ends_at_once() -> None:
    world = World()
    stream = world.call(STREAM)
    world.half_close(stream)

    assert world.front.ended == [stream]


def test_a_cancelled_streams_requests_leave_the_queue() -> None:
    world = World()
    world.replica()
    stream = world.call(STREAM)
    for _ in range(3):
        world.message(stream, make_request())
    world.cancel(stream)

    assert world.scheduler.is_idle(world.keys[0])
    assert world.stats.cancelled == 3
    assert world.services.inference.open_calls == 0


def test_garbage_in_a_stream_is_answered_in_its_place_and_the_stream_goes_on() -> None:
    world = World()
    replica = world.replica()
    waiting = replica.exchange()
    stream = world.call(STREAM)
    world.message(stream, b"\xff\xff")
    world.message(stream, make_request())
    replica.exchange(echo(replica.lease(waiting)))

    bad, good = stream_answers(world, stream)
    assert "expected a ModelInferRequest message" in bad.error_message
    assert good.infer_response.raw_output_contents


def test_a_streams_deadline_is_that_of_its_requests() -> None:
    world = World()
    world.replica()
    stream = world.call(STREAM, time_left_s=1.0)
    world.turn(after_s=0.9)
    world.message(stream, make_request())
    world.turn(after_s=0.2)

    (answer,) = stream_answers(world, stream)
    assert "deadline or timeout passed" in answer.error_message


# --- replicas ----------------------------------------------------------------------------------


def test_a_replica_that_was_not_announced_cannot_join() -> None:
    world = World()
    status = world.failed(world.call(JOIN, replica_pb2.JoinRequest(replica_id="stranger")))

    assert status.code == Code.NOT_FOUND
    assert "'stranger' was not announced" in status.message


def test_a_joining_replica_is_welcomed_and_told_its_model() -> None:
    world = World()
    replica = world.replica(ready=False)
    welcome, assign = replica.commands()

    assert welcome.welcome.epoch > 0
    assert welcome.welcome.max_message_bytes == 1 << 20
    assert (assign.assign.model_name, assign.assign.model_version) == ("m", 1)
    assert assign.assign.generation == "a"
    assert assign.assign.model_path == "/models/m"
    assert assign.assign.config_complete


def test_calls_of_an_earlier_life_are_refused() -> None:
    world = World()
    replica = world.replica()
    replica.epoch += 1

    assert world.failed(replica.exchange()).code == Code.FAILED_PRECONDITION
    status = world.failed(replica.beat())
    assert (status.code, "join again" in status.message) == (Code.FAILED_PRECONDITION, True)


def test_an_older_exchange_is_refused_and_a_repeated_one_gets_the_same_lease() -> None:
    world = World()
    replica = world.replica()
    replica.exchange(want=False)
    first = replica.exchange()
    world.infer()
    lease = replica.lease(first)

    again = replica.exchange(sequence=2)

    assert replica.lease(again) == lease
    assert world.failed(replica.exchange(sequence=1)).code == Code.FAILED_PRECONDITION


def test_an_exchange_without_work_is_answered_empty_after_a_while() -> None:
    world = World()
    replica = world.replica()
    waiting = replica.exchange()
    for _ in range(42):
        replica.beat()
        world.turn(after_s=0.25)

    answer = world.answer(waiting, ExchangeResponse)
    assert not answer.HasField("lease")
    assert answer.sequence == 1


def test_a_lease_that_nobody_takes_goes_to_another_replica() -> None:
    world = World()
    gone, other = world.replica("a"), world.replica("b")
    lost = gone.exchange()
    world.front.gone.add(lost)
    call_id = world.infer()
    assert lost not in world.front.answers

    waiting = other.exchange()
    other.exchange(echo(other.lease(waiting)))

    world.answer(call_id, ModelInferResponse)
    assert world.stats.executions == 1


def test_a_life_line_that_breaks_returns_the_lease_at_once() -> None:
    world = World()
    dies, other = world.replica("a"), world.replica("b")
    dies.exchange()
    call_id = world.infer()
    waiting = other.exchange()
    assert world.is_open(waiting)

    world.cancel(dies.life_line)

    lease = other.lease(waiting)
    other.exchange(echo(lease))
    world.answer(call_id, ModelInferResponse)


def test_a_silent_replica_is_lost_and_told_so() -> None:
    world = World()
    replica = world.replica()
    for _ in range(12):
        world.turn(after_s=0.1)

    status = world.failed(replica.life_line)
    assert status.code == Code.FAILED_PRECONDITION
    assert "no sign of life" in status.message
    assert world.failed(replica.exchange()).code == Code.FAILED_PRECONDITION


def test_an_outcome_for_a_lease_no_longer_held_is_dropped_and_told() -> None:
    world = World()
    replica = world.replica()
    answer = world.answer(
        replica.exchange(replica_pb2.Outcome(lease_id=99), want=False), ExchangeResponse
    )

    assert list(answer.dropped_lease_ids) == [99]
    assert world.stats.executions == 0


def test_a_model_error_fails_its_batch_and_the_replica_goes_on() -> None:
    world = World()
    replica = world.replica()
    waiting = replica.exchange()
    call_id = world.infer()
    again = replica.exchange(failure(replica.lease(waiting), BatchFailure.MODEL_ERROR, "bad pixel"))

    status = world.failed(call_id)
    assert status.code == Code.INTERNAL
    assert "raised: bad pixel" in status.message
    next_call = world.infer()
    replica.exchange(echo(replica.lease(again)))
    world.answer(next_call, ModelInferResponse)
    assert world.stats.failed == {"model_error": 1}


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (replica_pb2.Tensor(name="OUT", datatype="FP32", shape=[2, 2], data=bytes(16)), "1 rows"),
        (replica_pb2.Tensor(name="OUT", datatype="FP32", shape=[1, 2], data=bytes(7)), "8 bytes"),
        (replica_pb2.Tensor(name="OUT", datatype="INT7", shape=[1, 2], data=bytes(8)), "INT7"),
        (replica_pb2.Tensor(name="ELSE", datatype="FP32", shape=[1, 2], data=bytes(8)), "ELSE"),
        (None, "'OUT', which is missing"),
    ],
)
def test_outputs_that_do_not_fit_fail_the_batch_alone(
    tensor: replica_pb2.Tensor | None, words: str
) -> None:
    world = World()
    replica = world.replica()
    waiting = replica.exchange()
    call_id = world.infer()
    lease = replica.lease(waiting)
    result = replica_pb2.BatchResult(outputs=[] if tensor is None else [tensor])
    again = replica.exchange(replica_pb2.Outcome(lease_id=lease.lease_id, result=result))

    status = world.failed(call_id)
    assert (status.code, words in status.message) == (Code.INTERNAL, True), status
    assert world.is_open(again)
    assert world.stats.failed == {"bad_output": 1}


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_a_time_that_no_clock_measured_costs_no_answer_and_no_statistics(seconds: float) -> None:
    world = World()
    replica = world.replica()
    waiting = replica.exchange()
    call_id = world.infer()
    outcome = echo(replica.lease(waiting))
    outcome.infer_s = seconds
    again = replica.exchange(outcome)

    assert world.answer(call_id, ModelInferResponse).raw_output_contents
    assert world.is_open(again)
    counted = world.call(f"/{methods.INFERENCE_SERVICE}/ModelStatistics", ModelStatisticsRequest())
    (model,) = world.answer(counted, ModelStatisticsResponse).model_stats
    assert (model.inference_count, model.inference_stats.compute_infer.ns) == (1, 0)


def test_a_lost_device_costs_the_replica_and_no_request() -> None:
    world = World()
    broken, other = world.replica("a"), world.replica("b")
    waiting = broken.exchange()
    call_id = world.infer()
    last = broken.exchange(failure(broken.lease(waiting), BatchFailure.DEVICE_LOST))

    assert not world.answer(last, ExchangeResponse).HasField("lease")
    assert "its device failed" in world.failed(broken.life_line).message
    waiting = other.exchange()
    other.exchange(echo(other.lease(waiting)))
    world.answer(call_id, ModelInferResponse)


def test_a_replica_that_cannot_load_makes_a_loading_model_unavailable_with_its_words() -> None:
    world = World()
    replica = world.replica(ready=False)
    replica.beat(load_failed=replica_pb2.LoadFailed(message="model.onnx is no model"))

    status = world.failed(world.infer())
    assert status.code == Code.UNAVAILABLE
    assert "model.onnx is no model" in status.message
    assert not world.is_open(replica.life_line)


def test_a_replica_that_cannot_load_leaves_a_model_that_serves_serving() -> None:
    world = World()
    world.replica("a")
    second = world.replica("b", ready=False)
    second.beat(load_failed=replica_pb2.LoadFailed(message="no memory"))

    assert world.is_open(world.infer())


HOPELESS = replica_pb2.LoadFailed(message="it needs torch", hopeless=True)


def test_a_model_that_no_replica_can_load_wants_none_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    watcher = watch(world, 10)
    assert snapshots(world, watcher)[-1].models[0].wanted
    first, second = world.replica("a", ready=False), world.replica("b", ready=False)
    first.beat(load_failed=HOPELESS)
    second.beat(load_failed=HOPELESS)
    world.cancel(first.life_line)
    world.cancel(second.life_line)
    world.turn(after_s=0.1)

    last = snapshots(world, watcher)[-1]
    assert (last.models[0].wanted, last.models[0].state) == (False, control_pb2.MODEL_UNAVAILABLE)
    assert not last.replicas, "they left as they were told to, and count as no failed start"
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "it needs torch" in line]) == 1
    assert "it needs torch" in world.failed(world.infer()).message


def test_another_autoscaler_may_have_what_was_not_installed() -> None:
    world = World()
    watch(world, 10)
    world.replica("a", ready=False).beat(load_failed=HOPELESS)
    watch(world, 10)
    assert world.models.hopeless() == world.keys

    watcher = watch(world, 11)
    assert snapshots(world, watcher)[-1].models[0].wanted
    world.replica("b")

    assert world.is_open(world.infer())


def test_a_standby_that_says_it_is_ready_is_refused() -> None:
    world = World()
    world.replica()
    world.keys.insert(0, None)  # type: ignore[arg-type]
    standby = world.replica("s", ready=False)
    beat = standby.ready()

    assert world.failed(beat).code in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)


# --- the control plane -------------------------------------------------------------------------


def snapshots(world: World, call_id: int) -> list[control_pb2.Snapshot]:
    return [control_pb2.Snapshot.FromString(it) for it in world.front.sent[call_id]]


def watch(world: World, generation: int = 0, interval_s: float = 5.0) -> int:
    request = control_pb2.WatchRequest(interval_s=interval_s, autoscaler_generation=generation)
    return world.call(control("Watch"), request)


def test_a_watcher_gets_a_snapshot_at_once_on_change_and_by_interval() -> None:
    world = World()
    watcher = watch(world)
    assert snapshots(world, watcher)[0].models[0].state == control_pb2.MODEL_LOADING
    world.turn(after_s=0.1)
    told = len(snapshots(world, watcher))
    world.turn(after_s=0.1)
    assert len(snapshots(world, watcher)) == told

    world.replica()
    world.turn(after_s=0.1)

    last = snapshots(world, watcher)[-1]
    assert last.models[0].state == control_pb2.MODEL_READY
    assert [(it.id, it.state, it.pid) for it in last.replicas] == [("r", control_pb2.READY, 7)]
    told = len(snapshots(world, watcher))
    world.turn(after_s=5.0)
    assert len(snapshots(world, watcher)) == told + 1
    world.cancel(watcher)
    world.turn(after_s=5.0)
    assert len(snapshots(world, watcher)) == told + 1


def test_a_newer_autoscaler_takes_over_and_an_older_may_not_act() -> None:
    world = World()
    plain, old = watch(world), watch(world, 10)
    new = watch(world, 11)

    assert world.failed(old).code == Code.FAILED_PRECONDITION
    assert world.is_open(plain)
    assert world.is_open(new)
    assert world.failed(watch(world, 10)).code == Code.FAILED_PRECONDITION
    for name, request in (
        ("Announce", control_pb2.AnnounceRequest(autoscaler_generation=10)),
        ("ReportExit", control_pb2.ReportExitRequest(autoscaler_generation=10)),
        ("DrainReplica", control_pb2.DrainReplicaRequest(autoscaler_generation=10)),
        ("AssignModel", control_pb2.AssignModelRequest(autoscaler_generation=10)),
        ("ReportDecisions", control_pb2.ReportDecisionsRequest(autoscaler_generation=10)),
    ):
        status = world.failed(world.call(control(name), request))
        assert status.code == Code.FAILED_PRECONDITION
        assert "generation 10 was replaced by 11" in status.message
    world.answer(
        world.call(control("Announce"), control_pb2.AnnounceRequest(autoscaler_generation=11)),
        control_pb2.AnnounceResponse,
    )


def test_an_announcement_needs_an_id() -> None:
    world = World()
    request = control_pb2.AnnounceRequest(replicas=[control_pb2.Announcement()])

    assert world.failed(world.call(control("Announce"), request)).code == Code.INVALID_ARGUMENT


def test_a_drained_replica_finishes_and_leaves() -> None:
    world = World()
    replica = world.replica()
    waiting = replica.exchange()
    call_id = world.infer()
    lease = replica.lease(waiting)
    world.answer(
        world.call(control("DrainReplica"), control_pb2.DrainReplicaRequest(replica_id="r")),
        control_pb2.DrainReplicaResponse,
    )
    assert replica.commands()[-1].HasField("drain")

    last = replica.exchange(echo(lease))

    world.answer(call_id, ModelInferResponse)
    assert world.answer(last, ExchangeResponse).drain
    world.cancel(replica.life_line)
    assert world.scheduler.members.all() == []


@pytest.mark.parametrize("name", ["DrainReplica", "AssignModel"])
def test_an_unknown_replica_is_not_found_and_the_known_ones_are_named(name: str) -> None:
    world = World()
    world.replica("known")
    kind = {"DrainReplica": control_pb2.DrainReplicaRequest, "AssignModel": _assign_model}[name]
    status = world.failed(world.call(control(name), kind(replica_id="x")))  # type: ignore[operator]

    assert status.code == Code.NOT_FOUND
    assert "there are: known" in status.message


def _assign_model(replica_id: str) -> control_pb2.AssignModelRequest:
    return control_pb2.AssignModelRequest(
        replica_id=replica_id, model_name="m", model_version=1, generation="a"
    )


def test_a_standby_is_assigned_a_model_once() -> None:
    world = World()
    world.keys.insert(0, None)  # type: ignore[arg-type]
    standby = world.replica("s", ready=False)
    world.answer(
        world.call(control("AssignModel"), _assign_model("s")), control_pb2.AssignModelResponse
    )

    assert standby.commands()[-1].assign.model_name == "m"
    status = world.failed(world.call(control("AssignModel"), _assign_model("s")))
    assert (status.code, "STANDBY" in status.message) == (Code.INVALID_ARGUMENT, True)


def report(world: World, replica_id: str, **fields: object) -> None:
    request = control_pb2.ReportExitRequest(replica_id=replica_id, **fields)  # type: ignore[arg-type]
    world.answer(world.call(control("ReportExit"), request), control_pb2.ReportExitResponse)


def test_a_model_given_up_fails_what_waits_for_it_with_the_reason() -> None:
    world = World()
    replica = world.replica()
    call_id = world.infer()
    world.cancel(replica.life_line)
    report(world, "r", cause="exit code 1", failed_starts=5, give_up_reason="5 starts failed: boom")

    status = world.failed(call_id)
    assert (status.code, "5 starts failed: boom" in status.message) == (Code.UNAVAILABLE, True)
    assert "5 starts failed: boom" in world.failed(world.infer()).message
    assert world.scheduler.members.all() == []


def test_giving_up_one_replica_leaves_a_model_that_another_serves_serving() -> None:
    world = World()
    serves = world.replica("a")
    world.replica("b", ready=False)
    waiting = serves.exchange()
    report(world, "b", cause="exit code 1", failed_starts=5, give_up_reason="boom")
    call_id = world.infer()
    serves.exchange(echo(serves.lease(waiting)))

    world.answer(call_id, ModelInferResponse)
    assert world.models.entries[world.keys[0]].state is ModelState.READY


def test_an_exit_returns_the_leases_of_a_replica_whose_life_line_hangs() -> None:
    world = World()
    dead, other = world.replica("a"), world.replica("b")
    dead.exchange()
    call_id = world.infer()
    waiting = other.exchange()
    report(world, "a", cause="killed by SIGKILL")
    other.exchange(echo(other.lease(waiting)))

    world.answer(call_id, ModelInferResponse)
    assert [it.replica_id for it in world.scheduler.members.all()] == ["b"]


def test_an_exit_of_a_stranger_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    report(World(), "x", cause="exit code 3", failed_starts=1, log_tail=["last words"])

    assert "last words" in caplog.text


# --- stop, and time ----------------------------------------------------------------------------


def test_a_stopping_server_admits_nothing_and_finishes_what_it_has() -> None:
    world = World()
    replica = world.replica()
    health = world.call("/grpc.health.v1.Health/Watch")
    watcher = watch(world)
    waiting = replica.exchange()
    call_id = world.infer()
    world.dispatcher.announce_stop()

    status = world.failed(world.infer())
    assert (status.code, "stopping" in status.message) == (Code.UNAVAILABLE, True)
    assert world.services.inference.open_calls == 1
    replica.exchange(echo(replica.lease(waiting)))
    world.answer(call_id, ModelInferResponse)
    assert world.services.inference.open_calls == 0
    assert snapshots(world, watcher)[-1].stopping
    assert len(world.front.sent[health]) == 2


def test_the_loop_waits_until_something_is_due_and_not_longer() -> None:
    world = World()
    world.turn()
    world.turn()

    assert 0.0 < world.front.timeouts_s[-1] <= 0.05


def test_a_replaced_generation_leaves_when_its_replicas_have_left() -> None:
    world = World()
    old = world.replica("old")
    world.models.load(make_found(versions=[(1, "b")]))
    (world.keys[0],) = [key for key in world.models.entries if key.generation == "b"]
    new = world.replica("new")
    waiting = new.exchange()
    call_id = world.infer()
    new.exchange(echo(new.lease(waiting)))
    world.answer(call_id, ModelInferResponse)
    world.call(control("DrainReplica"), control_pb2.DrainReplicaRequest(replica_id="old"))
    world.cancel(old.life_line)
    world.turn(after_s=0.1)

    assert list(world.models.entries) == [ModelKey("m", 1, "b")]
    assert list(world.scheduler.models) == [ModelKey("m", 1, "b")]


def test_work_that_was_posted_runs_on_the_loop() -> None:
    world = World()
    ran: list[int] = []
    add: Callable[[], None] = lambda: ran.append(1)  # noqa: E731
    world.mailbox.post(add)
    assert (ran, world.front.wakes) == ([], 1)
    world.turn()

    assert ran == [1]


def test_posted_work_that_breaks_down_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    world = World()

    def break_down() -> None:
        raise ZeroDivisionError("inside")

    ran: list[int] = []
    world.mailbox.post(break_down)
    world.mailbox.post(lambda: ran.append(1))
    world.turn()

    assert ran == [1]
    assert "ZeroDivisionError" in caplog.text


def test_more_events_than_a_turn_takes_are_taken_by_the_next() -> None:
    world = World()
    calls = [world.post(LIVE) for _ in range(300)]
    world.turn()
    assert sum(world.is_open(call_id) for call_id in calls) == 44
    world.turn()

    assert not any(world.is_open(call_id) for call_id in calls)


def test_calls_and_cancels_in_one_turn_leave_nothing_behind() -> None:
    world = World()
    world.replica()
    for at in range(100, 120):
        world.front.events += [
            Call(at, INFER, make_request(), (), "", None),
            Cancel(at),
        ]
    world.turn()

    assert world.scheduler.is_idle(world.keys[0])
    assert world.services.inference.open_calls == 0


def scale(world: World, **fields: object) -> int:
    request = control_pb2.ScaleModelRequest(**fields)  # type: ignore[arg-type]
    return world.call(control("ScaleModel"), request)


def test_a_pin_is_pushed_to_watchers_at_once_and_ends_by_the_clock() -> None:
    world = World()
    call_id = watch(world)
    before = len(snapshots(world, call_id))

    world.answer(
        scale(world, model_name="m", replicas=3, duration_s=60.0), control_pb2.ScaleModelResponse
    )
    world.turn(after_s=0.1)

    told = snapshots(world, call_id)
    assert len(told) > before
    assert told[-1].models[0].pin.replicas == 3
    world.turn(after_s=61.0)
    world.turn(after_s=0.1)
    assert not snapshots(world, call_id)[-1].models[0].HasField("pin")


def test_a_model_that_is_not_there_cannot_be_pinned() -> None:
    world = World()
    status = world.failed(scale(world, model_name="x", replicas=1, duration_s=1.0))
    assert status.code == Code.NOT_FOUND
    assert "there are: m" in status.message
    status = world.failed(scale(world, model_name="m", model_version=7, duration_s=1.0))
    assert status.code == Code.NOT_FOUND
    assert "version 7" in status.message


def at_zero(world: World) -> None:
    """Its only replica is drained and leaves."""
    replica = world.replica()
    world.answer(
        world.call(control("DrainReplica"), control_pb2.DrainReplicaRequest(replica_id="r")),
        control_pb2.DrainReplicaResponse,
    )
    world.answer(replica.exchange(), ExchangeResponse)
    world.cancel(replica.life_line)
    world.turn(after_s=0.1)


def test_the_first_arrival_at_a_model_without_replicas_is_told_at_once() -> None:
    world = World()
    call_id = watch(world, generation=1)
    at_zero(world)
    before = len(snapshots(world, call_id))

    waiting = world.infer()
    world.turn(after_s=0.06)

    told = snapshots(world, call_id)
    assert len(told) == before + 1
    assert (told[-1].models[0].queued_requests, len(told[-1].replicas)) == (1, 0)
    assert world.is_open(waiting)


def test_at_zero_without_an_autoscaler_calls_fail_after_a_grace_and_an_autoscaler_mends_it() -> (
    None
):
    world = World()
    autoscaler = watch(world, generation=1)
    at_zero(world)
    world.turn(after_s=GRACE_S + 1.0)
    waiting = world.infer()
    world.cancel(autoscaler)
    world.turn(after_s=0.1)
    world.turn(after_s=GRACE_S - 1.0)
    assert world.is_open(waiting)

    world.turn(after_s=1.1)
    for call_id in (waiting, world.infer()):
        status = world.failed(call_id)
        assert status.code == Code.UNAVAILABLE
        assert "no autoscaler is connected" in status.message

    watcher = watch(world, generation=2)
    assert snapshots(world, watcher)[0].models[0].state == control_pb2.MODEL_READY
    waiting = world.infer()
    world.turn(after_s=0.1)
    assert world.is_open(waiting)


def test_at_zero_calls_fail_after_a_grace_while_the_autoscaler_may_start_nothing() -> None:
    world = World()
    watch(world, generation=1)
    at_zero(world)

    def decide(limit: str) -> None:
        request = control_pb2.ReportDecisionsRequest(autoscaler_generation=1)
        request.decisions.add(
            model_name=world.keys[0].name,
            model_version=world.keys[0].version,
            generation=world.keys[0].generation,
            decision=control_pb2.Decision(desired=0, reason="because", limited_by=limit),
        )
        world.answer(
            world.call(control("ReportDecisions"), request), control_pb2.ReportDecisionsResponse
        )

    decide("max: 0")
    waiting = world.infer()
    world.turn(after_s=0.1)
    world.turn(after_s=GRACE_S - 1.0)
    assert world.is_open(waiting)
    world.turn(after_s=1.1)
    for call_id in (waiting, world.infer()):
        status = world.failed(call_id)
        assert status.code == Code.UNAVAILABLE
        assert "its autoscaler may not start one: max: 0" in status.message

    decide("")
    world.turn(after_s=0.1)
    waiting = world.infer()
    world.turn(after_s=0.1)
    assert world.is_open(waiting)


def test_decisions_of_nobody_are_refused() -> None:
    world = World()
    status = world.failed(
        world.call(control("ReportDecisions"), control_pb2.ReportDecisionsRequest())
    )
    assert status.code == Code.INVALID_ARGUMENT
