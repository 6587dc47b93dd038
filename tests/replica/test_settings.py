"""What a replica may be started with."""

from dataclasses import replace
from typing import Any

import pytest

from tideserve.replica.errors import SettingsError
from tideserve.replica.settings import Device, ReplicaSettings

GOOD = ReplicaSettings("r1", "127.0.0.1:8001", "secret")


@pytest.mark.parametrize(("text", "index"), [("cpu", None), ("gpu:0", 0), ("gpu:12", 12)])
def test_devices_are_read_and_written_alike(text: str, index: int | None) -> None:
    assert Device.parse(text) == Device(index)
    assert str(Device(index)) == text


@pytest.mark.parametrize("text", ["", "CPU", "gpu", "gpu:", "gpu:-1", "gpu:x", "gpu:²", "cuda:0"])
def test_other_devices_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"expected cpu or gpu:INDEX .*, got "):
        Device.parse(text)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"address": "host.example:1"},
        {"address": "[::1]:65535"},
        {"address": "unix:/run/front.sock"},
        {"local_address": "unix:/run/front.sock"},
        {"token": ""},
        {"reconnect_s": 0.0},
        {"device": "gpu:1", "threads": 3},
    ],
)
def test_what_can_work_passes(fields: dict[str, Any]) -> None:
    replace(GOOD, **fields).check()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"replica_id": ""}, "replica-id: expected a name"),
        ({"address": "localhost"}, "expected HOST:PORT or unix:/PATH, got 'localhost'"),
        ({"address": ":8001"}, "expected HOST:PORT"),
        ({"address": "host:0"}, "expected HOST:PORT"),
        ({"address": "host:65536"}, "expected HOST:PORT"),
        ({"address": "host:x"}, "expected HOST:PORT"),
        ({"address": "unix:relative"}, "expected HOST:PORT"),
        ({"token": "new\nline"}, "token: expected printable ASCII"),
        ({"token": "gr\u00fcn"}, "token: expected printable ASCII"),
        ({"local_address": "localhost:1"}, "local-address: expected unix:/PATH, got 'localhost:1'"),
        ({"threads": -1}, "threads: expected 0 or more, got -1"),
        ({"reconnect_s": -0.5}, "reconnect_s: expected 0 or more, got -0.5"),
        ({"device": "tpu"}, "device: expected cpu or gpu:INDEX"),
    ],
)
def test_what_cannot_work_is_named(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        replace(GOOD, **fields).check()


def test_a_refusal_of_a_token_does_not_show_it() -> None:
    with pytest.raises(SettingsError) as raised:
        replace(GOOD, token="gr\u00fcn-secret").check()
    assert "secret" not in str(raised.value)
