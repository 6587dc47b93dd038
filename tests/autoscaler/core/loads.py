"""Loads of a model that takes 10 ms a row and 20 ms a batch, and a pure world that serves them."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.fleet import Model, ModelKey, Replica, ReplicaState, Snapshot
from tideserve.autoscaler.core.load import Histogram, Load, Sample
from tideserve.autoscaler.core.settings import ModelPolicy, ScalingSettings

KEY = ModelKey("digits", 1, "g1")
#: mu is 80 rows/s, with batches of 8 that take 100 ms.
PROFILE = tuple((rows, 0.01 * rows + 0.02) for rows in (1, 2, 4, 8))
RATE_OF_ONE = 80.0
BOUNDS_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
UNIX_S = 1_700_000_000.0


@dataclass
class Served:
    """Replicas that serve a fluid queue, and the policy that counts them. `rate` by second."""

    rate: Callable[[float], float]
    policy: ModelPolicy
    startup_s: float = 0.5
    step_s: float = 0.25
    seed: int = 3
    starts: bool = True
    dead_source: Callable[[float], bool] = lambda now_s: False
    ready: int = 1
    now_s: float = 0.0
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    replica_s: float = 0.0
    queued: float = 0.0

    def __post_init__(self) -> None:
        self.elastic = ElasticPolicy(ScalingSettings(default=self.policy))
        self._random = random.Random(self.seed)
        self._arrivals = self._served = 0.0
        self._waits = [0.0] * (len(BOUNDS_S) + 1)
        self._starting: list[float] = []
        self._oldest_s = 0.0
        self._last = Load(0.0, profile=PROFILE)

    def run(self, seconds: float) -> "Served":
        ends_s = self.now_s + seconds
        while self.now_s < ends_s:
            self.step()
        return self

    def step(self) -> Decision:
        self._serve()
        if not self.dead_source(self.now_s):
            self._last = self._load()
        decision = self.elastic.decide(self._snapshot(), self._sample(), self.now_s)[KEY]
        self.decisions.append((self.now_s, decision))
        self._obey(decision.desired)
        self.replica_s += (self.ready + len(self._starting)) * self.step_s
        self.now_s += self.step_s
        return decision

    def told(self) -> list[str]:
        """A line for each change of desired or of its limit."""
        lines, last = [], None
        for at_s, decision in self.decisions:
            outcome = (decision.desired, decision.limited_by)
            if outcome != last:
                limit = f" | {decision.limited_by}" if decision.limited_by else ""
                lines.append(f"{at_s:6.2f} {decision.desired}: {kind(decision)}{limit}")
            last = outcome
        return lines

    def desired(self, from_s: float = 0.0) -> list[int]:
        return [decision.desired for at_s, decision in self.decisions if at_s >= from_s]

    def _serve(self) -> None:
        if self.starts:
            done = [at_s for at_s in self._starting if at_s <= self.now_s]
            self.ready += len(done)
            self._starting = [at_s for at_s in self._starting if at_s > self.now_s]
        expected = self.rate(self.now_s) * self.step_s
        came = sum(self._random.random() < expected / 400 for _ in range(400))
        self._arrivals += came
        self.queued += came
        room = self.ready * RATE_OF_ONE * self.step_s
        served = min(self.queued, room)
        self.queued -= served
        self._served += served
        wait_s = self.queued / (self.ready * RATE_OF_ONE) if self.ready else 1.0
        self._oldest_s = wait_s if self.queued >= 1.0 else 0.0
        bucket = next((at for at, bound in enumerate(BOUNDS_S) if wait_s <= bound), len(BOUNDS_S))
        self._waits[bucket] += served

    def _load(self) -> Load:
        return Load(
            at_s=self.now_s,
            arrivals=self._arrivals,
            succeeded=self._served,
            rows=self._served,
            queue_wait_s=Histogram(BOUNDS_S, tuple(self._waits)),
            queued_requests=int(self.queued),
            queued_rows=int(self.queued),
            oldest_age_s=self._oldest_s,
            profile=PROFILE,
        )

    def _snapshot(self) -> Snapshot:
        ready = [
            Replica(
                f"r{at}",
                KEY,
                ReplicaState.READY,
                was_ready=True,
                startup_s=(("load", self.startup_s),),
            )
            for at in range(self.ready)
        ]
        starting = [
            Replica(f"s{at}", KEY, ReplicaState.STARTING) for at in range(len(self._starting))
        ]
        return Snapshot(1, (Model(KEY, latency_target_s=0.4),), (*ready, *starting))

    def _sample(self) -> Sample:
        return Sample(UNIX_S + self.now_s, {KEY: self._last})

    def _obey(self, desired: int) -> None:
        while self.ready + len(self._starting) < desired:
            self._starting.append(self.now_s + self.startup_s)
        while self.ready + len(self._starting) > desired:
            if self._starting:
                self._starting.pop()
            else:
                self.ready -= 1


def kind(decision: Decision) -> str:
    return decision.reason.partition(":")[0]


def steps(*phases: tuple[float, float]) -> Callable[[float], float]:
    """(until, rate) one after the other; 0 after the last."""
    return lambda now_s: next((rate for until_s, rate in phases if now_s < until_s), 0.0)
