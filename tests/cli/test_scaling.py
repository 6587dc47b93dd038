"""The pure parts of `status`, `scale` and `logs`; tests/e2e runs the commands."""

from dataclasses import replace

import pytest

from tideserve.cli.exits import UsageFault
from tideserve.cli.logs import reachable, what_came
from tideserve.cli.scale import seconds_of
from tideserve.cli.status import queue_wait_quantile, status_table
from tideserve.client import ModelStatus, ServerStatus

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


def test_a_wait_beyond_the_last_bound_is_shown_as_that_bound() -> None:
    later = replace(MODEL, queue_wait_counts=(10, 0, 5))
    assert queue_wait_quantile(MODEL, later) == 0.2
    assert queue_wait_quantile(MODEL, MODEL) is None


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
        (["a", "a"], ["a", "a", "a"], []),
        (["x"], ["a", "b"], ["a", "b"]),
    ],
)
def test_only_what_came_since_is_shown(shown: list[str], now: list[str], new: list[str]) -> None:
    assert what_came(shown, now) == new


def test_an_autoscaler_on_every_address_is_asked_where_the_server_is() -> None:
    assert reachable("0.0.0.0:8003", "node:8001") == "node:8003"
    assert reachable("10.0.0.1:8003", "node:8001") == "10.0.0.1:8003"
