"""Knative's pod autoscaler."""

from dataclasses import dataclass, replace
from math import ceil, floor

from tideserve.autoscaler.core.decision import Decision
from tideserve.sim.baselines.rule import EXACT, PerModel, Seen, Window, decided, following, whole


@dataclass(frozen=True, slots=True)
class KpaSettings:
    """The Knative pod autoscaler's, by its defaults.

    `target_concurrency`: requests a replica, of which the share `utilization` is aimed at. Rates
    are factors of the READY replicas, from one tick to the next.
    """

    target_concurrency: float
    utilization: float = 0.7
    stable_s: float = 60.0
    panic_s: float = 6.0
    panic_threshold: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    tick_s: float = 2.0
    scale_to_zero_grace_s: float = 30.0
    min_replicas: int = 1
    max_replicas: int = 8


class KnativePolicy(PerModel):
    """Knative's pod autoscaler (pkg/autoscaler/scaling/autoscaler.go and
    pkg/reconciler/autoscaling/kpa/scaler.go at https://github.com/knative/serving,
    https://knative.dev/docs/serving/autoscaling/kpa-specific).

    Every `tick_s`: the mean over the stable window divided by the target. Panic, where the short
    window wants `panic_threshold` times the READY replicas: the larger of both windows, never
    fewer than before, until `stable_s` after its last sign; with more than one READY replica at
    the start it begins in panic. The last replica goes `scale_to_zero_grace_s` after none is
    wanted: all of it, where Knative may find its activator in place sooner.
    """

    def __init__(self, settings: KpaSettings) -> None:
        super().__init__(
            lambda seen, now_s: _Kpa(settings, seen, now_s),
            settings.min_replicas,
            settings.max_replicas,
        )
        self.settings = settings


class _Kpa:
    def __init__(self, settings: KpaSettings, seen: Seen, now_s: float) -> None:
        self._settings = settings
        self._window = Window(max(settings.stable_s, settings.panic_s))
        self._panic_since_s = now_s if seen.ready > 1 else None
        self._panic_most = seen.ready
        self._active_since_s = now_s
        self._idle_since_s: float | None = None
        self._next_s = now_s
        self._decision = Decision(seen.present, "no tick yet")

    def look(self, seen: Seen, now_s: float) -> Decision:
        self._window.push(seen.at_s, seen.concurrency)
        wakes = self._decision.desired == 0 and seen.concurrency > 0.0
        if wakes or now_s >= self._next_s - EXACT:
            self._next_s = following(self._next_s, self._settings.tick_s, now_s)
            self._decision = self._tick(seen, now_s)
        return self._decision

    def _tick(self, seen: Seen, now_s: float) -> Decision:
        s = self._settings
        target = s.target_concurrency * s.utilization
        stable = self._window.mean(s.stable_s, now_s)
        panic = self._window.mean(s.panic_s, now_s)
        ready = max(1, seen.ready)
        by_stable, by_panic = whole(stable / target), whole(panic / target)
        self._mind(now_s, panics=by_panic / ready >= s.panic_threshold)
        if self._panic_since_s is None:
            count, limit = self._limited(by_stable, ready)
            said = f"stable: concurrency {stable:.1f} over {s.stable_s:g} s"
        else:
            count, limit = self._limited(max(by_stable, by_panic), ready)
            said = f"panic: concurrency {panic:.1f} over {s.panic_s:g} s"
            if count < self._panic_most:
                limit = f"panic: not below {self._panic_most}"
            count = self._panic_most = max(count, self._panic_most)
        numbers = {
            "ready": float(seen.ready),
            "target_requests": target,
            "concurrency_stable_requests": stable,
            "concurrency_panic_requests": panic,
        }
        said = f"{said}, target {target:g} a replica"
        bounds = (s.min_replicas, s.max_replicas)
        return self._zero(decided(count, said, limit, bounds, numbers), now_s)

    def _mind(self, now_s: float, *, panics: bool) -> None:
        if panics:
            self._panic_since_s = now_s
        elif (
            self._panic_since_s is not None
            and now_s - self._panic_since_s > self._settings.stable_s + EXACT
        ):
            self._panic_since_s, self._panic_most = None, 0

    def _limited(self, count: int, ready: int) -> tuple[int, str | None]:
        most = ceil(self._settings.max_scale_up_rate * ready - EXACT)
        least = floor(ready / self._settings.max_scale_down_rate + EXACT)
        if count > most:
            return most, f"max_scale_up_rate: {most}"
        if count < least:
            return least, f"max_scale_down_rate: {least}"
        return count, None

    def _zero(self, decision: Decision, now_s: float) -> Decision:
        s = self._settings
        if decision.desired > 0:
            if self._idle_since_s is not None:
                self._active_since_s, self._idle_since_s = now_s, None
            return decision
        if self._idle_since_s is None:
            if now_s - self._active_since_s < s.stable_s - EXACT:
                limit = f"stable_s: active for less than {s.stable_s:g} s"
                return replace(decision, desired=1, limited_by=limit)
            self._idle_since_s = now_s
        if now_s - self._idle_since_s < s.scale_to_zero_grace_s - EXACT:
            limit = f"scale_to_zero_grace_s: {s.scale_to_zero_grace_s:g}"
            return replace(decision, desired=1, limited_by=limit)
        return decision
