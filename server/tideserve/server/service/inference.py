"""ModelInfer and ModelStreamInfer: a message becomes a request of the core, and the core's
word on it an answer."""

from collections import deque
from math import inf
from typing import Final

from tideserve.server.batch import BatchOutputs
from tideserve.server.core.actions import (
    Action,
    Complete,
    Expire,
    Fail,
    FailureCause,
    Rejection,
    RejectReason,
)
from tideserve.server.core.request import Request
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.errors import (
    ExpiredError,
    InvalidRequestError,
    ModelFailedError,
    QueueFullError,
    TideserveError,
    UnavailableError,
    code_of,
)
from tideserve.server.front import Call, Front, StreamMessage
from tideserve.server.infer_inputs import Content, InferInputs
from tideserve.server.models import ModelEntry, ModelTable
from tideserve.server.parts import OWN_AFTER_S, OWN_BYTES, Parts, own
from tideserve.server.plans import PlanCache
from tideserve.server.service.messages import parse, sentence_of, status_of
from tideserve.server.service.streams import Streams, StreamSlot
from tideserve.server.shared_regions import SharedRegions
from tideserve.server.wire import Buffer, embedded
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from tideserve.v1.metadata import STREAM_STATUS_PARAMETER

# Answers up to this size leave together, once the last one of their batch is made: those of a
# connection then share system calls (of 52 us of CPU a request that is 4). Larger ones leave while
# they are in the cache.
SMALL_ANSWER_BYTES: Final = 16_384
# A front's clock for a call began earlier than ours.
DEADLINE_SLACK_S: Final = 0.02


class PendingRequest(Request):
    """A request with the call that waits for it. `answer`: its place in its stream; None for a
    unary call."""

    __slots__ = ("answer", "call_id", "client_id", "entry", "inputs")

    def __init__(
        self,
        request_id: int,
        call_id: int,
        entry: ModelEntry,
        inputs: InferInputs,
        client_id: str,
        answer: StreamSlot | None,
        arrived_s: float,
        deadline_s: float,
    ) -> None:
        plan = inputs.plan
        super().__init__(
            request_id,
            plan.rows,
            inputs.payload_bytes,
            plan.signature,
            arrived_s,
            plan.priority,
            deadline_s,
            plan.timeout_s,
            plan.row_cost,
        )
        self.call_id = call_id
        self.entry = entry
        self.inputs = inputs
        self.client_id = client_id
        self.answer = answer


class InferenceService:
    """Owns the client calls that wait for an answer, unary ones and streams."""

    def __init__(
        self,
        models: ModelTable,
        scheduler: Scheduler,
        front: Front,
        regions: SharedRegions | None = None,
    ) -> None:
        self._plans = PlanCache(models, regions)
        self._scheduler = scheduler
        self._front = front
        self._unary: dict[int, PendingRequest] = {}
        self._streams = Streams(front)
        self._requests = 0
        # When requests in parts came, until they left or let go of what was read with them.
        self._in_parts: deque[tuple[float, int]] = deque()
        self.stopping = False

    @property
    def requests(self) -> int:
        """That came for a model, since the start."""
        return self._requests

    @property
    def open_calls(self) -> int:
        """Calls without their answer."""
        return len(self._unary) + self._streams.waiting

    # --- calls in -------------------------------------------------------------------------

    def on_infer(self, call: Call, now_s: float) -> None:
        """A ModelInfer came. Raises what the caller is to be told."""
        deadline_s = inf if call.time_left_s is None else now_s + call.time_left_s
        parts = call.parts
        payload = call.payload if parts is None else parts
        self._unary[call.call_id] = self._admit(payload, call.call_id, deadline_s, None, now_s)
        if parts is not None:
            self._in_parts.append((now_s, call.call_id))

    def on_stream(self, call: Call, now_s: float) -> None:
        """A ModelStreamInfer began."""
        deadline_s = inf if call.time_left_s is None else now_s + call.time_left_s
        self._streams.begin(call.call_id, deadline_s)

    def on_stream_message(self, event: StreamMessage, now_s: float) -> None:
        """One more request of a stream; what is wrong with it is answered in its place."""
        stream = self._streams.of(event.call_id)
        if stream is None:
            return
        slot = stream.place()
        try:
            stream.check_kept()
            slot.request = self._admit(event.payload, event.call_id, stream.deadline_s, slot, now_s)
        except TideserveError as error:
            payload = _stream_error(error, *_names(event.payload))
            self._streams.fill(event.call_id, slot, payload)

    def on_half_close(self, call_id: int) -> None:
        """The caller of a stream sends no more: it ends with its last answer."""
        self._streams.half_close(call_id)

    def on_cancel(self, call_id: int, now_s: float) -> list[Action]:
        """The caller is gone."""
        unary = self._unary.pop(call_id, None)
        if unary is not None:
            return self._cancel(unary, now_s)
        actions: list[Action] = []
        for request in self._streams.drop(call_id):
            assert isinstance(request, PendingRequest)
            actions += self._cancel(request, now_s)
        return actions

    def on_tick(self, now_s: float, most_bytes: int = OWN_BYTES) -> None:
        """Requests in parts that have waited let go of what was read with them; after `most_bytes`
        the others are left to the next tick."""
        waiting, copied_bytes = self._in_parts, 0
        while waiting and now_s - waiting[0][0] >= OWN_AFTER_S and copied_bytes < most_bytes:
            _, call_id = waiting.popleft()
            request = self._unary.get(call_id)
            if request is not None:
                request.inputs = _owned(request.inputs)
                copied_bytes += request.inputs.payload_bytes

    # --- the core's word ------------------------------------------------------------------

    def on_complete(self, action: Complete, now_s: float) -> None:
        """A batch came back: each caller gets its rows."""
        outputs = action.lease.outputs
        assert isinstance(outputs, BatchOutputs)
        if not action.answers:
            return
        front, unary = self._front, self._unary
        are_small = outputs.size_bytes <= SMALL_ANSWER_BYTES
        arrivals_s = []
        small: list[tuple[int, bytes]] = []
        for request, first_row in action.answers:
            assert isinstance(request, PendingRequest)
            inputs = request.inputs
            if inputs.targets or inputs.spare is not None:
                if self._answer_shared(request, outputs, first_row, now_s):
                    arrivals_s.append(request.arrived_s)
                continue
            arrivals_s.append(request.arrived_s)
            plan = inputs.plan
            slot = request.answer
            if slot is None:
                pieces = outputs.pieces(plan, request.client_id, first_row, final_flag=False)
                unary.pop(request.call_id, None)
                if are_small or sum(map(len, pieces)) <= SMALL_ANSWER_BYTES:
                    small.append((request.call_id, b"".join(pieces)))
                else:
                    front.respond_parts(request.call_id, pieces)
            else:
                payload = outputs.encode(plan, request.client_id, first_row, final_flag=True)
                self._answer_slot(request, b"".join(embedded(_INFER_RESPONSE, [payload])))
        for call_id, payload in small:
            front.respond(call_id, payload)
        first, _ = action.answers[0]
        assert isinstance(first, PendingRequest)
        first.entry.stats.on_answers(now_s, action.lease.given_s, arrivals_s)

    def on_expire(self, action: Expire, now_s: float) -> None:
        """A deadline passed in the queue."""
        request = action.request
        assert isinstance(request, PendingRequest)
        request.entry.stats.expired += 1
        request.entry.stats.fail.add(now_s - request.arrived_s)
        waited_s = now_s - request.arrived_s
        why = (
            "can no longer be answered within the model's latency target (tideserve.on_late: drop)"
            if action.late
            else "its deadline or timeout passed before a replica took it"
        )
        self._answer_error(
            request,
            ExpiredError(
                f"model '{request.entry.key.name}': the request waited {waited_s:.3f} s in the "
                f"queue and {why}"
            ),
        )

    def on_fail(self, action: Fail, now_s: float) -> None:
        """An admitted request ends with an error."""
        request = action.request
        assert isinstance(request, PendingRequest)
        request.entry.stats.on_failure(action.cause.value, now_s - request.arrived_s)
        self._answer_error(request, _failure(request.entry, action.cause, action.detail))

    # --- inside ---------------------------------------------------------------------------

    def _admit(
        self,
        payload: bytes | Parts,
        call_id: int,
        deadline_s: float,
        slot: StreamSlot | None,
        now_s: float,
    ) -> PendingRequest:
        if self.stopping:
            raise UnavailableError("the server is stopping: send the request elsewhere")
        entry, inputs, client_id = self._plans.read(payload)
        stats = entry.stats
        stats.arrivals += 1
        self._requests += 1
        request = PendingRequest(
            self._requests, call_id, entry, inputs, client_id, slot, now_s, deadline_s
        )
        rejection = self._scheduler.on_arrival(entry.key, request, now_s)
        if rejection is not None:
            raise self._rejected(entry, rejection)
        stats.admitted += 1
        return request

    def _rejected(self, entry: ModelEntry, rejection: Rejection) -> TideserveError:
        if rejection.reason is RejectReason.EXPIRED:
            entry.stats.expired += 1
            entry.stats.fail.add(0.0)
            return ExpiredError(
                f"model '{entry.key.name}': the deadline had passed when the request came"
            )
        entry.stats.on_rejection(rejection.reason.value)
        pushback_ms = max(1, int(rejection.retry_after_s * 1000))
        if rejection.reason is RejectReason.HOPELESS:
            return QueueFullError(
                f"model '{entry.key.name}': no replica is free early enough to answer in time; "
                f"try again in {rejection.retry_after_s:.2f} s",
                pushback_ms=pushback_ms,
            )
        what = {
            RejectReason.QUEUE_REQUESTS: "requests",
            RejectReason.QUEUE_ROWS: "rows",
            RejectReason.QUEUE_BYTES: "bytes",
            RejectReason.PRIORITY_QUEUE: "requests of this priority",
        }[rejection.reason]
        return QueueFullError(
            f"model '{entry.key.name}': the queue is full, expected at most {rejection.limit} "
            f"{what} to wait; try again in {rejection.retry_after_s:.2f} s",
            pushback_ms=pushback_ms,
        )

    def _cancel(self, request: PendingRequest, now_s: float) -> list[Action]:
        """A deadline that passes ends the call at the front, which may be before the core is
        asked, and says no more than a caller who hangs up."""
        if not request.done:
            expired = now_s >= request.deadline_s - DEADLINE_SLACK_S
            request.entry.stats.on_gone(now_s - request.arrived_s, expired=expired)
        return self._scheduler.on_cancel(request.entry.key, request)

    def _answer_shared(
        self, request: PendingRequest, outputs: BatchOutputs, first_row: int, now_s: float
    ) -> bool:
        """Answers a request with outputs in shared memory. False: they could not be written, which
        fails this one of the batch alone."""
        streams = request.answer is not None
        try:
            payload = outputs.encode_shared(
                request.inputs, request.client_id, first_row, final_flag=streams
            )
        except InvalidRequestError as error:
            cause = FailureCause.SHARED_MEMORY.value
            request.entry.stats.on_failure(cause, now_s - request.arrived_s)
            self._answer_error(request, error)
            return False
        if streams:
            self._answer_slot(request, b"".join(embedded(_INFER_RESPONSE, [payload])))
        else:
            self._unary.pop(request.call_id, None)
            self._front.respond(request.call_id, payload)
        return True

    def _answer_error(self, request: PendingRequest, error: TideserveError) -> None:
        if request.answer is None:
            self._unary.pop(request.call_id, None)
            self._front.fail(request.call_id, status_of(error))
            return
        name = request.entry.key.name
        self._answer_slot(request, _stream_error(error, name, request.client_id))

    def _answer_slot(self, request: PendingRequest, payload: bytes) -> None:
        assert request.answer is not None, "a unary call has no place in a stream"
        self._streams.fill(request.call_id, request.answer, payload)


_INFER_RESPONSE: Final = ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER


def _owned(inputs: InferInputs) -> InferInputs:
    data: list[Content] = []
    for content in inputs.data:
        if isinstance(content, Parts):
            content.own()
            data.append(content)
        elif isinstance(content, memoryview):
            pieces: list[Buffer] = [content]
            own(pieces)
            data += pieces
        else:
            data.append(content)
    return inputs._replace(data=tuple(data))


def _stream_error(error: TideserveError, model_name: str, client_id: str) -> bytes:
    response = ModelStreamInferResponse(error_message=sentence_of(error))
    response.infer_response.parameters[STREAM_STATUS_PARAMETER].int64_param = code_of(error)
    response.infer_response.model_name = model_name
    response.infer_response.id = client_id
    return response.SerializeToString()


def _names(payload: bytes) -> tuple[str, str]:
    """Model and request id of a refused request, as far as it can be read."""
    try:
        message = parse(ModelInferRequest, payload)
    except InvalidRequestError:
        return "", ""
    return message.model_name, message.id


def _failure(entry: ModelEntry, cause: FailureCause, detail: str) -> TideserveError:
    """The words for a failure."""
    model = f"model '{entry.key.name}'"
    match cause:
        case FailureCause.MODEL_ERROR:
            return ModelFailedError(f"{model} raised: {detail}")
        case FailureCause.BAD_OUTPUT:
            return ModelFailedError(f"{model} gave outputs that do not fit: {detail}")
        case FailureCause.OUT_OF_MEMORY:
            return ModelFailedError(f"{model} cannot compute this request, even alone: {detail}")
        case FailureCause.OUTPUT_TOO_LARGE:
            return ModelFailedError(
                f"{model} gives an answer that is too large to send: {detail}; send fewer rows, "
                "ask for fewer outputs, or raise the limit"
            )
        case FailureCause.KILLS_REPLICAS:
            return ModelFailedError(
                f"{model}: two replicas died while this request was all they ran; it is not "
                "tried again"
            )
        case FailureCause.NOT_RETRYABLE:
            return UnavailableError(
                f"{model}: the replica that ran the request was lost, and the model is not "
                "marked retryable"
            )
        case FailureCause.UNAVAILABLE:
            return UnavailableError(f"{model} cannot be served: {detail}")
        case FailureCause.SHARED_MEMORY:
            return InvalidRequestError(f"{model}: {detail}")
