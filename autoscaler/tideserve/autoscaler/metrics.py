"""The autoscaler's own metrics; docs/metrics.md lists them."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import ModelKey, ReplicaState, Snapshot

_MODEL: Final = ("model", "version")
_STARTUP_BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
# A look that comes later than this says nothing of the time before it.
_MAX_GAP_S: Final = 10.0
# A replica that rejoins a restarted frontend started up once. More than there can be at a time.
_KEPT_IDS: Final = 10_000


class AutoscalerMetrics:
    """Owns the registry. `cost_per_replica_s` by model name."""

    def __init__(self, cost_per_replica_s: Callable[[str], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._cost_per_replica_s = cost_per_replica_s
        self._last_s: float | None = None
        self._counted: dict[str, None] = {}  # the newest last
        self._shown: set[tuple[str, str]] = set()
        self._desired = self._gauge("desired", "Replicas that should be.")
        self._ready = self._gauge("ready", "Replicas that are READY.")
        self._starting = self._gauge("starting", "Replicas that are STARTING.")
        self._standby = Gauge(
            "tideserve_autoscaler_standby", "Replicas that stand by.", registry=self.registry
        )
        self._startup_s = Histogram(
            "tideserve_autoscaler_startup_seconds",
            "Start-ups that ended READY, by phase; `total` is launch to READY.",
            (*_MODEL, "phase"),
            buckets=_STARTUP_BOUNDS,
            registry=self.registry,
        )
        self._decisions = Counter(
            "tideserve_autoscaler_decisions_total",
            "Changes of desired, by kind of reason.",
            (*_MODEL, "reason"),
            registry=self.registry,
        )
        self._replica_s = Counter(
            "tideserve_autoscaler_replica_seconds_total",
            "Time of replicas, from their start to their end; standbys are no model's.",
            _MODEL,
            registry=self.registry,
        )
        self._cost = Counter(
            "tideserve_autoscaler_cost_total",
            "Replica-seconds by cost_per_replica_second.",
            _MODEL,
            registry=self.registry,
        )

    def record(
        self,
        now_s: float,
        snapshot: Snapshot,
        decisions: Mapping[ModelKey, Decision],
        changed: Sequence[ModelKey],
    ) -> None:
        """One look. Two generations of a version count as one."""
        gap_s = 0.0 if self._last_s is None else min(_MAX_GAP_S, max(0.0, now_s - self._last_s))
        self._last_s = now_s
        counts: dict[tuple[str, str], list[int]] = {}
        for key, decision in decisions.items():
            states = [replica.state for replica in snapshot.replicas if replica.key == key]
            totals = counts.setdefault((key.name, str(key.version)), [0, 0, 0, 0])
            totals[0] += decision.desired
            totals[1] += states.count(ReplicaState.READY)
            totals[2] += states.count(ReplicaState.STARTING)
            totals[3] += states.count(ReplicaState.DRAINING)
        self._forget(counts.keys())
        for labels, (desired, ready, starting, draining) in counts.items():
            self._desired.labels(*labels).set(desired)
            self._ready.labels(*labels).set(ready)
            self._starting.labels(*labels).set(starting)
            replica_s = (ready + starting + draining) * gap_s
            self._replica_s.labels(*labels).inc(replica_s)
            self._cost.labels(*labels).inc(replica_s * self._cost_per_replica_s(labels[0]))
        self._standby.set(sum(r.state is ReplicaState.STANDBY for r in snapshot.replicas))
        for key in changed:
            reason = kind_of(decisions[key].reason)
            self._decisions.labels(key.name, str(key.version), reason).inc()
        self._count_start_ups(snapshot)

    def _count_start_ups(self, snapshot: Snapshot) -> None:
        ready = {r.replica_id: r for r in snapshot.replicas if r.state is ReplicaState.READY}
        for name, replica in ready.items():
            if name in self._counted:
                continue
            if replica.key is None or not replica.startup_s:
                continue
            labels = (replica.key.name, str(replica.key.version))
            for phase, seconds in replica.startup_s:
                self._startup_s.labels(*labels, phase).observe(seconds)
            total_s = sum(seconds for _, seconds in replica.startup_s)
            self._startup_s.labels(*labels, "total").observe(total_s)
            self._counted[name] = None
        while len(self._counted) > _KEPT_IDS:
            del self._counted[next(iter(self._counted))]

    def _forget(self, known: Set[tuple[str, str]]) -> None:
        """All series of versions that are gone."""
        every = (
            self._desired,
            self._ready,
            self._starting,
            self._startup_s,
            self._decisions,
            self._replica_s,
            self._cost,
        )
        for labels in self._shown - known:
            for metric in every:
                metric.remove_by_labels(dict(zip(_MODEL, labels, strict=True)))
        self._shown = set(known)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"tideserve_autoscaler_{name}", text, _MODEL, registry=self.registry)


def kind_of(reason: str) -> str:
    """What a reason begins with: proactive, panic, hold, wake, no_data, ..., and one kind for all
    triggers, whose names follow."""
    kind = reason.partition(":")[0]
    return "trigger" if kind.startswith("trigger ") else kind.replace(" ", "_")
