"""When a replica is over, and whether that counts against its model version (design 15.1)."""

from tideserve.autoscaler.core.fleet import ReplicaState, Snapshot
from tideserve.autoscaler.core.state import Rules, Verdict
from tideserve.autoscaler.core.unit import Unit

Judgement = tuple[Verdict, str]


def judge(
    unit: Unit, snapshot: Snapshot, now_s: float, rules: Rules, *, wanted: bool
) -> Judgement | None:
    """The verdict, with the reason where the replica's exit does not say it; None: it goes on.

    `wanted`: its model version is to have replicas.
    """
    record = unit.record
    if unit.instance is not None and unit.instance.exit is not None:
        return _of_dead(unit, snapshot, now_s, rules)
    if unit.instance is None and record.launched:
        return _verdict(unit, snapshot), ""
    if unit.status is ReplicaState.LOST:
        return _verdict(unit, snapshot), "the frontend lost it"
    if _never_was(unit) and now_s - record.since_s >= rules.grace_s:
        return Verdict.RETIRED, "it was announced but no launcher has it"
    if record.drain_since_s is not None:
        return _of_draining(unit, now_s - record.drain_since_s, rules)
    if unit.on_the_way and unit.here:
        return _of_starting(unit, now_s - record.since_s, rules, wanted=wanted)
    if not unit.here and now_s - record.seen_s >= rules.grace_s:
        return Verdict.RETIRED, "it left the frontend but did not end"
    return None


def _of_dead(unit: Unit, snapshot: Snapshot, now_s: float, rules: Rules) -> Judgement | None:
    """None while the frontend still takes it for READY and may yet say what killed it."""
    ended_s = unit.record.ended_s
    unnoticed = unit.replica is not None and unit.status is ReplicaState.READY
    if unnoticed and ended_s is not None and now_s - ended_s < rules.settle_s:
        return None
    return _verdict(unit, snapshot), ""


def _never_was(unit: Unit) -> bool:
    """Announced by an autoscaler that ended before it started it. Nobody else does, and if it is told
    to drain it cannot leave by itself."""
    return unit.instance is None and unit.replica is not None and unit.replica.pid == 0


def _of_draining(unit: Unit, age_s: float, rules: Rules) -> Judgement | None:
    """S4: one that still serves has not heard of its drain yet, which is told again; one that
    holds a lease finishes it, or is LOST when the frontend's clock says that it hangs."""
    unheard = unit.replica is not None and unit.status is ReplicaState.READY
    if not unit.runs or unheard or not unit.idle or age_s < rules.drain_timeout_s:
        return None
    return Verdict.RETIRED, f"it did not leave within {rules.drain_timeout_s:g} s of its drain"


def _of_starting(unit: Unit, age_s: float, rules: Rules, *, wanted: bool) -> Judgement | None:
    unknown = unit.replica is None and unit.runs
    if unknown and not wanted and age_s >= rules.grace_s:
        return Verdict.RETIRED, "the frontend does not know it and its model is not wanted"
    if age_s >= rules.start_timeout_s:
        return Verdict.FAILED_START, f"it was not READY within {rules.start_timeout_s:g} s"
    return None


def _verdict(unit: Unit, snapshot: Snapshot) -> Verdict:
    """Why one that has ended did; nobody's fault while the frontend was away or stops."""
    record = unit.record
    frontend_was_away = record.seen_epoch not in (None, snapshot.epoch)
    if record.drain_since_s is not None or snapshot.stopping or _was_over(unit):
        return Verdict.RETIRED
    if record.attributed:
        return Verdict.ATTRIBUTED
    if record.was_ready or frontend_was_away or _died_as_standby(unit):
        return Verdict.REPLACE
    return Verdict.FAILED_START


def _was_over(unit: Unit) -> bool:
    """It had ended before this autoscaler saw it, and the frontend has nothing to say of it: why
    it did, and whether it ever served, is not known."""
    record = unit.record
    found_ended = record.ended_s is not None and record.ended_s == record.since_s
    return found_ended and record.announce_sent_s is None and record.seen_epoch is None


def _died_as_standby(unit: Unit) -> bool:
    """It was to be given a model, and the frontend never said that it was."""
    assigned = unit.record.assign_sent_s is not None
    return assigned and unit.replica is not None and unit.replica.key is None
