"""What the baselines share: they scale on concurrency, a rule for each model version.

Written from what these projects publish, with their defaults; where ours is simpler, the
docstrings say so. Concurrency is of requests that wait or are at work, averaged over time. Without
data nothing changes (S2); a restarted policy begins with what there is.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Final, Protocol

from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import ModelKey, ReplicaState, Snapshot
from tideserve.autoscaler.core.load import Sample

# Sums of floats that miss a whole number, or a moment, by less than this have reached it.
EXACT: Final = 1e-9
RETIRES: Final = Decision(0, "retires: the model version is not wanted", limited_by="not wanted")


@dataclass(frozen=True, slots=True)
class Seen:
    """One model version at one moment. `concurrency`: in requests, as of `at_s`."""

    ready: int
    starting: int
    at_s: float
    concurrency: float

    @property
    def present(self) -> int:
        return self.ready + self.starting


class Rule(Protocol):
    """Decides for one model version. Remembers its past."""

    def look(self, seen: Seen, now_s: float) -> Decision: ...


@dataclass(slots=True)
class Known:
    rule: Rule | None = None
    decision: Decision | None = None


class PerModel:
    """A rule for each wanted model version, made at its first data."""

    def __init__(self, make: Callable[[Seen, float], Rule], least: int, most: int) -> None:
        self._make = make
        self._bounds = (least, most)
        self._known: dict[ModelKey, Known] = {}

    def decide(
        self, snapshot: Snapshot, sample: Sample, now_s: float
    ) -> Mapping[ModelKey, Decision]:
        """One decision a model version; none of those that are not wanted."""
        wanted = [model.key for model in snapshot.models if model.wanted]
        self._known = {key: self._known.get(key, Known()) for key in wanted}
        return {
            model.key: self._decide(model.key, snapshot, sample, now_s) if model.wanted else RETIRES
            for model in snapshot.models
        }

    def _decide(self, key: ModelKey, snapshot: Snapshot, sample: Sample, now_s: float) -> Decision:
        known = self._known[key]
        states = [replica.state for replica in snapshot.replicas if replica.key == key]
        ready, starting = states.count(ReplicaState.READY), states.count(ReplicaState.STARTING)
        load = sample.loads.get(key)
        if load is None or now_s - load.at_s > load.good_for_s:
            last = known.decision.desired if known.decision else ready + starting
            known.decision = decided(last, "no data: nothing changes", None, self._bounds, {})
            return known.decision
        concurrency = float(load.queued_requests + load.leased_requests)
        seen = Seen(ready, starting, load.at_s, concurrency)
        if known.rule is None:
            known.rule = self._make(seen, now_s)
        known.decision = known.rule.look(seen, now_s)
        return known.decision


class Window:
    """Readings of a gauge, each of which holds since the one before it."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._parts: deque[tuple[float, float, float]] = deque()

    def push(self, at_s: float, value: float) -> None:
        """One that is no newer than the last changes nothing."""
        parts = self._parts
        since_s = parts[-1][1] if parts else at_s
        if parts and at_s <= since_s:
            return
        parts.append((since_s, at_s, value))
        while parts[0][1] < at_s - self._keep_s:
            parts.popleft()

    def mean(self, span_s: float, now_s: float) -> float:
        """Over the last `span_s`, or as much of it as is known."""
        begin_s = now_s - span_s
        total, known_s = 0.0, 0.0
        for since_s, until_s, value in reversed(self._parts):
            part_s = until_s - max(begin_s, since_s)
            if part_s <= 0.0:
                break
            total += value * part_s
            known_s += part_s
        return total / known_s if known_s else self._parts[-1][2]


def whole(count: float) -> int:
    return ceil(count - EXACT)


def following(due_s: float, every_s: float, now_s: float) -> float:
    """The first of the moments after `due_s` that is still to come."""
    return due_s + every_s * (floor((now_s - due_s) / every_s + EXACT) + 1)


def within(count: int, least: int, most: int) -> tuple[int, str | None]:
    """S1."""
    if count < least:
        return least, f"min: {least}"
    if count > most:
        return most, f"max: {most}"
    return count, None


def decided(
    count: int,
    reason: str,
    limit: str | None,
    bounds: tuple[int, int],
    inputs: Mapping[str, float],
) -> Decision:
    bounded, bound = within(count, *bounds)
    return Decision(bounded, reason, bound or limit, inputs)
