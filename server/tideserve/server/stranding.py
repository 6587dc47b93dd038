"""Versions at zero that nobody could start a replica for: they say so instead of holding calls.

A version without replicas is READY to clients as long as an autoscaler can start one for the
first request. Without an autoscaler, or with one that is not allowed to, that request would wait
for ever.
"""

from collections.abc import Mapping
from typing import Final

from tideserve.server.core.actions import Action
from tideserve.server.core.replicas import ReplicaState
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.models import ModelKey, ModelState, ModelTable

# More than an autoscaler that died needs to be back: its pause before it is started again is
# 10 s at most, and a replica that was restarted by hand joins sooner.
GRACE_S: Final = 15.0
REASON: Final = "it has no replica, and no autoscaler is connected that could start one"
LIMITED: Final = "it has no replica, and its autoscaler may not start one: {}"
NOTHING: Final[Mapping[ModelKey, str]] = {}


class Stranding:
    """Owns when each READY version was first seen with nobody to serve or start it, and which
    of them were made UNAVAILABLE for it. `limited` of a look: what keeps a version at zero,
    whatever it is asked for."""

    def __init__(self, models: ModelTable, scheduler: Scheduler) -> None:
        self._models = models
        self._scheduler = scheduler
        self._since_s: dict[ModelKey, float] = {}
        self._stranded: set[ModelKey] = set()

    def look(
        self,
        *,
        has_autoscaler: bool,
        now_s: float,
        limited: Mapping[ModelKey, str] = NOTHING,
    ) -> list[Action]:
        """Makes versions UNAVAILABLE after the grace, their waiting requests with them; makes
        them READY again when an autoscaler has come that may start one."""
        if has_autoscaler:
            for key in self._stranded - limited.keys():
                self._models.recover(key)
            self._stranded &= limited.keys()
            alone = [key for key in self._alone() if key in limited] if limited else []
        else:
            alone = self._alone()
        self._since_s = {key: self._since_s.get(key, now_s) for key in alone}
        actions: list[Action] = []
        for key, since_s in self._since_s.items():
            if now_s - since_s >= GRACE_S:
                why = LIMITED.format(limited[key]) if has_autoscaler else REASON
                self._stranded.add(key)
                self._models.fail(key, why, held_back=has_autoscaler)
                actions += self._scheduler.fail_queued(key, f"{key} cannot be served: {why}")
        return actions

    def _alone(self) -> list[ModelKey]:
        """READY versions of which no replica lives."""
        living = {
            replica.model
            for replica in self._scheduler.members.all()
            if replica.state is not ReplicaState.LOST
        }
        return [
            key
            for key, entry in self._models.entries.items()
            if entry.state is ModelState.READY
            and key not in living
            and key in self._scheduler.models
        ]
