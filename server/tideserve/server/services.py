"""The services of one server, side by side."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from google.protobuf.message import Message

from tideserve.server.service.control import ControlService
from tideserve.server.service.health import HealthService
from tideserve.server.service.inference import InferenceService
from tideserve.server.service.metadata import MetadataService
from tideserve.server.service.reflection import ReflectionService
from tideserve.server.service.replicas import ReplicaService
from tideserve.server.service.repository import RepositoryService
from tideserve.server.service.shared_memory import SharedMemoryService

Answer = Callable[[Message], Message]


@dataclass(frozen=True, slots=True)
class Services:
    """What the dispatcher hands calls and decisions to."""

    inference: InferenceService
    replicas: ReplicaService
    control: ControlService
    repository: RepositoryService
    metadata: MetadataService
    health: HealthService
    reflection: ReflectionService
    shared_memory: SharedMemoryService

    def unary_answers(self) -> Iterator[tuple[str, type[Message], Answer]]:
        """The calls that are answered at once: path, request type, answer."""
        yield from self.metadata.answers()
        yield from self.health.answers()
