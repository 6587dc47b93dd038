"""What the autoscaler last wanted of each model version, and the counts that people pinned."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Final

from tideserve.server.errors import InvalidRequestError
from tideserve.server.models import ModelKey
from tideserve.v1 import control_pb2
from tideserve.v1.control_pb2 import ModelSnapshot, ReportDecisionsRequest

MAX_PIN_S: Final = 86_400.0
MAX_PINNED_REPLICAS: Final = 4096
# Older decisions are of an autoscaler that is gone.
STALE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Pin:
    replicas: int
    until_s: float


class ScalingBoard:
    """Owns both tables, for the versions that are there. `changes` counts changes of pins.

    A pin outlives autoscalers and reloads of the version's files: it is by name and version.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._http = ""
        self._reported_s = 0.0
        self._decisions: dict[ModelKey, tuple[control_pb2.Decision, float]] = {}
        self._pins: dict[tuple[str, int], _Pin] = {}

    def report(self, message: ReportDecisionsRequest, now_s: float) -> None:
        """The newest autoscaler's word on everything; what it does not name is forgotten."""
        self._http = message.autoscaler_http
        self._reported_s = now_s
        self._decisions = {
            ModelKey(one.model_name, one.model_version, one.generation): (one.decision, now_s)
            for one in message.decisions
        }

    def pin(self, keys: Iterable[ModelKey], replicas: int, duration_s: float, now_s: float) -> None:
        """So many replicas of each of these for so long; 0 s ends it. Raises
        `InvalidRequestError`."""
        if not (isfinite(duration_s) and 0.0 <= duration_s <= MAX_PIN_S):
            raise InvalidRequestError(
                f"duration_s: expected 0 to {MAX_PIN_S:g} seconds, got {duration_s:g}"
            )
        if replicas > MAX_PINNED_REPLICAS:
            raise InvalidRequestError(
                f"replicas: expected at most {MAX_PINNED_REPLICAS}, got {replicas}"
            )
        for key in keys:
            self._pins.pop((key.name, key.version), None)
            if duration_s > 0.0:
                self._pins[key.name, key.version] = _Pin(replicas, now_s + duration_s)
        self.changes += 1

    def expire(self, known: Iterable[ModelKey], now_s: float) -> None:
        """Ends pins by the clock, and those of versions that are gone."""
        if not self._pins:
            return
        versions = {(key.name, key.version) for key in known}
        over = [
            version
            for version, pin in self._pins.items()
            if pin.until_s <= now_s or version not in versions
        ]
        for version in over:
            del self._pins[version]
        self.changes += bool(over)

    def kept_at_zero(self, now_s: float) -> dict[ModelKey, str]:
        """Versions that the autoscaler wants no replica of for a limit, with that limit: not
        because nobody asks for them."""
        return {
            key: decision.limited_by
            for key, (decision, told_s) in self._decisions.items()
            if not decision.desired and decision.limited_by and now_s - told_s <= STALE_S
        }

    def autoscaler_http(self, now_s: float) -> str:
        """Where the newest autoscaler answers HTTP; empty if none has reported lately."""
        return self._http if now_s - self._reported_s <= STALE_S else ""

    def show(self, message: ModelSnapshot, key: ModelKey, now_s: float) -> None:
        """Writes what is known of a version into its snapshot."""
        told = self._decisions.get(key)
        if told is not None and now_s - told[1] <= STALE_S:
            message.decision.CopyFrom(told[0])
            message.decision.age_s = now_s - told[1]
        pin = self._pins.get((key.name, key.version))
        if pin is not None and pin.until_s > now_s:
            message.pin.replicas = pin.replicas
            message.pin.remaining_s = pin.until_s - now_s
