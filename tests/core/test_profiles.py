"""l(b) by device and by what a row costs: what is told apart, and what stands in for the rest."""

import pytest

from tideserve.server.core.profiles import Profiles


def test_batches_of_other_lengths_and_devices_are_told_apart() -> None:
    profiles = Profiles(by_device=True, row_costs=(16, 32, 128))
    profiles.observe("gpu:0", 16, 4, 0.010)
    profiles.observe("gpu:0", 128, 4, 0.080)
    profiles.observe("gpu:1", 16, 4, 0.002)
    short, long = profiles.on("gpu:0", 16), profiles.on("gpu:0", 128)
    assert short is not None
    assert long is not None
    assert (short.latency_s(4), long.latency_s(4)) == (0.010, 0.080)
    profiles.observe("gpu:1", 32, 4, 0.003)
    assert profiles.of(32).latency_s(4) == 0.003  # whatever the device


def test_what_was_never_seen_is_as_what_is_next_to_it() -> None:
    profiles = Profiles(by_device=True, row_costs=(16, 64))
    profiles.observe("cpu", 16, 1, 0.010)
    of_the_device = profiles.on("cpu", 64)
    assert of_the_device is profiles.on("cpu")
    assert of_the_device is not None
    assert of_the_device.latency_s(1) == 0.010
    assert profiles.of(64) is profiles.every
    assert profiles.on("gpu:0", 16) is None


def test_without_padding_and_targets_there_is_one_profile() -> None:
    profiles = Profiles()
    profiles.observe("cpu", 1, 2, 0.010)
    assert not profiles.tells_costs_apart
    assert profiles.on("cpu", 1) is None
    assert profiles.every.latency_s(2) == 0.010


def test_a_warm_up_is_learned_only_by_those_that_know_nothing() -> None:
    profiles = Profiles(by_device=True)
    profiles.observe("cpu", 1, 1, 0.010)
    profiles.observe_first("cpu", [(1, 5.0)])
    profiles.observe_first("gpu:0", iter([(1, 5.0)]))
    assert profiles.every.latency_s(1) == 0.010
    other = profiles.on("gpu:0", 1)
    assert other is not None
    assert other.latency_s(1) == 5.0


def test_lengths_that_callers_make_up_are_one_kind_on_every_device() -> None:
    profiles = Profiles(by_device=True, row_costs=(1, 16))
    for length in range(17, 1000):
        profiles.observe("gpu:0", length, 1, 0.010)
    assert profiles.on("gpu:0", 17) is profiles.on("gpu:0", 10_000)
    profiles.observe("gpu:1", 5000, 1, 0.020)
    for length, latency_s in ((1, 0.001), (12, 0.005)):
        profiles.observe("gpu:1", length, 1, latency_s)
        of_the_length = profiles.on("gpu:1", length)
        assert of_the_length is not None
        assert of_the_length.latency_s(1) == latency_s


def test_the_least_is_that_of_the_fastest_device() -> None:
    profiles = Profiles(by_device=True)
    assert profiles.least_s(1, 1) is None
    profiles.observe("cpu", 1, 1, 0.200)
    profiles.observe("gpu:0", 1, 1, 0.010)
    assert profiles.least_s(1, 1) == 0.010
    assert profiles.least_s(64, 1) == 0.010


def test_a_quiet_time_does_not_change_what_a_replica_can_do() -> None:
    profiles = Profiles(by_device=True)
    profiles.observe("cpu", 1, 8, 0.100)
    for _ in range(1000):
        profiles.observe("cpu", 1, 1, 0.030)
    of_the_device = profiles.on("cpu", 1)
    assert of_the_device is not None
    # Batches of 8 are tried again as if nothing was known; the autoscaler goes on knowing them.
    assert of_the_device.latency_s(8) == pytest.approx(0.240)
    assert profiles.every.latency_s(8) == pytest.approx(0.100)
