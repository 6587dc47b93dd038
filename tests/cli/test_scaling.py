"""The pure parts of `status`, `scale` and `logs`; tests/e2e runs the commands."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import typer
from rich.console import Console

from tideserve.cli import logs as logs_module
from tideserve.cli.duration import seconds_of
from tideserve.cli.exits import UsageFault
from tideserve.cli.logs import is_loopback, reachable, what_came
from tideserve.cli.status import replica_table, status_table
from tideserve.client import ModelStatus, ReplicaInfo, ServerStatus

MODEL = ModelStatus(
    name="digits",
    version="1",
    state="READY",
    reason="",
    ready=2,
    starting=1,
    desired=3,
    decision="panic: 9 rows wait",
    limited_by="max: 3",
    pinned=None,
    pin_remaining_s=0.0,
    arrivals=100,
    succeeded=90,
    rejected=0,
    expired=0,
    failed=0,
    queued_requests=9,
    oldest_age_s=0.1,
    queue_wait_bounds_s=(0.1, 0.2),
    queue_wait_counts=(10, 0, 0),
)


def server(time_s: float, *models: ModelStatus) -> ServerStatus:
    return ServerStatus(time_s, models, (), standby=1, autoscaler_http="127.0.0.1:8003")


def cells(last: ServerStatus, now: ServerStatus) -> list[str]:
    table = status_table(last, now)
    return [str(next(iter(column.cells))) for column in table.columns]


def test_rates_and_quantiles_are_of_the_time_between_two_looks() -> None:
    later = replace(MODEL, arrivals=150, queue_wait_counts=(10, 20, 0))
    found = cells(server(10.0, MODEL), server(12.0, later))
    assert found[3:9] == ["25.0", "195.0 ms", "9", "2", "1", "3"]
    assert found[9] == "panic: 9 rows wait; limited by max: 3"


def test_a_first_look_has_no_rate_and_a_model_without_an_autoscaler_nothing_desired() -> None:
    alone = replace(MODEL, desired=None, decision="", limited_by="", pinned=2, pin_remaining_s=30.0)
    found = cells(server(10.0, alone), server(10.0, alone))
    assert (found[3], found[4], found[8]) == ("0.0", "-", "-")
    assert found[9] == "pinned at 2 for 30 s"


def test_brackets_in_a_reason_are_shown() -> None:
    broken = replace(MODEL, reason="pip install 'tideserve[torch]'", limited_by="")
    console = Console(width=200, record=True, file=StringIO())
    console.print(status_table(server(10.0, broken), server(10.0, broken)))
    assert "tideserve[torch]" in console.export_text()


def test_a_replica_is_shown_with_how_busy_it_was_between_two_looks() -> None:
    replica = ReplicaInfo(
        id="digits-1-0-a",
        model="digits",
        version="1",
        state="READY",
        pid=7,
        host="h",
        device="cpu",
        phase="ready",
        reason="",
        leases=1,
        busy_s=10.0,
        memory_bytes=0,
        state_age_s=61.2,
    )
    fresh = replace(replica, id="standby-1-a", model="", version="", state="STANDBY", busy_s=0.0)
    last = replace(server(10.0), replicas=(replica,))
    now = replace(server(12.0), replicas=(replace(replica, busy_s=11.5), fresh))
    table = replica_table(last, now)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    assert [tuple(map(str, row)) for row in rows] == [
        ("digits-1-0-a", "digits", "1", "READY", "61 s", "75%", "cpu", "ready"),
        ("standby-1-a", "-", "-", "STANDBY", "61 s", "0%", "cpu", "ready"),
    ]
    shown = [str(cell) for cell in replica_table(now, now).columns[5].cells]
    assert shown == ["-", "-"]


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90.0), ("90s", 90.0), ("1.5m", 90.0), ("2h", 7200.0)]
)
def test_times_have_units(text: str, expected: float) -> None:
    assert seconds_of(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "soon", "1d", "1 m m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageFault, match="expected a time such as 90s, 10m or 2h"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("shown", "now", "new"),
    [
        ([], ["a", "b"], ["a", "b"]),
        (["a", "b"], ["a", "b"], []),
        (["a", "b"], ["a", "b", "c"], ["c"]),
        (["b", "c", "d", "e", "f", "g"], ["c", "d", "e", "f", "g", "h"], ["h"]),
        (["a", "a"], ["a", "a", "a"], ["a"]),
        (["a", "b", "a", "b"], ["b", "a", "b", "c"], ["c"]),
        (["a", "un"], ["a", "unfinished", "b"], ["unfinished", "b"]),
        (["a", "b", "c"], ["c"], []),
        (["a"], [], []),
        (["x"], ["a", "b"], ["a", "b"]),
    ],
)
def test_only_what_came_since_is_shown(shown: list[str], now: list[str], new: list[str]) -> None:
    assert what_came(shown, now) == new


def test_an_autoscaler_on_every_address_is_asked_where_the_server_is() -> None:
    assert reachable("0.0.0.0:8003", "node:8001") == "node:8003"
    assert reachable("10.0.0.1:8003", "node:8001") == "10.0.0.1:8003"
    assert reachable("[::]:8003", "unix:/run/tideserve") == "127.0.0.1:8003"
    assert reachable("127.0.0.1:8003", "unix:/run/tideserve") == "127.0.0.1:8003"
    assert reachable("127.0.0.1:8003", "[::1]:8001") == "127.0.0.1:8003"


def test_the_token_of_a_server_elsewhere_is_not_sent_to_this_machine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit):
        reachable("127.0.0.1:8003", "node:8001")
    assert "run `tideserve logs` there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "stays"),
    [
        ("127.0.0.1:1", True),
        ("127.8.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("10.0.0.1:1", False),
        ("node:1", False),
        ("[fd00::1]:1", False),
    ],
)
def test_what_stays_on_this_machine_is_known(where: str, *, stays: bool) -> None:
    assert is_loopback(where) is stays


def test_the_token_does_not_leave_this_machine_in_clear_where_tls_is_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client:
        def __enter__(self) -> "Client":
            return self

        def __exit__(self, *_: object) -> None:
            return

        def status(self) -> ServerStatus:
            return ServerStatus(0.0, (), (), standby=0, autoscaler_http="0.0.0.0:8003")

    monkeypatch.setattr(logs_module, "control_client", lambda *_, **__: Client())
    with pytest.raises(typer.Exit):
        logs_module.logs("r", address="node:8001", tls_ca=Path("ca.pem"))
    assert "in clear" in capsys.readouterr().err
