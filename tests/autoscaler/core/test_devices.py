from tideserve.autoscaler.core.devices import Slots
from tideserve.autoscaler.core.settings import Device

GPUS = (Device("gpu:0", slots=2), Device("gpu:1", slots=2), Device("gpu:2", slots=1))


def test_the_least_used_device_is_picked_the_first_of_equals() -> None:
    slots = Slots(GPUS, [("gpu:0", 0), ("gpu:2", 0), ("cpu", 0)])
    assert [slots.pick(0) for _ in range(4)] == ["gpu:1", "gpu:0", "gpu:1", None]


def test_one_more_than_there_are_slots_only_when_asked_for() -> None:
    slots = Slots([Device("cpu", slots=1)], [("cpu", 0)])
    assert slots.pick(0) is None
    assert slots.pick(0, beyond=True) == "cpu"


def test_memory_is_a_limit_where_it_is_counted() -> None:
    slots = Slots([Device("gpu:0", slots=8, memory_bytes=10)], [("gpu:0", 4)])
    assert slots.pick(7) is None
    assert slots.pick(6) == "gpu:0"
    assert slots.pick(0) == "gpu:0"
    assert not slots.take("gpu:0", 1)
    assert slots.take("gpu:0", 0)


def test_a_replica_that_has_its_slot_may_take_memory_while_there_is_some() -> None:
    slots = Slots([Device("gpu:0", slots=1, memory_bytes=10)], [("gpu:0", 4)])
    assert not slots.grow("gpu:0", 7)
    assert slots.grow("gpu:0", 6)
    assert not slots.grow("gpu:0", 1)
    assert not slots.grow("gpu:9", 0)


def test_a_device_that_is_not_listed_has_no_slots() -> None:
    slots = Slots(GPUS, [("gpu:9", 0)])
    assert slots.lists("gpu:0")
    assert not slots.lists("gpu:9")
    assert not slots.take("gpu:9", 0)
