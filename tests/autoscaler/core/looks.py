"""Looks at one model version, one after the other, and what was decided at each."""

from dataclasses import replace

from tests.autoscaler.core.loads import PROFILE, UNIX_S
from tideserve.autoscaler.core.decision import Decision, Inputs
from tideserve.autoscaler.core.load import Load
from tideserve.autoscaler.core.policy import PolicyState, decide
from tideserve.autoscaler.core.settings import ModelPolicy

IDLE = Load(0.0, succeeded=10.0, rows=10.0, profile=PROFILE)


def inputs(present: int = 1, **changes: object) -> Inputs:
    values: dict[str, object] = {
        "ready": present,
        "starting": 0,
        "load": IDLE,
        "startup_s": 0.5,
        "unix_s": UNIX_S,
        "latency_target_s": 0.4,
        **changes,
    }
    return Inputs(**values)  # type: ignore[arg-type]


def looks(policy: ModelPolicy, *given_: Inputs, every_s: float = 1.0) -> list[Decision]:
    """Decisions of one look after the other; loads are of the moment they are given."""
    state, now_s, found = PolicyState(), 0.0, []
    for one in given_:
        if one.load is not None:
            one = replace(one, load=replace(one.load, at_s=now_s))
        state, decision = decide(state, one, now_s, policy)
        found.append(decision)
        now_s += every_s
    return found
