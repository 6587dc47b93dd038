"""Every setting out of range is named, with the range and what came."""

from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from tideserve.server.config import ServeSettings, check
from tideserve.server.errors import StartError
from tideserve.server.front import FrontSettings
from tideserve.server.service.repository import ModelControl

GOOD = ServeSettings(Path("/models"))


def test_the_defaults_are_in_range() -> None:
    check(GOOD)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"front_kind": "rust"}, "--front: expected one of auto, native, grpcio, got 'rust'"),
        ({"http_port": -1}, "--http-port: expected a port .* got -1"),
        ({"http_port": 65536}, "--http-port: expected a port .* got 65536"),
        ({"http_port": 8001}, "--http-port: expected another port than --grpc-port, got 8001"),
        ({"replicas": -1}, "--replicas: expected 0 to 1024, got -1"),
        ({"replicas": 1025}, "--replicas: expected 0 to 1024, got 1025"),
        ({"threads": 0}, "--threads: expected 1 to 1024, got 0"),
        ({"threads": 1025}, "--threads: expected 1 to 1024, got 1025"),
        ({"poll_interval_s": 0.0}, "--poll-interval-s: expected 0.1 to 86400.0, got 0.0"),
        ({"poll_interval_s": nan}, "--poll-interval-s: .* got nan"),
        ({"shutdown_timeout_s": -1.0}, "--shutdown-timeout-s: expected 0.0 to .* got -1.0"),
        ({"shutdown_timeout_s": inf}, "--shutdown-timeout-s: .* got inf"),
        ({"load_models": ("m",)}, "--load-model: expected --model-control explicit .* got .* none"),
    ],
)
def test_a_setting_out_of_range_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(StartError, match=words):
        check(replace(GOOD, **change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"port": -1}, "--grpc-port: expected a port .* got -1"),
        ({"port": 65536}, "--grpc-port: expected a port .* got 65536"),
        ({"max_message_bytes": 1023}, "--max-message-bytes: expected 1024 to 2147483647, got 1023"),
        ({"max_message_bytes": 2**31}, "--max-message-bytes: .* got 2147483648"),
        ({"max_concurrent_streams": 0}, "--max-concurrent-streams: expected 1 to .* got 0"),
        ({"max_connections": 0}, "--max-connections: expected 1 to .* got 0"),
        ({"keepalive_time_s": 0.5}, "--keepalive-time-s: expected 1.0 to .* got 0.5"),
        ({"busy_poll_s": -1e-6}, "--busy-poll-us: expected 0 to 10000, got -1"),
        ({"busy_poll_s": 0.02}, "--busy-poll-us: expected 0 to 10000, got 20000"),
        ({"keepalive_timeout_s": 0.0}, "--keepalive-timeout-s: expected 0.1 to .* got 0.0"),
    ],
)
def test_a_setting_of_the_front_out_of_range_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(StartError, match=words):
        check(replace(GOOD, front=replace(GOOD.front, **change)))


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(StartError, match=r"--replicas.*; .*--threads"):
        check(replace(GOOD, replicas=-1, threads=-1))


def test_two_free_ports_may_both_be_asked_for() -> None:
    check(replace(GOOD, front=FrontSettings(port=0), http_port=0))


def test_models_to_load_go_with_explicit_control() -> None:
    check(replace(GOOD, model_control=ModelControl.EXPLICIT, load_models=("m",)))
