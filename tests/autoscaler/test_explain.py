from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import ModelKey
from tideserve.autoscaler.explain import explain


def test_a_decision_is_told_with_every_number() -> None:
    text = explain(
        {
            ModelKey("b", 1, "g"): Decision(1, "fixed: a count of 1"),
            ModelKey("a", 2, "g"): Decision(
                3, "panic: 9 rows wait", "max: 3", {"queued_rows": 9.0, "hold_s": 0.25}
            ),
        }
    )
    assert text.splitlines() == [
        "model 'a' version 2: desired 3",
        "  because     panic: 9 rows wait",
        "  limited by  max: 3",
        "  hold_s                 0.25",
        "  queued_rows            9",
        "model 'b' version 1: desired 1",
        "  because     fixed: a count of 1",
    ]


def test_without_models_there_is_nothing_to_decide() -> None:
    assert explain({}) == "the frontend serves no model: nothing to decide"
