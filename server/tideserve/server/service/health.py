"""grpc.health.v1: is the server, or a model, serving (https://grpc.io/docs/guides/health-checking/)."""

from collections.abc import Callable, Iterator
from typing import Final

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from tideserve.server.errors import NotFoundError, QueueFullError
from tideserve.server.models import ModelTable
from tideserve.server.service.messages import parse
from tideserve.v1.methods import INFERENCE_SERVICE, Kind, Method, methods_of

_SERVICE: Final = "grpc.health.v1.Health"
_METHODS: Final[tuple[Method, ...]] = tuple(
    method
    for method in methods_of(health_pb2.DESCRIPTOR.services_by_name["Health"], _SERVICE)
    if method.name in ("Check", "Watch")
)
HEALTH_METHODS: Final[list[tuple[str, Kind]]] = [(method.path, method.kind) for method in _METHODS]
CHECK_PATH: Final = f"/{_SERVICE}/Check"
WATCH_PATH: Final = f"/{_SERVICE}/Watch"
MAX_WATCHERS: Final = 1024

SERVING: Final[int] = HealthCheckResponse.SERVING
NOT_SERVING: Final[int] = HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN: Final[int] = HealthCheckResponse.SERVICE_UNKNOWN


class HealthService:
    """Owns the watchers and the status each was last told.

    Services are "" and the protocol's own name for the whole server, "MODEL" for a model and
    "MODEL/VERSION" for one version of it.
    """

    def __init__(self, models: ModelTable, is_serving: Callable[[], bool]) -> None:
        self._models = models
        self._is_serving = is_serving
        self._watchers: dict[int, tuple[str, int]] = {}

    def answers(self) -> Iterator[tuple[str, type[Message], Callable[[Message], Message]]]:
        """The unary method."""
        yield CHECK_PATH, HealthCheckRequest, self._check

    def watch(self, call_id: int, payload: bytes) -> HealthCheckResponse:
        """A watcher comes: the status now; later ones come from `changed`."""
        request = parse(HealthCheckRequest, payload)
        if len(self._watchers) >= MAX_WATCHERS:
            raise QueueFullError(f"expected at most {MAX_WATCHERS} health watchers at a time")
        status = self._status(request.service)
        self._watchers[call_id] = (request.service, status)
        return HealthCheckResponse(status=status)

    def changed(self) -> list[tuple[int, HealthCheckResponse]]:
        """Models or the server changed: what each watcher has to be told."""
        news = []
        for call_id, (service, told) in self._watchers.items():
            status = self._status(service)
            if status != told:
                self._watchers[call_id] = (service, status)
                news.append((call_id, HealthCheckResponse(status=status)))
        return news

    def cancel(self, call_id: int) -> None:
        """A watcher is gone."""
        self._watchers.pop(call_id, None)

    def _check(self, message: Message) -> Message:
        assert isinstance(message, HealthCheckRequest)
        status = self._status(message.service)
        if status == SERVICE_UNKNOWN:
            known = ", ".join(["''", INFERENCE_SERVICE, *self._models.names()])
            raise NotFoundError(f"unknown service '{message.service}'; there are: {known}")
        answer: Message = HealthCheckResponse(status=status)
        return answer

    def _status(self, service: str) -> int:
        if service in ("", INFERENCE_SERVICE):
            return SERVING if self._is_serving() else NOT_SERVING
        name, _, version = service.partition("/")
        if self._models.is_bindable(name, version):
            return SERVING if self._is_serving() else NOT_SERVING
        return NOT_SERVING if self._models.is_known(name, version) else SERVICE_UNKNOWN
