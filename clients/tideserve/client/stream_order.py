"""Which result on a stream belongs to which request, in the order they were sent: pure."""

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from tideserve.client.errors import (
    InvalidArgument,
    InvalidResponse,
    ResourceExhausted,
    TideserveClientError,
)
from tideserve.client.inference import outputs_of, without_segment
from tideserve.client.segments import Segment
from tideserve.client.shared_call import View, is_unknown
from tideserve.client.statuses import STREAM_CODE_PARAMETER, stream_error_of
from tideserve.v1.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)

if TYPE_CHECKING:
    from tideserve.client.tensors import Array


@dataclass(frozen=True, slots=True)
class StreamResult:
    """One answered request of a stream. `version` is the model version that answered."""

    request_id: str
    model: str
    version: str
    outputs: "dict[str, Array]"


Reply = StreamResult | TideserveClientError


@dataclass(slots=True, eq=False)
class SentRequest:
    """One request of a stream, from `send` to its answer."""

    model: str
    view: View = outputs_of
    segment: Segment | None = None
    """Where its large tensors are: the table's from when it has an id, the sender's before."""
    request: ModelInferRequest | None = None
    """As it was sent, where it has a segment."""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """What an answer leads to."""

    leaving: list[Reply] = field(default_factory=list)
    """The replies that may leave now, oldest first."""
    segment: Segment | None = None
    """Nobody's now."""
    again: ModelInferRequest | None = None
    """The server does not know `segment`: to be sent, with the tensors in it."""


class StreamOrder:
    """Owns the table of requests sent and not yet answered, with their segments, and counts those
    not yet read.

    Requests are told apart by their ids, so replies may come in any order and leave in the
    order of the requests. A reply without an id is the oldest request's.
    """

    def __init__(self, max_outstanding: int) -> None:
        self._max_outstanding = max_outstanding
        self._sent: dict[str, SentRequest] = {}  # by id, oldest first
        self._waiting: dict[str, None] = {}  # those whose answer has not come, as they were sent
        self._early: dict[str, Reply] = {}  # answered before an older one
        self._numbers = count(1)
        self._unread = 0
        self._segments = 0

    @property
    def has_segments(self) -> bool:
        """Whether a request has one, and so may have to be sent again."""
        return self._segments > 0

    @property
    def unanswered(self) -> int:
        """Requests whose replies have not come, or wait for an older one's."""
        return len(self._sent)

    @property
    def unread(self) -> int:
        """Requests whose replies the caller has not read."""
        return self._unread

    def read(self) -> None:
        """The caller has read a reply."""
        self._unread -= 1

    def sent(self, request_id: str, sent: SentRequest) -> None:
        """Enters a request and gives it its id, a new one where `request_id` is empty.

        Raises `InvalidArgument` for an id that is in use, `ResourceExhausted` when
        max_outstanding requests wait for their results to be read.
        """
        if self._unread >= self._max_outstanding:
            raise ResourceExhausted(
                f"{self._unread} requests wait for their results to be read, max_outstanding is "
                f"{self._max_outstanding}: receive some first",
                model=sent.model,
            )
        if request_id in self._sent:
            raise InvalidArgument(
                f"request_id {request_id!r} is in use on this stream: give each request its own",
                model=sent.model,
                request_id=request_id,
            )
        while not request_id:
            candidate = f"stream-{next(self._numbers)}"
            request_id = "" if candidate in self._sent else candidate
        sent.request_id = request_id
        self._sent[request_id] = sent
        self._waiting[request_id] = None
        self._segments += sent.segment is not None
        self._unread += 1

    def answered(self, response: ModelStreamInferResponse) -> Answered:
        """Raises `InvalidResponse` for a response that belongs to no request: the stream is out
        of step and cannot go on."""
        infer = response.infer_response
        request_id = infer.id or next(iter(self._waiting), "")
        if request_id not in self._waiting:
            raise InvalidResponse(
                f"the stream answered request {request_id!r}, which is not waiting for an answer"
            )
        del self._waiting[request_id]
        sent = self._sent[request_id]
        reply = _reply(sent, response, infer)
        segment, again = sent.segment, None
        if (
            isinstance(reply, TideserveClientError)
            and segment is not None
            and sent.request is not None
        ):
            again = without_segment(sent.request, segment) if is_unknown(reply, segment) else None
        sent.segment = sent.request = None
        self._segments -= segment is not None
        if again is not None:
            self._waiting[request_id] = None
            return Answered(segment=segment, again=again)
        self._early[request_id] = reply
        leaving: list[Reply] = []
        while self._sent and (oldest := next(iter(self._sent))) in self._early:
            del self._sent[oldest]
            leaving.append(self._early.pop(oldest))
        return Answered(leaving, segment)

    def ended(self) -> list[Segment]:
        """No more answers come; the segments that the server may still write into."""
        segments = [it.segment for it in self._sent.values() if it.segment is not None]
        for sent in self._sent.values():
            sent.segment = sent.request = None
        self._segments = 0
        return segments


def _reply(
    sent: SentRequest, response: ModelStreamInferResponse, infer: ModelInferResponse
) -> Reply:
    model, request_id = sent.model, sent.request_id
    if response.error_message:
        code = infer.parameters.get(STREAM_CODE_PARAMETER)
        return stream_error_of(
            response.error_message,
            code.int64_param if code is not None else None,
            model=model,
            request_id=request_id,
        )
    try:
        outputs = sent.view(infer, sent.segment)
    except InvalidResponse as error:
        return InvalidResponse(error.message, model=model, request_id=request_id)
    return StreamResult(request_id, model, infer.model_version, outputs)
