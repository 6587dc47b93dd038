"""Baselines: the rules of Knative, Kubernetes and Ray Serve, and a count that never changes.

Written from what these projects publish, with their defaults; where ours is simpler, the
docstrings say so. All scale on concurrency: requests that wait or are at work, averaged over
time. Without data nothing changes (S2); a restarted policy begins with what there is.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Final, Protocol

from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import ModelKey, ReplicaState, Snapshot
from tideserve.autoscaler.core.load import Sample

# Sums of floats that miss a whole number, or a moment, by less than this have reached it.
EXACT: Final = 1e-9

_RETIRES: Final = Decision(0, "the model version retires", limited_by="not wanted")


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


@dataclass(frozen=True, slots=True)
class RaySettings:
    """Ray Serve's, by its defaults. `target_ongoing_requests`: a replica. Factors: of the way
    from the running replicas to the wanted ones.

    There is no `max_ongoing_requests`: it says where requests wait, and all of them count.
    """

    target_ongoing_requests: float = 2.0
    look_back_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    metrics_interval_s: float = 10.0
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    min_replicas: int = 1
    max_replicas: int = 8


@dataclass(frozen=True, slots=True)
class _Seen:
    """One model version at one moment. `concurrency`: in requests, as of `at_s`."""

    ready: int
    starting: int
    at_s: float
    concurrency: float

    @property
    def present(self) -> int:
        return self.ready + self.starting


class _Rule(Protocol):
    """Decides for one model version. Remembers its past."""

    def look(self, seen: _Seen, now_s: float) -> Decision: ...


@dataclass(slots=True)
class _Known:
    rule: _Rule | None = None
    decision: Decision | None = None


class _PerModel:
    """A rule for each wanted model version, made at its first data."""

    def __init__(self, make: Callable[[_Seen, float], _Rule], least: int, most: int) -> None:
        self._make = make
        self._bounds = (least, most)
        self._known: dict[ModelKey, _Known] = {}

    def decide(
        self, snapshot: Snapshot, sample: Sample, now_s: float
    ) -> Mapping[ModelKey, Decision]:
        """One decision a model version; none of those that are not wanted."""
        wanted = [model.key for model in snapshot.models if model.wanted]
        self._known = {key: self._known.get(key, _Known()) for key in wanted}
        return {
            model.key: self._decide(model.key, snapshot, sample, now_s)
            if model.wanted
            else _RETIRES
            for model in snapshot.models
        }

    def _decide(self, key: ModelKey, snapshot: Snapshot, sample: Sample, now_s: float) -> Decision:
        known = self._known[key]
        states = [replica.state for replica in snapshot.replicas if replica.key == key]
        ready, starting = states.count(ReplicaState.READY), states.count(ReplicaState.STARTING)
        load = sample.loads.get(key)
        if load is None or now_s - load.at_s > load.good_for_s:
            last = known.decision.desired if known.decision else ready + starting
            known.decision = _decision(last, "no data: nothing changes", None, self._bounds, {})
            return known.decision
        concurrency = float(load.queued_requests + load.leased_requests)
        seen = _Seen(ready, starting, load.at_s, concurrency)
        if known.rule is None:
            known.rule = self._make(seen, now_s)
        known.decision = known.rule.look(seen, now_s)
        return known.decision


class KnativePolicy(_PerModel):
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


class HpaPolicy(_PerModel):
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


class RayServePolicy(_PerModel):
    """Ray Serve's default policy (python/ray/serve/autoscaling_policy.py at
    https://github.com/ray-project/ray,
    https://docs.ray.io/en/latest/serve/advanced-guides/advanced-autoscaling.html).

    Requests are read every `metrics_interval_s` and hold until they are read again; their mean
    over `look_back_s` is divided by the target. More, or fewer, replicas are wanted at every look
    for the delay before as many as the last one wants are asked for. Ray looks every 0.1 s, ours
    whenever it is called. Without a running replica the first request asks for one at once.
    """

    def __init__(self, settings: RaySettings) -> None:
        super().__init__(
            lambda seen, now_s: _Ray(settings, seen, now_s),
            settings.min_replicas,
            settings.max_replicas,
        )
        self.settings = settings


@dataclass(frozen=True, slots=True)
class StaticPolicy:
    """`replicas` for each wanted model version, whatever comes."""

    replicas: int

    def decide(
        self, snapshot: Snapshot, sample: Sample, now_s: float
    ) -> Mapping[ModelKey, Decision]:
        """Does not depend on the time or the load."""
        del sample, now_s
        fixed = Decision(self.replicas, f"static: {self.replicas}")
        return {model.key: fixed if model.wanted else _RETIRES for model in snapshot.models}


class _Kpa:
    def __init__(self, settings: KpaSettings, seen: _Seen, now_s: float) -> None:
        self._settings = settings
        self._window = _Window(max(settings.stable_s, settings.panic_s))
        self._panic_since_s = now_s if seen.ready > 1 else None
        self._panic_most = seen.ready
        self._active_since_s = now_s
        self._idle_since_s: float | None = None
        self._next_s = now_s
        self._decision = Decision(seen.present, "no tick yet")

    def look(self, seen: _Seen, now_s: float) -> Decision:
        self._window.push(seen.at_s, seen.concurrency)
        wakes = self._decision.desired == 0 and seen.concurrency > 0.0
        if wakes or now_s >= self._next_s - EXACT:
            self._next_s = _following(self._next_s, self._settings.tick_s, now_s)
            self._decision = self._tick(seen, now_s)
        return self._decision

    def _tick(self, seen: _Seen, now_s: float) -> Decision:
        s = self._settings
        target = s.target_concurrency * s.utilization
        stable = self._window.mean(s.stable_s, now_s)
        panic = self._window.mean(s.panic_s, now_s)
        ready = max(1, seen.ready)
        by_stable, by_panic = _whole(stable / target), _whole(panic / target)
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
        return self._zero(_decision(count, said, limit, bounds, numbers), now_s)

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


class _Hpa:
    def __init__(self, settings: HpaSettings, seen: _Seen, now_s: float) -> None:
        s = self._settings = settings
        self._bounds = (s.min_replicas, s.max_replicas)
        self._window = _Window(s.sync_s)
        self._next_s = now_s + s.sync_s
        said = f"no metric before {s.sync_s:g} s"
        self._decision = _decision(seen.present, said, None, self._bounds, {})
        self._recommended = deque([(now_s, self._decision.desired)])
        self._changes: deque[tuple[float, int]] = deque()

    def look(self, seen: _Seen, now_s: float) -> Decision:
        self._window.push(seen.at_s, seen.concurrency)
        if now_s >= self._next_s - EXACT:
            self._next_s = _following(self._next_s, self._settings.sync_s, now_s)
            before = self._decision.desired
            self._decision = self._sync(seen, now_s)
            if self._decision.desired != before:
                self._changes.append((now_s, self._decision.desired - before))
        return self._decision

    def _sync(self, seen: _Seen, now_s: float) -> Decision:
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
        wanted, bound = _bounded(self._wanted(mean, seen), *self._bounds)
        count, limit = self._stable(wanted, now_s)
        count, limit = self._limited(count, limit, now_s)
        return _decision(count, said, limit or bound, self._bounds, numbers)

    def _wanted(self, mean: float, seen: _Seen) -> int:
        """By the ratio alone, where it is out of tolerance and does not contradict itself."""
        s, current = self._settings, self._decision.desired
        wanted = _whole(mean / s.target_concurrency)
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


class _Ray:
    def __init__(self, settings: RaySettings, seen: _Seen, now_s: float) -> None:
        s = self._settings = settings
        self._bounds = (s.min_replicas, s.max_replicas)
        self._window = _Window(s.look_back_s)
        self._held = seen.concurrency
        self._next_s = now_s + s.metrics_interval_s
        self._desired, _ = _bounded(seen.present, *self._bounds)
        self._direction = 0
        self._since_s = now_s

    def look(self, seen: _Seen, now_s: float) -> Decision:
        s = self._settings
        self._window.push(now_s, self._held)
        if now_s >= self._next_s - EXACT:
            self._held = seen.concurrency
            self._next_s = _following(self._next_s, s.metrics_interval_s, now_s)
        if seen.ready == 0:
            return self._cold(seen)
        mean = self._window.mean(s.look_back_s, now_s)
        said = (
            f"{mean:.1f} ongoing over {s.look_back_s:g} s, "
            f"target {s.target_ongoing_requests:g} a replica"
        )
        wanted, limit = _bounded(self._wanted(mean, seen.ready), *self._bounds)
        if self._desired > 1:  # the last one goes alone
            wanted = max(1, wanted)
        delay = self._delay(wanted, now_s)
        if delay is None:
            self._desired = wanted
        numbers = {
            "ready": float(seen.ready),
            "target_requests": s.target_ongoing_requests,
            "ongoing_requests": mean,
            "wanted": float(wanted),
        }
        return _decision(self._desired, said, delay or limit, self._bounds, numbers)

    def _cold(self, seen: _Seen) -> Decision:
        self._direction = 0
        said = "no running replica"
        if seen.concurrency > 0.0:
            said = f"{said}, {seen.concurrency:g} requests wait"
            self._desired = max(self._desired, _whole(self._settings.upscaling_factor))
        decision = _decision(self._desired, said, None, self._bounds, {})
        self._desired = decision.desired
        return decision

    def _wanted(self, mean: float, ready: int) -> int:
        s = self._settings
        exact = mean / s.target_ongoing_requests
        factor = s.upscaling_factor if exact > ready else s.downscaling_factor
        wanted = _whole(ready + factor * (exact - ready))
        stuck = _whole(exact) < ready and wanted == ready
        return wanted - 1 if stuck else wanted

    def _delay(self, wanted: int, now_s: float) -> str | None:
        """What still holds a change back."""
        s = self._settings
        direction = (wanted > self._desired) - (wanted < self._desired)
        if direction != self._direction:
            self._direction, self._since_s = direction, now_s
        if direction == 0:
            return None
        name, delay_s = (
            ("upscale_delay_s", s.upscale_delay_s)
            if direction > 0
            else ("downscale_delay_s", s.downscale_delay_s)
        )
        held_s = now_s - self._since_s
        if held_s < delay_s - EXACT:
            return f"{name}: {wanted} wanted for {held_s:.1f} of {delay_s:g} s"
        self._direction = 0
        return None


class _Window:
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


def _whole(count: float) -> int:
    return ceil(count - EXACT)


def _following(due_s: float, every_s: float, now_s: float) -> float:
    """The first of the moments after `due_s` that is still to come."""
    return due_s + every_s * (floor((now_s - due_s) / every_s + EXACT) + 1)


def _bounded(count: int, least: int, most: int) -> tuple[int, str | None]:
    """S1."""
    if count < least:
        return least, f"min: {least}"
    if count > most:
        return most, f"max: {most}"
    return count, None


def _decision(
    count: int,
    reason: str,
    limit: str | None,
    bounds: tuple[int, int],
    inputs: Mapping[str, float],
) -> Decision:
    bounded, bound = _bounded(count, *bounds)
    return Decision(bounded, reason, bound or limit, inputs)
