"""From looks at a server to a trace of rates."""

from dataclasses import replace

import pytest
import typer

from tests.cli.test_scaling import MODEL
from tideserve.cli.record import rates
from tideserve.client import ServerStatus


def look(time_s: float, *arrivals: int) -> ServerStatus:
    models = tuple(
        replace(MODEL, version=str(version), arrivals=count)
        for version, count in enumerate(arrivals, 1)
    )
    return ServerStatus(time_s, models, (), standby=0, autoscaler_http="")


def test_rates_are_of_all_versions_between_two_looks_by_the_servers_clock() -> None:
    looks = [look(10.0, 100, 5), look(11.0, 130, 5), look(13.0, 130, 25)]
    assert list(rates(looks, "digits")) == [30.0, 10.0]


def test_a_restarted_server_counts_anew_and_a_model_that_went_away_gets_nothing() -> None:
    assert list(rates([look(10.0, 100), look(11.0, 7), look(12.0)], "digits")) == [7.0, 0.0]


def test_a_model_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        list(rates([look(10.0, 1)], "other"))
    assert "there are: digits" in capsys.readouterr().err
