from tideserve.autoscaler.core.limits import bounded, changed, limited, pinned
from tideserve.autoscaler.core.settings import ModelPolicy, StepLimits

STEPS = ModelPolicy(max_replicas=20, steps=StepLimits(up=3, down=2, per_s=10.0))


def test_steps_count_what_was_changed_within_their_time() -> None:
    changes = changed((), 2, 0.0, STEPS)
    assert limited(9, 4, changes, None, STEPS, 5.0) == (5, "steps.up: 3 in 10 s")
    assert limited(9, 4, changes, None, STEPS, 10.0) == (7, "steps.up: 3 in 10 s")
    changes = changed(changes, -1, 5.0, STEPS)
    assert limited(1, 5, changes, None, STEPS, 6.0) == (4, "steps.down: 2 in 10 s")
    assert changed(changes, 0, 12.0, STEPS) == ((5.0, -1),)


def test_the_first_of_all_is_kept_waiting_by_no_step() -> None:
    changes = ((0.0, 3), (1.0, -3))
    assert limited(2, 0, changes, None, STEPS, 2.0) == (1, "steps.up: 3 in 10 s")


def test_no_more_than_what_gave_goodput_and_no_fewer_than_the_minimum() -> None:
    limit = "marginal gain: more than 4 gave no more goodput"
    assert limited(6, 6, (), 4, ModelPolicy(), 0.0) == (4, limit)
    assert limited(6, 6, (), 4, ModelPolicy(min_replicas=5), 0.0) == (5, limit)
    assert limited(4, 4, (), 4, ModelPolicy(), 0.0) == (4, None)


def test_s1_the_bounds_hold_for_any_count() -> None:
    policy = ModelPolicy(min_replicas=2, max_replicas=5)
    assert [bounded(count, policy) for count in (0, 2, 5, 6)] == [
        (2, "min: 2"),
        (2, None),
        (5, None),
        (5, "max: 5"),
    ]
    none = ModelPolicy(min_replicas=0, max_replicas=0)
    assert [bounded(count, none) for count in (0, 1)] == [(0, "max: 0"), (0, "max: 0")]


def test_a_pin_goes_before_all_but_the_maximum() -> None:
    policy = ModelPolicy(min_replicas=2, max_replicas=5)
    assert [pinned(pin, policy) for pin in (0, 5, 6)] == [
        (0, "pinned"),
        (5, "pinned"),
        (5, "max: 5"),
    ]
