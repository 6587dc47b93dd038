"""From looks at a server to a trace of rates."""

import importlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from tests.cli.test_scaling import MODEL
from tideserve.cli.record import rates
from tideserve.client import ServerStatus

# `tideserve.cli` may have a command of that name.
command = importlib.import_module("tideserve.cli.record")


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


def test_a_version_that_goes_leaves_the_others_as_they_are() -> None:
    looks = [look(10.0, 1_000_100, 900_100), look(11.0, 1_000_200)]
    assert list(rates(looks, "digits")) == [100.0]


def test_generations_of_a_version_count_once() -> None:
    twice = look(11.0, 130)
    twice = replace(twice, models=(*twice.models, *twice.models))
    assert list(rates([look(10.0, 100), twice], "digits")) == [30.0]


def test_a_model_that_is_not_there_is_refused_and_the_file_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "trace.csv"
    kept.write_text("precious")
    client = SimpleNamespace(status=lambda: look(10.0, 1))
    monkeypatch.setattr(command, "control_client", lambda *_, **__: nullcontext(client))
    with pytest.raises(typer.Exit):
        command.record("other", kept)
    assert "there are: digits" in capsys.readouterr().err
    assert kept.read_text() == "precious"
