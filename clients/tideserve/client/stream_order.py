"""Which result on a stream belongs to which request, in the order they were sent: pure."""

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from tideserve.client.errors import (
    InvalidArgument,
    InvalidResponse,
    ResourceExhausted,
    TideserveClientError,
)
from tideserve.client.inference import outputs_of
from tideserve.client.statuses import STREAM_CODE_PARAMETER, stream_error_of
from tideserve.v1.inference_pb2 import ModelInferResponse, ModelStreamInferResponse

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


class StreamOrder:
    """Owns the table of requests sent and not yet answered, and counts those not yet read.

    Requests are told apart by their ids, so replies may come in any order and leave in the
    order of the requests. A reply without an id is the oldest request's.
    """

    def __init__(self, max_outstanding: int) -> None:
        self._max_outstanding = max_outstanding
        self._sent: dict[str, str] = {}  # id: model, oldest first
        self._early: dict[str, Reply] = {}  # answered before an older one
        self._numbers = count(1)
        self._unread = 0

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

    def sent(self, request_id: str, model: str) -> str:
        """Enters a request; its id, a new one where `request_id` is empty.

        Raises `InvalidArgument` for an id that is in use, `ResourceExhausted` when
        max_outstanding requests wait for their results to be read.
        """
        if self._unread >= self._max_outstanding:
            raise ResourceExhausted(
                f"{self._unread} requests wait for their results to be read, max_outstanding is "
                f"{self._max_outstanding}: receive some first",
                model=model,
            )
        if request_id in self._sent:
            raise InvalidArgument(
                f"request_id {request_id!r} is in use on this stream: give each request its own",
                model=model,
                request_id=request_id,
            )
        while not request_id:
            candidate = f"stream-{next(self._numbers)}"
            request_id = "" if candidate in self._sent else candidate
        self._sent[request_id] = model
        self._unread += 1
        return request_id

    def answered(self, response: ModelStreamInferResponse) -> list[Reply]:
        """The replies that may leave now, oldest first.

        Raises `InvalidResponse` for a response that belongs to no request: the stream is out
        of step and cannot go on.
        """
        infer = response.infer_response
        request_id = infer.id or next((sent for sent in self._sent if sent not in self._early), "")
        if request_id not in self._sent or request_id in self._early:
            raise InvalidResponse(
                f"the stream answered request {request_id!r}, which is not waiting for an answer"
            )
        self._early[request_id] = _reply(request_id, self._sent[request_id], response, infer)
        leaving: list[Reply] = []
        for oldest in list(self._sent):
            if oldest not in self._early:
                break
            del self._sent[oldest]
            leaving.append(self._early.pop(oldest))
        return leaving


def _reply(
    request_id: str, model: str, response: ModelStreamInferResponse, infer: ModelInferResponse
) -> Reply:
    if response.error_message:
        code = infer.parameters.get(STREAM_CODE_PARAMETER)
        return stream_error_of(
            response.error_message,
            code.int64_param if code is not None else None,
            model=model,
            request_id=request_id,
        )
    try:
        outputs = outputs_of(infer)
    except InvalidResponse as error:
        return InvalidResponse(error.message, model=model, request_id=request_id)
    return StreamResult(request_id, model, infer.model_version, outputs)
