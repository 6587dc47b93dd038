"""What a replica's main thread hears from its other threads."""

from dataclasses import dataclass
from enum import Enum

from tideserve.replica.exchanger import End
from tideserve.replica.loading import Loaded, NotLoaded
from tideserve.v1.replica_pb2 import Command


class LifeLineEnd(Enum):
    """How a life line ended: broken, refused as over, or never to be had."""

    BROKEN = "broken"
    REFUSED = "refused"
    HOPELESS = "hopeless"


@dataclass(frozen=True, slots=True)
class Commanded:
    """The life line of this life brought a command."""

    life: int
    command: Command


@dataclass(frozen=True, slots=True)
class LifeLineEnded:
    """The Join call of this life is over."""

    life: int
    end: LifeLineEnd
    detail: str


@dataclass(frozen=True, slots=True)
class ExchangesEnded:
    """The exchanger of this life ended by itself."""

    life: int
    end: End
    detail: str


@dataclass(frozen=True, slots=True)
class PhaseBegan:
    """The compute thread began import, load or warm-up."""

    phase: str


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """The compute thread loaded the model, or could not."""

    result: Loaded | NotLoaded


@dataclass(frozen=True, slots=True)
class LeaveAsked:
    """A signal."""


@dataclass(frozen=True, slots=True)
class ComputeCrashed:
    """A defect of the replica itself; the log has its traceback."""


LifeEvent = Commanded | LifeLineEnded | ExchangesEnded
Event = LifeEvent | PhaseBegan | LoadEnded | LeaveAsked | ComputeCrashed
