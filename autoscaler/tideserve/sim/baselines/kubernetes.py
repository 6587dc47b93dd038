"""Kubernetes' horizontal pod autoscaler."""

from collections import deque
from dataclasses import dataclass, replace
from math import ceil

from tideserve.autoscaler.core.decision import Decision
from tideserve.sim.baselines.rule import (
    EXACT,
    PerModel,
    Seen,
    Window,
    decided,
    following,
    whole,
    within,
)


@dataclass(frozen=True, slots=True)
class HpaSettings:
    """Kubernetes' horizontal pod autoscaler's, by its defaults.

    `target_concurrency`: requests a replica. `tolerance`: a share of it. Within `up_period_s`
    at most `up_pods` or `up_percent` are added, whichever is more.
    """

    target_concurrency: float
    sync_s: float = 15.0
    tolerance: float = 0.1
    downscale_stabilization_s: float = 300.0
    up_pods: int = 4
    up_percent: float = 100.0
    up_period_s: float = 15.0
    min_replicas: int = 1
    max_replicas: int = 8


class HpaPolicy(PerModel):
    """Kubernetes' autoscaling/v2 with its default behaviour
    (https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale), on the mean
    concurrency a replica since the last sync.

    A replica that starts is one that is not yet ready: left out of the mean, and counted with 0
    where the others alone would scale up. Simpler than there: queued requests count as if spread
    evenly over the READY replicas, and no metric lags or is missing. At zero replicas, which
    the default forbids, the concurrency alone decides.
    """

    def __init__(self, settings: HpaSettings) -> None:
        super().__init__(
            lambda seen, now_s: _Hpa(settings, seen, now_s),
            settings.min_replicas,
            settings.max_replicas,
        )
        self.settings = settings


class _Hpa:
    def __init__(self, settings: HpaSettings, seen: Seen, now_s: float) -> None:
        s = self._settings = settings
        self._bounds = (s.min_replicas, s.max_replicas)
        self._window = Window(s.sync_s)
        self._next_s = now_s + s.sync_s
        said = f"no metric before {s.sync_s:g} s"
        self._decision = decided(seen.present, said, None, self._bounds, {})
        self._recommended = deque([(now_s, self._decision.desired)])
        self._changes: deque[tuple[float, int]] = deque()

    def look(self, seen: Seen, now_s: float) -> Decision:
        self._window.push(seen.at_s, seen.concurrency)
        if now_s >= self._next_s - EXACT:
            self._next_s = following(self._next_s, self._settings.sync_s, now_s)
            before = self._decision.desired
            self._decision = self._sync(seen, now_s)
            if self._decision.desired != before:
                self._changes.append((now_s, self._decision.desired - before))
        return self._decision

    def _sync(self, seen: Seen, now_s: float) -> Decision:
        s, current = self._settings, self._decision.desired
        mean = self._window.mean(s.sync_s, now_s)
        if current > 0 and seen.ready == 0:
            return replace(self._decision, reason="no metric of a READY replica", limited_by=None)
        numbers = {
            "ready": float(seen.ready),
            "starting": float(seen.starting),
            "target_requests": s.target_concurrency,
            "concurrency_requests": mean,
        }
        each = mean / max(1, seen.ready)
        said = (
            f"concurrency {each:.1f} a replica over {s.sync_s:g} s, target {s.target_concurrency:g}"
        )
        wanted, bound = within(self._wanted(mean, seen), *self._bounds)
        count, limit = self._stable(wanted, now_s)
        count, limit = self._limited(count, limit, now_s)
        return decided(count, said, limit or bound, self._bounds, numbers)

    def _wanted(self, mean: float, seen: Seen) -> int:
        """By the ratio alone, where it is out of tolerance and does not contradict itself."""
        s, current = self._settings, self._decision.desired
        wanted = whole(mean / s.target_concurrency)
        if current == 0:
            return wanted
        ratio = mean / (s.target_concurrency * seen.ready)
        if ratio > 1.0:
            ratio = mean / (s.target_concurrency * seen.present)
            if wanted < current or ratio < 1.0:
                return current
        return current if abs(1.0 - ratio) <= s.tolerance + EXACT else wanted

    def _stable(self, wanted: int, now_s: float) -> tuple[int, str | None]:
        """Down only to the most that was recommended within the stabilisation window."""
        s, told = self._settings, self._recommended
        while told and now_s - told[0][0] >= s.downscale_stabilization_s - EXACT:
            told.popleft()
        told.append((now_s, wanted))
        if wanted >= self._decision.desired:
            return wanted, None
        most = max(count for _, count in told)
        if most > wanted:
            return most, f"stabilization: {most} within {s.downscale_stabilization_s:g} s"
        return wanted, None

    def _limited(self, count: int, limit: str | None, now_s: float) -> tuple[int, str | None]:
        s, current = self._settings, self._decision.desired
        while self._changes and now_s - self._changes[0][0] >= s.up_period_s - EXACT:
            self._changes.popleft()
        began = current - sum(by for _, by in self._changes)
        by_share = ceil(began * (1.0 + s.up_percent / 100.0) - EXACT)
        most = max(current, began + s.up_pods, by_share)
        if count > most:
            return most, f"scale up: {most - began} in {s.up_period_s:g} s"
        return count, limit
