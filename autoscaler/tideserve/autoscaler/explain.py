"""A decision with every number that it was made from, for people."""

from collections.abc import Iterator, Mapping

from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import ModelKey


def explain(decisions: Mapping[ModelKey, Decision]) -> str:
    """Some lines for each model version."""
    if not decisions:
        return "the frontend serves no model: nothing to decide"
    return "\n".join(line for key in sorted(decisions) for line in _lines(key, decisions[key]))


def _lines(key: ModelKey, decision: Decision) -> Iterator[str]:
    yield f"model {key}: desired {decision.desired}"
    yield f"  because     {decision.reason}"
    if decision.limited_by:
        yield f"  limited by  {decision.limited_by}"
    for name, value in sorted(decision.inputs.items()):
        yield f"  {name:22} {value:.6g}"
