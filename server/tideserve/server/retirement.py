"""Models that are on their way out: when nothing waits for them any more they are dropped."""

from tideserve.server.core.actions import Action
from tideserve.server.core.replicas import ReplicaState
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.models import ModelState, ModelTable
from tideserve.server.service.replicas import ReplicaService


def retire(models: ModelTable, scheduler: Scheduler, replicas: ReplicaService) -> list[Action]:
    """Drops each retiring entry that has answered what it admitted and whose replicas left.

    Draining the replicas is the autoscaler's part: the snapshot tells it when.
    """
    actions: list[Action] = []
    retiring = [entry for entry in models.entries.values() if entry.state is ModelState.RETIRING]
    for entry in retiring:
        key = entry.key
        if key in scheduler.models and not scheduler.is_idle(key):
            continue
        members = scheduler.members.of_model(key)
        if any(replica.state is not ReplicaState.LOST for replica in members):
            continue
        if key in scheduler.models:
            actions += scheduler.remove_model(key, "unloaded")
        for replica in members:
            replicas.forget(replica.replica_id)
        models.remove(key)
    return actions
