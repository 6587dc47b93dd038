from tideserve.autoscaler.core.devices import pick_device


def test_the_least_used_device_is_picked_the_first_of_equals() -> None:
    devices = ("gpu:0", "gpu:1", "gpu:2")
    assert pick_device(devices, []) == "gpu:0"
    assert pick_device(devices, ["gpu:0", "gpu:2", "cpu"]) == "gpu:1"
    assert pick_device(devices, devices) == "gpu:0"
