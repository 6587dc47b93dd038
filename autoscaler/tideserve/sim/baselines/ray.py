"""Ray Serve's autoscaler."""

from dataclasses import dataclass

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


class RayServePolicy(PerModel):
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


class _Ray:
    def __init__(self, settings: RaySettings, seen: Seen, now_s: float) -> None:
        s = self._settings = settings
        self._bounds = (s.min_replicas, s.max_replicas)
        self._window = Window(s.look_back_s)
        self._held = seen.concurrency
        self._next_s = now_s + s.metrics_interval_s
        self._desired, _ = within(seen.present, *self._bounds)
        self._direction = 0
        self._since_s = now_s

    def look(self, seen: Seen, now_s: float) -> Decision:
        s = self._settings
        self._window.push(now_s, self._held)
        if now_s >= self._next_s - EXACT:
            self._held = seen.concurrency
            self._next_s = following(self._next_s, s.metrics_interval_s, now_s)
        if seen.ready == 0:
            return self._cold(seen)
        mean = self._window.mean(s.look_back_s, now_s)
        said = (
            f"{mean:.1f} ongoing over {s.look_back_s:g} s, "
            f"target {s.target_ongoing_requests:g} a replica"
        )
        wanted, limit = within(self._wanted(mean, seen.ready), *self._bounds)
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
        return decided(self._desired, said, delay or limit, self._bounds, numbers)

    def _cold(self, seen: Seen) -> Decision:
        self._direction = 0
        said = "no running replica"
        if seen.concurrency > 0.0:
            said = f"{said}, {seen.concurrency:g} requests wait"
            self._desired = max(self._desired, whole(self._settings.upscaling_factor))
        decision = decided(self._desired, said, None, self._bounds, {})
        self._desired = decision.desired
        return decision

    def _wanted(self, mean: float, ready: int) -> int:
        s = self._settings
        exact = mean / s.target_ongoing_requests
        factor = s.upscaling_factor if exact > ready else s.downscaling_factor
        wanted = whole(ready + factor * (exact - ready))
        stuck = whole(exact) < ready and wanted == ready
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
