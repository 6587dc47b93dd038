"""One life of a replica: one Join, its beats, and the two ways in which it ends."""

import logging
from dataclasses import dataclass
from time import monotonic
from typing import Final

from tideserve.replica import news
from tideserve.replica.arena import Arena
from tideserve.replica.errors import CallBrokenError, CallRefusedError, ReplicaError
from tideserve.replica.exchanger import Exchanger
from tideserve.replica.link import Link
from tideserve.replica.settings import ExitCode
from tideserve.v1.replica_pb2 import BeatRequest

_LOG: Final = logging.getLogger(__name__)
DEFAULT_BEAT_INTERVAL_S: Final = 0.25


class LifeOverError(ReplicaError):
    """This life ends; the process looks for a frontend that knows it."""


class LeaveError(ReplicaError):
    """The process ends."""

    def __init__(self, code: ExitCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(slots=True)
class Life:
    """`epoch` 0: not welcomed yet."""

    number: int
    link: Link
    opened_s: float
    epoch: int = 0
    beat_interval_s: float = DEFAULT_BEAT_INTERVAL_S
    max_message_bytes: int = 0
    assigned: bool = False
    arena: Arena | None = None
    """The memory it shares with the frontend. None: tensors travel in messages."""
    exchanger: Exchanger | None = None
    next_beat_s: float = 0.0
    last_news_s: float = 0.0
    shaky: bool = False
    """A beat broke and none was answered since."""
    result_due: bool = False
    """Ready, or LoadFailed, is still to be told."""

    def beat(self, request: BeatRequest, replica_id: str, busy_s: float) -> bool:
        """Sends a beat; False: it broke. Raises `LeaveError` where it is refused, and
        `LifeOverError` where another frontend may have refused it."""
        request.replica_id = replica_id
        request.epoch = self.epoch
        request.busy_s = busy_s
        request.memory_bytes = news.memory_bytes()
        try:
            self.link.beat(request)
        except CallBrokenError as error:
            _LOG.info("a beat broke: %s", error)
            self.shaky = True
            return False
        except CallRefusedError as error:
            if self.shaky:
                raise LifeOverError(str(error)) from error
            raise LeaveError(ExitCode.LIFE_OVER, str(error)) from error
        self.shaky = False
        self.last_news_s = monotonic()
        return True

    def close(self) -> None:
        """Ends its threads and calls; leases that it holds are dropped."""
        if self.exchanger is not None:
            self.exchanger.close()
        self.link.close()
